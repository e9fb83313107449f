"""Run the command line in a process of its own."""

from __future__ import annotations

import os
import sqlite3
import subprocess
import sys
import time
from contextlib import closing
from pathlib import Path

from optuna.trial import TrialState


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
    """Numbers of trials in these states, read beside Optuna, which would make missing tables."""
    names = [state.name for state in wanted or TrialState]
    marks = ",".join("?" * len(names))
    try:
        with closing(sqlite3.connect(f"file:{out / 'study.db'}?mode=ro", uri=True)) as database:
            query = f"SELECT number FROM trials WHERE state IN ({marks}) ORDER BY number"
            return [number for (number,) in database.execute(query, names)]
    except sqlite3.OperationalError:
        # The driver is just making the tables.
        return []
