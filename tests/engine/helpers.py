"""Run the command line in a process of its own."""

from __future__ import annotations

import os
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path


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


def start(*arguments: object, cwd: Path, **environment: str) -> subprocess.Popen[str]:
    """In a process group of its own, as a terminal gives it one."""
    log = open(cwd / "log.txt", "a")  # noqa: SIM115  (the process keeps it)
    return subprocess.Popen(
        command(*arguments),
        stdout=log,
        stderr=log,
        text=True,
        cwd=cwd,
        env={**os.environ, **environment},
        start_new_session=True,
    )


def wait_until(true: Callable[[], object], process: subprocess.Popen[str], log: Path) -> None:
    """Wait until something is true, as long as the process runs; a process that hangs is pytest's."""
    while not true():
        assert process.poll() is None, log.read_text()
        time.sleep(0.1)
