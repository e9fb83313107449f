"""The reference is a run's first job, and trials begin once it is stored."""

from __future__ import annotations

import importlib
import os
import pickle
from dataclasses import replace
from functools import partial
from pathlib import Path

import pytest
from torch import Tensor, nn

import autocompress as ac
from autocompress.distribute import ReferenceJob, WaitJob
from autocompress.distribute.worker import _pickled
from autocompress.engine.driver import WAITS, SearchDriver
from autocompress.engine.interruption import Interruption
from autocompress.engine.reference import ReferenceFirst
from autocompress.errors import ClusterError

JOB = ReferenceJob(seed=3, threads=2)


def no_search() -> SearchDriver:
    raise AssertionError("the search begins with a reference that was not stored")


def test_nothing_is_proposed_until_the_reference_is_stored(tmp_path: Path) -> None:
    heard: list[object] = []
    ended = tmp_path / "computed" / "ended"
    driver = ReferenceFirst(JOB, 3, ended, no_search, heard.append)
    assert driver.next() is JOB
    assert [driver.next(), driver.next()] == [WaitJob(-1, ended), WaitJob(-2, ended)]
    assert driver.next() is None
    assert driver.epoch(0, {"epoch": 1})
    assert heard == [{"epoch": 1}]
    assert not ended.exists()
    driver.completed(0, None)
    assert ended.exists()
    driver.completed(-1, None)
    with pytest.raises(AssertionError, match="the search begins"):
        driver.next()


def test_a_reference_that_failed_is_the_end(tmp_path: Path) -> None:
    driver = ReferenceFirst(JOB, 2, tmp_path / "ended", no_search, lambda entry: None)
    driver.next()
    driver.died(-1)
    assert driver.error is None
    driver.died(0)
    assert driver.next() is None
    assert driver.ended.exists()
    assert isinstance(driver.error, ClusterError)
    assert str(driver.error) == "the worker process died while the reference trained"


def test_a_reference_that_there_is_no_time_for_is_the_end(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("autocompress.engine.interruption._GRACE", 0.0)
    driver = ReferenceFirst(JOB, 1, tmp_path / "ended", no_search, lambda entry: None, Interruption(60.0))
    assert driver.next() is JOB
    assert not driver.overdue(0, 1e9)
    driver.interruption = Interruption(1e-9)
    assert driver.overdue(0, 1.0)
    driver.killed(0, "")
    assert driver.next() is None
    assert str(driver.error) == (
        "timeout must leave time to train the reference but 1e-09 s were over before (give more)"
    )


def test_a_reference_that_waits_for_a_worker_says_so_once(tmp_path: Path) -> None:
    said: list[str] = []
    driver = ReferenceFirst(JOB, 1, tmp_path / "e", no_search, lambda entry: None, note=said.append)
    for seconds in (0.1, 40.0, 41.0):
        driver.waits(0, seconds)
    assert said == [f"the reference {WAITS}"]


class Stubborn(Exception):
    """One that cannot be made again from its arguments."""

    def __init__(self, first: str, second: str) -> None:
        super().__init__(f"{first} {second}")


def test_an_error_that_cannot_be_sent_keeps_its_name_and_text() -> None:
    sent = pickle.loads(_pickled(Stubborn("no", "way")))
    assert isinstance(sent, RuntimeError)
    assert str(sent) == "Stubborn: no way"


def broken_elsewhere(home: int, outputs: Tensor, targets: Tensor) -> Tensor:
    """A loss that fails where models are trained, not where the task is checked."""
    if os.getpid() != home:
        raise ZeroDivisionError("a fault of the user's own")
    return nn.functional.cross_entropy(outputs, targets)


def test_an_error_of_the_users_own_arrives_with_the_line_that_raised_it(
    residual_task: ac.Task, tmp_path: Path
) -> None:
    task = replace(residual_task, loss=partial(broken_elsewhere, os.getpid()))
    with pytest.raises(ZeroDivisionError, match="a fault of the user's own") as raised:
        ac.search(task, trials=1, workers=1, out=tmp_path / "run")
    assert "in broken_elsewhere" in raised.value.__notes__[0]


def test_a_task_that_workers_cannot_import_is_refused_with_the_reason(
    residual_task: ac.Task, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    lines = [
        "import os, torch",
        f"if os.getpid() != {os.getpid()}: raise ImportError('licensed for one process')",
        "def loss(outputs, targets): return torch.nn.functional.cross_entropy(outputs, targets)",
    ]
    (tmp_path / "only_here.py").write_text("\n".join(lines))
    monkeypatch.syspath_prepend(tmp_path)
    task = replace(residual_task, loss=importlib.import_module("only_here").loss)
    with pytest.raises(ClusterError, match=r"task could not be loaded .*: licensed for one process"):
        ac.search(task, trials=1, workers=1, out=tmp_path / "run")


def noted(folder: Path, outputs: Tensor, targets: Tensor) -> Tensor:
    """A loss that notes which processes train."""
    if outputs.requires_grad:
        (folder / str(os.getpid())).touch()
    return nn.functional.cross_entropy(outputs, targets)


def test_short_trials_run_in_as_many_processes_as_there_are_workers(
    residual_task: ac.Task, tmp_path: Path
) -> None:
    processes = tmp_path / "processes"
    processes.mkdir()
    task = replace(residual_task, loss=partial(noted, processes))
    options = {"methods": ["alcn"], "objectives": ["accuracy", "macs"], "constraints": []}
    ac.search(task, trials=4, workers=2, **options, out=tmp_path / "run", progress=ac.Progress())
    assert len({path.name for path in processes.iterdir()} - {str(os.getpid())}) == 2
