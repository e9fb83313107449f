"""What is refused before anything runs."""

from __future__ import annotations

import threading
from dataclasses import replace

import pytest
from torch.utils.data import DataLoader

import autocompress as ac
from autocompress.distribute import check_sendable


def test_a_task_that_cannot_be_sent_to_workers_is_refused(residual_task: ac.Task) -> None:
    check_sendable(residual_task)
    lock = threading.Lock()
    with pytest.raises(ac.UsageError, match=r"task must be picklable, to be sent to worker processes.*lock"):
        check_sendable(replace(residual_task, metrics={"accuracy": lambda o, t: float(lock.locked())}))


def test_the_split_that_cannot_be_sent_is_named_with_the_remedy(residual_task: ac.Task) -> None:
    lock = threading.Lock()
    loader = DataLoader([], collate_fn=lambda rows: (lock, rows))
    with pytest.raises(ac.UsageError, match=r"^val must be picklable.*lock.*give a function that makes val"):
        check_sendable(replace(residual_task, val=loader))
    check_sendable(replace(residual_task, val=lambda: DataLoader([], collate_fn=threading.Lock())))
