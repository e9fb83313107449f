"""A check that artefacts deploy: loaded in a fresh process without this package, with equal outputs."""

from __future__ import annotations

import json
import subprocess
import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch

from autocompress.checkpoint.program import load_program
from autocompress.errors import CheckpointError, one_line
from autocompress.graph.proof import relative_difference
from autocompress.task.inputs import Inputs, arguments, tensors

_CHILD = Path(__file__).with_name("reload_child.py")
TOLERANCE = 1e-5


def reload_faults(programs: Sequence[Path], inputs: Inputs) -> dict[Path, str]:
    """Load programs in a process that does not know this package, and compare what they put out.

    Args:
        programs: `.pt2` and `.onnx` files.
        inputs: `(B, ...)`.

    Returns:
        Why a program does not load there, or that it computes something else; nothing for those that do.
    """
    if not programs:
        return {}
    answer = _run_child(programs, inputs)
    if answer is None and len(programs) > 1:
        # One of them ended the process; by itself it ends its own.
        return {file: why for path in programs for file, why in reload_faults([path], inputs).items()}
    if answer is None:
        return {programs[0]: "the process that loads it ended without an answer"}
    outputs, errors, loaded = answer
    faults = {}
    for path, output, error in zip(programs, outputs, errors, strict=True):
        reason = error or (f"it must load without this package but loaded {loaded}" if loaded else None)
        reason = reason or _difference(path, inputs, output)
        if reason:
            faults[path] = f"{path.name} does not run as it should in a fresh process: {reason}"
    return faults


def _difference(path: Path, inputs: Inputs, output: Any) -> str | None:
    """How what a program puts out here differs from what it put out there."""
    try:
        with torch.no_grad():
            difference = relative_difference(tensors(load_program(path)(inputs)), output)
    except CheckpointError as error:
        return one_line(error)
    return f"its outputs differ by {difference:.1e}" if difference > TOLERANCE else None


def _run_child(programs: Sequence[Path], inputs: Inputs) -> tuple[list[Any], list[Any], list[str]] | None:
    """Outputs, errors and modules of this package of the process; None where it ended without an answer."""
    with tempfile.TemporaryDirectory() as scratch:
        folder = Path(scratch)
        torch.save(arguments(inputs), folder / "inputs.pt")
        (folder / "programs.json").write_text(json.dumps([str(path) for path in programs]))
        # -P: neither this folder nor the working directory may lend the child a module.
        done = subprocess.run(
            [sys.executable, "-P", str(_CHILD), str(folder)], capture_output=True, text=True, check=False
        )
        if done.returncode != 0:
            return None
        answer = json.loads(done.stdout.strip().splitlines()[-1])
        outputs = torch.load(folder / "outputs.pt", weights_only=True)
        return outputs, answer["errors"], answer["loaded"]
