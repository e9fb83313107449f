"""Artefacts measured one at a time, each in a process of its own that has nothing of this package."""

from __future__ import annotations

import json
import os
import tempfile
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from filelock import FileLock, Timeout

from autocompress.child import MOST_SECONDS, run_script
from autocompress.errors import TrialError, one_line
from autocompress.task.inputs import Inputs, arguments

_CHILD = Path(__file__).with_name("artifact_child.py")


@contextmanager
def exclusive(limit: float = MOST_SECONDS) -> Iterator[None]:
    """While this holds, nothing else on this machine is measured by this package.

    Args:
        limit: seconds that this waits for others.

    Raises:
        TrialError: they took longer.
    """
    user = os.getuid() if hasattr(os, "getuid") else 0  # on Windows each user has a folder of their own
    file = Path(tempfile.gettempdir()) / f"autocompress-latency-{user}.lock"
    lock = FileLock(file)
    try:
        lock.acquire(timeout=min(limit, MOST_SECONDS))
    except Timeout as error:
        raise TrialError(f"another process measured for {limit:.0f} s, by the lock '{file}'") from error
    try:
        yield
    finally:
        lock.release()


def measured_apart(
    kind: str, programs: Sequence[Path], inputs: Inputs, limit: float = MOST_SECONDS, **job: Any
) -> dict[str, Any]:
    """What a process of its own measures of programs.

    Args:
        kind: "latency" or "memory".
        programs: `.pt2`, `.onnx` or `.xml` files.
        inputs: of a call.
        limit: seconds that this may take, waiting for others that measure included.
        job: what else the process is to know, JSON-able.

    Raises:
        TrialError: the process failed, or took too long.
    """
    end = time.monotonic() + limit
    with tempfile.TemporaryDirectory() as folder, exclusive(limit):
        saved = Path(folder) / "inputs.pt"
        torch.save(arguments(inputs), saved)
        job |= {"kind": kind, "programs": [str(program) for program in programs], "inputs": str(saved)}
        try:
            done = run_script(_CHILD, json.dumps(job), max(0.0, end - time.monotonic()))
        except TimeoutError as error:
            raise TrialError(f"{kind} could not be measured: {one_line(error)}") from error
    if done.returncode != 0:
        last = done.stderr.strip().splitlines()[-1:] or ["no message"]
        raise TrialError(f"{kind} could not be measured: {one_line(Exception(last[0]))}")
    answer: dict[str, Any] = json.loads(done.stdout.strip().splitlines()[-1])
    return answer


def peak_memory(program: Path, example: Inputs) -> int:
    """The bytes that a process holds at most while it calls a program, beyond what it held before it loaded
    it: weights, activations, and what the runtime keeps of the graph. By one thread.

    Args:
        program: `.pt2`, `.onnx` or `.xml`.
        example: of one call.

    Raises:
        TrialError: the measuring process failed.
    """
    measured = measured_apart("memory", [program], example, threads=1)
    return int(measured["bytes"])
