"""What is refused before anything runs."""

from __future__ import annotations

import os
import subprocess
import sys
import threading
from dataclasses import replace

import pytest
from torch.utils.data import DataLoader

import autocompress as ac
from autocompress.distribute import check_sendable


@pytest.mark.parametrize(
    "name", ["model", "loss", "step", "inputs", "targets", "outputs", "optimizer", "scheduler", "prepare"]
)
def test_what_of_a_task_cannot_be_sent_to_workers_is_named_with_the_remedy(
    name: str, residual_task: ac.Task
) -> None:
    check_sendable(residual_task)
    lock = threading.Lock()
    task = replace(residual_task)
    object.__setattr__(task, name, lambda *given: lock)
    with pytest.raises(ac.UsageError, match=rf"^{name} must be picklable.*lock.*make locks.*inside of the"):
        check_sendable(task)


def test_metrics_that_cannot_be_sent_are_named_each(residual_task: ac.Task) -> None:
    lock = threading.Lock()
    metrics = {"loss": lambda o, t: 0.0, "accuracy": lambda o, t: float(lock.locked())}
    with pytest.raises(ac.UsageError, match=r"^metrics\['accuracy'\] must be picklable.*lock"):
        check_sendable(replace(residual_task, metrics=metrics))


def test_the_split_that_cannot_be_sent_is_named_with_the_remedy(residual_task: ac.Task) -> None:
    lock = threading.Lock()
    loader = DataLoader([], collate_fn=lambda rows: (lock, rows))
    with pytest.raises(ac.UsageError, match=r"^val must be picklable.*lock.*give a function that makes val"):
        check_sendable(replace(residual_task, val=loader))
    check_sendable(replace(residual_task, val=lambda: DataLoader([], collate_fn=threading.Lock())))


def test_without_a_home_ray_starts_and_gives_back_the_handler_of_sigterm_when_it_ends() -> None:
    script = (
        "import os, signal\n"
        "from autocompress.distribute import Cluster, connection, start_here\n"
        "signal.signal(signal.SIGTERM, lambda *_: print('heard'))\n"
        "with connection(None):\n"
        "    start_here(Cluster(1))\n"
        "os.kill(os.getpid(), signal.SIGTERM)\n"
    )
    homeless = {**os.environ, "HOME": "/dev/null"}
    child = subprocess.run(
        [sys.executable, "-c", script], capture_output=True, text=True, check=False, env=homeless
    )
    assert (child.returncode, child.stdout) == (0, "heard\n"), child.stderr
