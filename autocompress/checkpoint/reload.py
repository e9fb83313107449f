"""A check that artefacts deploy: loaded in a fresh process without this package, with equal outputs."""

from __future__ import annotations

import json
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch

from autocompress.checkpoint.program import load_program
from autocompress.child import MOST_SECONDS, run_script
from autocompress.errors import CheckpointError, TrialError, one_line
from autocompress.graph.proof import relative_difference
from autocompress.task.inputs import Inputs, arguments, tensors

_CHILD = Path(__file__).with_name("reload_child.py")
TOLERANCE = 1e-5


def reload_faults(programs: Sequence[Path], inputs: Inputs, limit: float = MOST_SECONDS) -> dict[Path, str]:
    """Load programs in a process that does not know this package, and compare what they put out.

    Args:
        programs: `.pt2`, `.onnx` and `.xml` files.
        inputs: `(B, ...)`.
        limit: seconds that the process may take.

    Returns:
        Why a program does not load there, or that it computes something else; nothing for those that do.
    """
    if not programs:
        return {}
    try:
        outputs, errors, loaded = _run_child(programs, inputs, limit)
    except (TrialError, TimeoutError) as failure:
        if len(programs) == 1:
            return {programs[0]: one_line(failure)}
        # One of them ended the process, or held it up; by itself it does so to its own.
        return {file: why for path in programs for file, why in reload_faults([path], inputs, limit).items()}
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


def _run_child(
    programs: Sequence[Path], inputs: Inputs, limit: float
) -> tuple[list[Any], list[Any], list[str]]:
    """Outputs, errors and modules of this package of the process.

    Raises:
        TrialError: it ended without an answer.
        TimeoutError: it did not end in time.
    """
    with tempfile.TemporaryDirectory() as scratch:
        folder = Path(scratch)
        torch.save(arguments(inputs), folder / "inputs.pt")
        (folder / "programs.json").write_text(json.dumps([str(path) for path in programs]))
        done = run_script(_CHILD, str(folder), limit)
        if done.returncode != 0:
            raise TrialError("the process that loads it ended without an answer")
        answer = json.loads(done.stdout.strip().splitlines()[-1])
        outputs = torch.load(folder / "outputs.pt", weights_only=True)
        return outputs, answer["errors"], answer["loaded"]
