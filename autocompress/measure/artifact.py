"""Artefacts measured one at a time, each in a process of its own that has nothing of this package."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import tempfile
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from filelock import FileLock

from autocompress.errors import TrialError, one_line
from autocompress.task.inputs import Inputs, arguments

_CHILD = Path(__file__).with_name("artifact_child.py")


@contextmanager
def exclusive() -> Iterator[None]:
    """While this holds, nothing else on this machine is measured by this package."""
    with FileLock(Path(tempfile.gettempdir()) / f"autocompress-latency-{os.getuid()}.lock"):
        yield


def measured_apart(kind: str, programs: Sequence[Path], inputs: Inputs, **job: Any) -> dict[str, Any]:
    """What a process of its own measures of programs.

    Args:
        kind: "latency" or "memory".
        programs: `.pt2` or `.onnx` files.
        inputs: of a call.
        job: what else the process is to know, JSON-able.

    Raises:
        TrialError: the process failed.
    """
    with tempfile.TemporaryDirectory() as folder, exclusive():
        saved = Path(folder) / "inputs.pt"
        torch.save(arguments(inputs), saved)
        job |= {"kind": kind, "programs": [str(program) for program in programs], "inputs": str(saved)}
        # -P: neither the child's folder nor the working directory may lend it a module.
        done = subprocess.run(
            [sys.executable, "-P", str(_CHILD), json.dumps(job)], capture_output=True, text=True, check=False
        )
    if done.returncode != 0:
        last = done.stderr.strip().splitlines()[-1:] or ["no message"]
        raise TrialError(f"{kind} could not be measured: {one_line(Exception(last[0]))}")
    answer: dict[str, Any] = json.loads(done.stdout.strip().splitlines()[-1])
    return answer


def peak_memory(program: Path, example: Inputs) -> int:
    """The bytes that a process holds at most while it calls a program, beyond what it held before it loaded
    it: weights, activations, and what the runtime keeps of the graph. By one thread.

    Args:
        program: `.pt2` or `.onnx`.
        example: of one call.

    Raises:
        TrialError: the measuring process failed.
    """
    found = measured_apart("memory", [program], example, threads=1)
    return int(found["bytes"])
