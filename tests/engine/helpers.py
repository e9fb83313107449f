"""Run the command line in a process of its own."""

from __future__ import annotations

import os
import subprocess
import sys
import time
from pathlib import Path

import optuna
from optuna.exceptions import StorageInternalError
from optuna.storages import RDBStorage
from optuna.trial import TrialState
from sqlalchemy.exc import SQLAlchemyError

from autocompress.study import STUDY_NAME, sqlite_url


def command(*arguments: object) -> list[str]:
    return [sys.executable, "-m", "autocompress.cli", *map(str, arguments)]


def run(*arguments: object, cwd: Path, **environment: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        command(*arguments),
        capture_output=True,
        text=True,
        cwd=cwd,
        env={**os.environ, **environment},
        check=False,
    )


def start(*arguments: object, cwd: Path) -> subprocess.Popen[str]:
    """In a process group of its own, as a terminal gives it one."""
    log = open(cwd / "log.txt", "a")  # noqa: SIM115  (the process keeps it)
    return subprocess.Popen(
        command(*arguments), stdout=log, stderr=log, text=True, cwd=cwd, start_new_session=True
    )


def wait_for_complete(out: Path, count: int, seconds: float = 120) -> None:
    """Wait until that many compressed trials are complete."""
    end = time.monotonic() + seconds
    while time.monotonic() < end:
        time.sleep(0.3)
        if (out / "study.db").exists() and len(states(out, TrialState.COMPLETE)) > count:
            return
    raise AssertionError((out.parent / "log.txt").read_text())


def states(out: Path, *wanted: TrialState) -> list[int]:
    # Tables are the driver's to make: two processes that make them at once collide.
    storage = RDBStorage(sqlite_url(out), skip_table_creation=True)
    try:
        study = optuna.load_study(study_name=STUDY_NAME, storage=storage)
        return [t.number for t in study.get_trials(deepcopy=False, states=wanted or None)]
    except (KeyError, SQLAlchemyError, StorageInternalError):
        return []
