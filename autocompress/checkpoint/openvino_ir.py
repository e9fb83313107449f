"""OpenVINO's own format: a graph, `model.xml`, and the numbers beside it, `model.bin`."""

from __future__ import annotations

import tempfile
from pathlib import Path
from typing import Any

import torch
from torch import nn

from autocompress.checkpoint.calling import Program, program_of
from autocompress.checkpoint.onnx_file import export_onnx, output_places
from autocompress.errors import SettingsError, TrialError
from autocompress.task.inputs import Inputs

# In single precision, as the model computes: by default OpenVINO takes bfloat16 where the CPU has it.
ACCURATE = {"EXECUTION_MODE_HINT": "ACCURACY", "ENABLE_CPU_PINNING": False}
# Where a file tells which containers its outputs are in.
OUTPUTS = ["autocompress", "outputs"]


def export_openvino(model: nn.Module, example: Inputs, path: Path) -> dict[str, tuple[str, ...]]:
    """Write a model as OpenVINO reads it, by way of ONNX; the batch size is free.

    Args:
        model: exported in eval mode.
        example: `(B, ...)` with B ≥ 2.
        path: ends in `.xml`; the numbers are written beside it.

    Returns:
        What nodes of the ONNX file stem from, as `export_onnx` says it.

    Raises:
        SettingsError: the extra `openvino` is not installed.
        TrialError: the model cannot be exported.
    """
    require_openvino()
    with tempfile.TemporaryDirectory() as scratch:
        between = Path(scratch) / "model.onnx"
        origins = export_onnx(model, example, between)
        onnx_to_openvino(between, path)
    return origins


def onnx_to_openvino(source: Path, path: Path) -> None:
    """Write an ONNX file as OpenVINO reads it: weights in single precision, codes as they are.

    Raises:
        SettingsError: the extra `openvino` is not installed.
        TrialError: OpenVINO does not know an operator.
    """
    openvino = require_openvino()
    places = output_places(source)
    try:
        model = openvino.Core().read_model(source)
        if places is not None:
            model.set_rt_info(places, OUTPUTS)
        openvino.save_model(model, path, compress_to_fp16=False)
    except RuntimeError as error:
        raise TrialError(f"the model could not be written for OpenVINO: {_reason(error)}") from error


def _reason(error: RuntimeError) -> str:
    """What OpenVINO says last; before it tells where in its sources that was."""
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    return lines[-1] if lines else type(error).__name__


def load_ir(path: Path) -> Program:
    """The program of a file of OpenVINO's, on the CPU."""
    openvino = require_openvino()
    core = openvino.Core()
    model = core.read_model(path)
    places = model.get_rt_info(OUTPUTS).astype(str) if model.has_rt_info(OUTPUTS) else None
    threads = {"INFERENCE_NUM_THREADS": torch.get_num_threads()}
    compiled = core.compile_model(model, "CPU", {**ACCURATE, **threads})
    return program_of(lambda arrays: list(compiled(list(arrays)).values()), places)


def require_openvino() -> Any:
    """The package `openvino`.

    Raises:
        SettingsError: it is not installed.
    """
    try:
        import openvino
    except ImportError as error:
        raise SettingsError(
            f"the OpenVINO format needs the extra 'openvino' (pip install 'autocompress[openvino]'): {error}."
        ) from error
    return openvino
