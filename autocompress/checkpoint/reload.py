"""Proof that artefacts deploy: loaded in a fresh process without this package, with equal outputs."""

from __future__ import annotations

import json
import subprocess
import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path

import torch
from torch import Tensor

from autocompress.checkpoint.program import load_program
from autocompress.errors import CheckpointError
from autocompress.graph.proof import relative_difference

_CHILD = Path(__file__).with_name("reload_child.py")
TOLERANCE = 1e-5


def check_reload(programs: Sequence[Path], inputs: Tensor) -> None:
    """Load programs in a process that does not know this package, and compare what they put out.

    Args:
        programs: `.pt2` and `.onnx` files.
        inputs: `(B, ...)`.

    Raises:
        CheckpointError: a program does not load there, or computes something else.
    """
    with tempfile.TemporaryDirectory() as scratch:
        folder = Path(scratch)
        torch.save(inputs.clone(), folder / "inputs.pt")
        (folder / "programs.json").write_text(json.dumps([str(path) for path in programs]))
        # -P: neither this folder nor the working directory may lend the child a module.
        done = subprocess.run(
            [sys.executable, "-P", str(_CHILD), str(folder)], capture_output=True, text=True, check=False
        )
        if done.returncode != 0:
            last = (done.stderr.strip().splitlines() or ["no message"])[-1]
            raise CheckpointError(f"programs must load in a fresh process but: {last}")
        loaded = json.loads(done.stdout.strip().splitlines()[-1])
        if loaded:
            raise CheckpointError(f"programs must load without this package but loaded {loaded}.")
        outputs = torch.load(folder / "outputs.pt", weights_only=True)
    with torch.no_grad():
        for path, found in zip(programs, outputs, strict=True):
            difference = relative_difference(load_program(path)(inputs), found)
            if difference > TOLERANCE:
                raise CheckpointError(
                    f"'{path}' must compute the same in a fresh process but differs by {difference:.1e}."
                )
