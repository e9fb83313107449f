"""Run by its path in a process of its own: loads programs as a deployment would, and runs them.

It imports nothing of this package, and says so: the last line of its output is what went wrong with each
program, and the list of modules of this package that were loaded.
"""

from __future__ import annotations

import json
import sys
import warnings
from pathlib import Path
from typing import Any

import torch
from torch.utils._pytree import tree_leaves


def _run(path: str, args: tuple[Any, ...], kwargs: dict[str, Any]) -> list[torch.Tensor]:
    arrays = [leaf.numpy() for leaf in tree_leaves((args, kwargs)) if isinstance(leaf, torch.Tensor)]
    if path.endswith(".xml"):
        import openvino

        compiled = openvino.Core().compile_model(path, "CPU", {"EXECUTION_MODE_HINT": "ACCURACY"})
        return [torch.from_numpy(output) for output in compiled(arrays).values()]
    if path.endswith(".onnx"):
        import onnxruntime

        session = onnxruntime.InferenceSession(path, providers=["CPUExecutionProvider"])
        feed = dict(zip((given.name for given in session.get_inputs()), arrays, strict=True))
        return [torch.from_numpy(output) for output in session.run(None, feed)]
    with warnings.catch_warnings(), torch.no_grad():
        warnings.simplefilter("ignore")
        outputs = torch.export.load(path).module()(*args, **kwargs)
    return [leaf for leaf in tree_leaves(outputs) if isinstance(leaf, torch.Tensor)]


def main() -> None:
    """Run the programs of the folder named on the command line, and write their outputs and errors there."""
    folder = Path(sys.argv[1])
    args, kwargs = torch.load(folder / "inputs.pt", weights_only=True)
    programs = json.loads((folder / "programs.json").read_text())
    outputs: list[list[torch.Tensor] | None] = []
    errors: list[str | None] = []
    for path in programs:
        try:
            output, error = _run(path, args, kwargs), None
        except Exception as failure:  # whatever it is, the others are to be run as well
            output, error = None, f"{type(failure).__name__}: {failure}".strip().splitlines()[0]
        outputs.append(output)
        errors.append(error)
    torch.save(outputs, folder / "outputs.pt")
    loaded = [name for name in sys.modules if name.partition(".")[0] == "autocompress"]
    print(json.dumps({"errors": errors, "loaded": loaded}))


if __name__ == "__main__":
    main()
