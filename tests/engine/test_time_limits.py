"""Trials that hang."""

from __future__ import annotations

import os
import re
import subprocess
import time
from dataclasses import dataclass, replace
from pathlib import Path

import pytest
from torch import Tensor, nn

import autocompress as ac


@dataclass(frozen=True)
class HangsOnce:
    """A loss with which the first training in a worker starts a process, and hangs in code that is not
    Python's while it holds Python's lock.

    Args:
        home: the process that it does not hang in.
        child: file in which it notes the process that it started.
    """

    home: int
    child: Path

    def __call__(self, outputs: Tensor, targets: Tensor) -> Tensor:
        if outputs.requires_grad and os.getpid() != self.home and not self.child.exists():
            self.child.write_text(str(subprocess.Popen(["sleep", "3600"]).pid))
            re.match(r"(a|a)*b", "a" * 64)
        return nn.functional.cross_entropy(outputs, targets)


@pytest.fixture
def hanging(residual_task: ac.Task, tmp_path: Path) -> ac.Task:
    """A task whose first training in a worker hangs."""
    return replace(residual_task, loss=HangsOnce(os.getpid(), tmp_path / "child"))


def running(process: int) -> bool:
    status = Path(f"/proc/{process}/status")
    return status.exists() and "State:\tZ" not in status.read_text()


def wait_for_the_end_of(process: int) -> None:
    while running(process):
        time.sleep(0.1)


def test_a_trial_that_hangs_ends_with_its_children_and_the_search_goes_on(
    hanging: ac.Task, tmp_path: Path, shared_ray: None
) -> None:
    task = replace(hanging, weights=hanging.model().state_dict())
    result = ac.search(
        task, trials=2, workers=1, epochs=1, methods=["alcn"], trial_timeout=6.0, out=tmp_path / "run"
    )
    states = {t.number: (t.state.name, t.user_attrs.get("reason", "")) for t in result.study.trials}
    assert states[1][0] == "FAIL"
    reason = r'it took longer than the 6 s of trial_timeout, and was at File ".*", line \d+ in match'
    assert re.fullmatch(reason, states[1][1])
    assert "test_time_limits.py" in result.study.trials[1].user_attrs["traceback"]
    assert states[2][0] == "COMPLETE"
    wait_for_the_end_of(int((tmp_path / "child").read_text()))
