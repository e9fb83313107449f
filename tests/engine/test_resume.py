"""Nothing is lost: killed drivers, killed workers, Ctrl-C. Real processes, real Ray, real SQLite."""

from __future__ import annotations

import os
import signal
import subprocess
import time
from collections.abc import Iterator
from pathlib import Path

import optuna
import pytest
from optuna.trial import TrialState

import autocompress as ac
from autocompress.checkpoint import open_checkpoint
from autocompress.study import sqlite_url
from tests.engine import gated
from tests.engine.helpers import run, start, wait_until

TRIALS = 5


class GatedSearch:
    """The search of `gated.py` in a folder; its training waits once some trial was proposed."""

    def __init__(self, folder: Path, trial: int) -> None:
        self.folder, self.out = folder, folder / "run"
        self.gate = folder / "gate"
        self.gate.mkdir()
        source = gated.__file__
        self.arguments = ("search", f"{source}:make", "--space", source, "--trials", TRIALS)
        self.arguments += ("--workers", 2, "--constraint", "none", "--out", self.out)
        self.environment = {"GATE": str(self.gate), "GATE_TRIAL": str(trial)}
        self.driver = start(*self.arguments, cwd=folder, **self.environment)

    def wait(self, workers: int = 1) -> list[int]:
        """Processes that wait at the gate, once there are so many."""
        wait_until(lambda: len(self._waiting()) >= workers, self.driver, self.folder / "log.txt")
        return self._waiting()

    def open(self) -> None:
        (self.gate / "open").touch()

    def again(self) -> subprocess.CompletedProcess[str]:
        """The same command."""
        return run(*self.arguments, cwd=self.folder, **self.environment)

    def trials(self) -> list[optuna.trial.FrozenTrial]:
        return optuna.load_study(study_name=None, storage=sqlite_url(self.out)).trials

    def kill(self) -> None:
        os.killpg(self.driver.pid, signal.SIGKILL)
        self.driver.wait()

    def _waiting(self) -> list[int]:
        return [int(path.name.partition("-")[2]) for path in self.gate.glob("waiting-*")]


@pytest.fixture
def search(tmp_path: Path, request: pytest.FixtureRequest) -> Iterator[GatedSearch]:
    """Started; the parameter is the trial at whose proposal the gate closes."""
    made = GatedSearch(tmp_path, request.param)
    yield made
    made.open()
    if made.driver.poll() is None:
        made.kill()


def finished(trials: list[optuna.trial.FrozenTrial]) -> list[optuna.trial.FrozenTrial]:
    return [t for t in trials if t.number > 0 and "interrupted" not in t.user_attrs]


# Two workers: when trial 4 is proposed, two of the trials before it are complete.
@pytest.mark.parametrize("search", [4], indirect=True)
def test_killed_driver_resumes_without_zombies_and_without_redoing_trials(search: GatedSearch) -> None:
    search.wait()
    search.kill()
    before = search.trials()
    done = {t.number: t.datetime_complete for t in before if t.state == TrialState.COMPLETE}
    cut_off = [t.number for t in before if t.state == TrialState.RUNNING]
    assert len(done) >= 3
    assert cut_off

    search.open()
    again = search.again()
    assert again.returncode == 0, again.stderr
    after = search.trials()
    assert not [t for t in after if t.state in (TrialState.RUNNING, TrialState.WAITING)]
    assert {t.number: t.datetime_complete for t in after if t.number in done} == done
    for number in cut_off:
        assert after[number].state == TrialState.FAIL
        assert after[number].user_attrs["reason"] == "the driver died"
        # It may have been cut off while it was being proposed, with a part of its parameters; and of a family
        # that has grown since, "only train" may ask for fewer.
        cut = after[number].params
        assert any(all(t.params.get(k, v) == v for k, v in cut.items()) for t in after[number + 1 :])
    assert len(finished(after)) == TRIALS
    assert not list((search.out / "trials").glob(".*"))
    result = ac.load_run(search.out)
    for point in result.front:
        open_checkpoint(point.path)


@pytest.mark.parametrize("search", [2], indirect=True)
def test_a_killed_worker_fails_its_trial_alone_which_runs_again(search: GatedSearch) -> None:
    os.kill(search.wait()[0], signal.SIGKILL)
    search.open()
    assert search.driver.wait() == 0, (search.folder / "log.txt").read_text()
    failed = [t for t in search.trials() if t.state == TrialState.FAIL]
    assert [t.user_attrs["reason"] for t in failed] == ["the worker process died"]
    assert len([t for t in search.trials() if t.state == TrialState.COMPLETE]) == 1 + TRIALS


@pytest.mark.parametrize("search", [3], indirect=True)
def test_ctrl_c_prints_the_partial_front_and_the_same_command_goes_on(search: GatedSearch) -> None:
    search.wait()
    os.kill(search.driver.pid, signal.SIGINT)
    assert search.driver.wait() == 130
    log = (search.folder / "log.txt").read_text()
    assert "Pareto front" in log
    assert "interrupted" in log
    assert "Traceback" not in log
    assert not [t for t in search.trials() if t.state == TrialState.RUNNING]
    assert (search.out / "report.html").is_file()
    search.open()
    again = search.again()
    assert again.returncode == 0, again.stderr
    assert len(finished(search.trials())) == TRIALS


@pytest.mark.parametrize("search", [0], indirect=True)
def test_a_run_in_use_is_refused_and_sigterm_while_the_reference_trains_ends_its_process_too(
    search: GatedSearch,
) -> None:
    (worker,) = search.wait()
    second = search.again()
    assert second.returncode == 2
    assert "must not be searched by two processes" in second.stderr
    os.kill(search.driver.pid, signal.SIGTERM)
    assert search.driver.wait() == 143
    log = (search.folder / "log.txt").read_text()
    assert "interrupted before any trial" in log
    assert "Traceback" not in log
    while Path(f"/proc/{worker}").exists():
        time.sleep(0.1)
    assert not (search.out / "reference").exists()


@pytest.mark.parametrize("search", [0], indirect=True)
def test_a_reference_whose_process_dies_is_told_in_one_line(search: GatedSearch) -> None:
    os.kill(search.wait()[0], signal.SIGKILL)
    assert search.driver.wait() == 1
    last = (search.folder / "log.txt").read_text().splitlines()[-1]
    assert last == "autocompress: the worker process died while the reference trained"
