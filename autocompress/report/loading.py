"""The few lines that load a checkpoint's file and run it, in a program that has not this package."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from torch import Tensor

from autocompress.checkpoint.store import ARTIFACTS
from autocompress.task.inputs import arguments, from_json, tensors


def loading_lines(manifest: Mapping[str, Any], file: str) -> str:
    """At most five lines of Python that load a file and run it on zeros; they need PyTorch, or NumPy and
    ONNX Runtime or OpenVINO, alone.

    Args:
        manifest: of the file's checkpoint.
        file: its path, as it is to be written.
    """
    example = from_json(manifest["input"], batch_size=2)
    lines_of = {".onnx": _onnx, ".xml": _openvino}.get(Path(file).suffix, _program)
    return lines_of(example, file)


def artifact_name(manifest: Mapping[str, Any]) -> str:
    """Name of the file that was measured."""
    return ARTIFACTS[manifest["artifact"]]


def _program(example: Any, file: str) -> str:
    args, kwargs = arguments(example)
    if kwargs or len(args) != 1 or not isinstance(args[0], Tensor):
        return (
            "import torch\n"
            f"program = torch.export.load({file!r})\n"
            "args, kwargs = program.example_inputs  # zeros of the shapes that it takes\n"
            "print(program.module()(*args, **kwargs))"
        )
    return (
        "import torch\n"
        f"model = torch.export.load({file!r}).module()\n"
        f"inputs = torch.zeros({tuple(args[0].shape)}, dtype={args[0].dtype})\n"
        "print(model(inputs))"
    )


def _onnx(example: Any, file: str) -> str:
    return (
        "import numpy as np, onnxruntime\n"
        f"session = onnxruntime.InferenceSession({file!r})\n"
        f"inputs = [{_zeros(example)}]\n"
        "names = [given.name for given in session.get_inputs()]\n"
        "print(session.run(None, dict(zip(names, inputs))))"
    )


def _openvino(example: Any, file: str) -> str:
    return (
        "import numpy as np, openvino\n"
        f"model = openvino.Core().compile_model({file!r}, 'CPU', {{'EXECUTION_MODE_HINT': 'ACCURACY'}})\n"
        f"inputs = [{_zeros(example)}]\n"
        "print(*model(inputs).values())"
    )


def _zeros(example: Any) -> str:
    """Inputs as NumPy's calls make them."""
    return ", ".join(
        f"np.zeros({tuple(tensor.shape)}, np.{str(tensor.dtype).removeprefix('torch.')})"
        for tensor in tensors(example)
    )
