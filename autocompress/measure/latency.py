"""Latency as a ratio to the reference, measured in alternating pairs in a process of its own."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import tempfile
from dataclasses import dataclass, replace
from pathlib import Path

import torch
from filelock import FileLock

from autocompress.errors import SettingsError, TrialError, one_line
from autocompress.task.inputs import Inputs, arguments, repeated_rows

_CHILD = Path(__file__).with_name("latency_child.py")


@dataclass(frozen=True)
class LatencySettings:
    """How latency is measured.

    Args:
        batch_size: inputs per call.
        threads: of the measured process.
        pairs: alternating reference/candidate pairs.
        least_ms: least CPU time of each half of a pair, in milliseconds.
    """

    batch_size: int = 1
    threads: int = 1
    pairs: int = 60
    least_ms: float = 20.0

    def __post_init__(self) -> None:
        for name in ("batch_size", "threads", "pairs"):
            if getattr(self, name) < 1:
                raise SettingsError(f"latency {name} must be at least 1 but got {getattr(self, name)}.")

    def quick(self) -> LatencySettings:
        """A third of the pairs: enough to steer a search while other trials run."""
        return replace(self, pairs=max(1, self.pairs // 3))


@dataclass(frozen=True)
class Latency:
    """CPU-time ratio to the reference, relative spread of its pairs, own milliseconds a call."""

    ratio: float
    spread: float
    milliseconds: float


def measure_latency(
    program: Path, reference: Path | None, example: Inputs, settings: LatencySettings
) -> Latency:
    """Time a program file against the reference's (itself where None), under an exclusive lock.

    Args:
        program: `.pt2` or `.onnx`.
        reference: the same format.
        example: inputs, `(B, ...)`; repeated or cut to the batch size.

    Raises:
        TrialError: the measuring process failed.
    """
    batch = arguments(repeated_rows(example, settings.batch_size))
    lock = FileLock(Path(tempfile.gettempdir()) / f"autocompress-latency-{os.getuid()}.lock")
    with tempfile.TemporaryDirectory() as folder, lock:
        inputs = Path(folder) / "inputs.pt"
        torch.save(batch, inputs)
        job = {
            "programs": [str(reference or program), str(program)],
            "inputs": str(inputs),
            "threads": settings.threads,
            "pairs": settings.pairs,
            "least_seconds": settings.least_ms / 1000,
        }
        # -P: neither the child's folder nor the working directory may lend it a module.
        done = subprocess.run(
            [sys.executable, "-P", str(_CHILD), json.dumps(job)], capture_output=True, text=True, check=False
        )
    if done.returncode != 0:
        last = done.stderr.strip().splitlines()[-1:] or ["no message"]
        raise TrialError(f"latency could not be measured: {one_line(Exception(last[0]))}")
    return Latency(**json.loads(done.stdout.strip().splitlines()[-1]))
