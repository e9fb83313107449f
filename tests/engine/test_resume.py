"""Nothing is lost: killed drivers, killed workers, Ctrl-C. Real processes, real Ray, real SQLite."""

from __future__ import annotations

import os
import re
import signal
import subprocess
import time
from pathlib import Path

import optuna
from optuna.trial import TrialState

import autocompress as ac
from autocompress.checkpoint import open_checkpoint
from autocompress.study import STUDY_NAME, sqlite_url
from tests.engine.helpers import run, start, states, wait_for_complete

SEARCH = (
    "search",
    "digits",
    "--trials",
    6,
    "--epochs",
    20,
    "--workers",
    2,
    "--out",
    "run",
    "--methods",
    "alcn",
)


def trials(out: Path) -> list[optuna.trial.FrozenTrial]:
    return optuna.load_study(study_name=STUDY_NAME, storage=sqlite_url(out)).trials


def worker_pids(driver: int) -> list[int]:
    """Processes below a driver that are training a trial; other searches may run on the machine."""
    listing = subprocess.run(
        ["ps", "-eo", "pid,ppid,args"], capture_output=True, text=True, check=True
    ).stdout
    lines = [line.split(None, 2) for line in listing.splitlines()[1:]]
    parents = {int(pid): int(parent) for pid, parent, *_ in lines}

    def ours(pid: int) -> bool:
        while pid in parents and pid != driver:
            pid = parents[pid]
        return pid == driver

    training = [int(pid) for pid, _, *args in lines if args and re.match(r"(?i)ray::\S*train", args[0])]
    return [pid for pid in training if ours(pid)]


def test_killed_driver_resumes_without_zombies_and_without_redoing_trials(tmp_path: Path) -> None:
    driver = start(*SEARCH, cwd=tmp_path)
    out = tmp_path / "run"
    wait_for_complete(out, 2)
    os.killpg(driver.pid, signal.SIGKILL)
    driver.wait()
    done = {t.number: t.datetime_complete for t in trials(out) if t.state == TrialState.COMPLETE}
    cut_off = states(out, TrialState.RUNNING)
    assert len(done) >= 3

    again = run(*SEARCH, cwd=tmp_path)
    assert again.returncode == 0, again.stderr
    after = trials(out)
    assert not [t for t in after if t.state in (TrialState.RUNNING, TrialState.WAITING)]
    assert {t.number: t.datetime_complete for t in after if t.number in done} == done
    for number in cut_off:
        assert after[number].state == TrialState.FAIL
        assert after[number].user_attrs["reason"] == "the driver died"
        # It may have been cut off while it was being proposed, with a part of its parameters.
        assert any(after[number].params.items() <= t.params.items() for t in after[number + 1 :])
    finished = [t for t in after if t.number > 0 and "interrupted" not in t.user_attrs]
    assert len(finished) == 6
    assert not list((out / "trials").glob(".*"))
    result = ac.load_run(out)
    for point in result.front:
        open_checkpoint(point.path)


def test_a_killed_worker_fails_its_trial_alone(tmp_path: Path) -> None:
    driver = start(*SEARCH[:4], "--epochs", 40, *SEARCH[6:], cwd=tmp_path)
    out = tmp_path / "run"
    wait_for_complete(out, 1)
    killed: list[int] = []
    for _ in range(50):
        killed = worker_pids(driver.pid)
        if killed:
            os.kill(killed[0], signal.SIGKILL)
            break
        time.sleep(0.2)
    assert killed, "no worker process was found"
    assert driver.wait(timeout=300) == 0, (tmp_path / "log.txt").read_text()
    failed = [t for t in trials(out) if t.state == TrialState.FAIL]
    assert [t.user_attrs["reason"] for t in failed] == ["the worker process died"]
    assert len([t for t in trials(out) if t.state == TrialState.COMPLETE]) == 1 + 6 - 1


def test_ctrl_c_prints_the_partial_front_and_the_same_command_goes_on(tmp_path: Path) -> None:
    driver = start(*SEARCH, cwd=tmp_path)
    out = tmp_path / "run"
    wait_for_complete(out, 1)
    os.kill(driver.pid, signal.SIGINT)
    assert driver.wait(timeout=60) == 130
    log = (tmp_path / "log.txt").read_text()
    assert "Pareto front" in log
    assert "interrupted" in log
    assert "Traceback" not in log
    assert not states(out, TrialState.RUNNING)
    assert (out / "report.html").is_file()
    again = run(*SEARCH, cwd=tmp_path)
    assert again.returncode == 0, again.stderr
    finished = [t for t in trials(out) if t.number > 0 and "interrupted" not in t.user_attrs]
    assert len(finished) == 6


def test_a_run_in_use_is_refused(tmp_path: Path) -> None:
    driver = start(*SEARCH, cwd=tmp_path)
    try:
        wait_for_complete(tmp_path / "run", 0)
        second = run(*SEARCH, cwd=tmp_path)
        assert second.returncode == 2
        assert "must not be searched by two processes" in second.stderr
    finally:
        os.killpg(driver.pid, signal.SIGKILL)
        driver.wait()
