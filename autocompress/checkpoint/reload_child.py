"""Run by its path in a process of its own: loads programs as a deployment would, and runs them.

It imports nothing of this package, and says so: the last line of its output is what went wrong with each
program, and the list of modules of this package that were loaded.
"""

from __future__ import annotations

import json
import sys
import warnings
from pathlib import Path

import torch


def _run(path: str, inputs: torch.Tensor) -> torch.Tensor:
    if path.endswith(".onnx"):
        import onnxruntime

        session = onnxruntime.InferenceSession(path, providers=["CPUExecutionProvider"])
        return torch.from_numpy(session.run(None, {session.get_inputs()[0].name: inputs.numpy()})[0])
    with warnings.catch_warnings(), torch.no_grad():
        warnings.simplefilter("ignore")
        outputs: torch.Tensor = torch.export.load(path).module()(inputs)
    return outputs


def main() -> None:
    """Run the programs of the folder named on the command line, and write their outputs and errors there."""
    folder = Path(sys.argv[1])
    inputs = torch.load(folder / "inputs.pt", weights_only=True)
    programs = json.loads((folder / "programs.json").read_text())
    outputs: list[torch.Tensor | None] = []
    errors: list[str | None] = []
    for path in programs:
        try:
            output, error = _run(path, inputs), None
        except Exception as failure:  # whatever it is, the others are to be run as well
            output, error = None, f"{type(failure).__name__}: {failure}".strip().splitlines()[0]
        outputs.append(output)
        errors.append(error)
    torch.save(outputs, folder / "outputs.pt")
    loaded = [name for name in sys.modules if name.partition(".")[0] == "autocompress"]
    print(json.dumps({"errors": errors, "loaded": loaded}))


if __name__ == "__main__":
    main()
