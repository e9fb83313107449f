"""What is refused before anything runs."""

from __future__ import annotations

import threading
from dataclasses import replace

import pytest

import autocompress as ac
from autocompress.distribute import check_sendable


def test_a_task_that_cannot_be_sent_to_workers_is_refused(residual_task: ac.Task) -> None:
    check_sendable(residual_task)
    lock = threading.Lock()
    with pytest.raises(ac.UsageError, match=r"task must be picklable, for worker processes, but: .*lock"):
        check_sendable(replace(residual_task, metrics={"accuracy": lambda o, t: float(lock.locked())}))
