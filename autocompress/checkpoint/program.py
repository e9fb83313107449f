"""Deployable programs: `torch.export` and ONNX, exported with a free batch size and run again."""

from __future__ import annotations

import contextlib
import io
import warnings
from collections.abc import Callable
from pathlib import Path
from types import MethodType
from typing import Any

import torch
from torch import Tensor, nn

from autocompress.errors import CheckpointError, SettingsError, TrialError, one_line
from autocompress.graph.exporting import FREE_BATCH, export, inference

Program = Callable[[Tensor], Tensor]


def export_program(model: nn.Module, example: Tensor, path: Path) -> None:
    """Write the `torch.export` program of a model.

    Args:
        model: exported in eval mode.
        example: `(B, ...)` with B ≥ 2.
        path: ends in `.pt2`.

    Raises:
        TrialError: the model cannot be exported.
    """
    try:
        torch.export.save(export(model, example), path)
    except Exception as error:
        raise TrialError(f"the model could not be exported: {one_line(error)}") from error


def export_onnx(model: nn.Module, example: Tensor, path: Path) -> None:
    """Write the ONNX model, opset as PyTorch's exporter chooses it, all weights in the one file.

    Raises:
        SettingsError: the `onnx` extra is not installed.
        TrialError: the model cannot be exported.
    """
    _require_onnx()
    with inference(model), contextlib.redirect_stdout(io.StringIO()):
        try:
            torch.onnx.export(
                model,
                (example.clone(),),
                str(path),
                dynamo=True,
                dynamic_shapes=FREE_BATCH,
                external_data=False,
                verbose=False,
            )
        except Exception as error:
            raise TrialError(f"the model could not be exported to ONNX: {one_line(error)}") from error


def load_program(path: Path) -> Program:
    """A callable from an exported file, `.pt2` or `.onnx`; `(B, ...)` → outputs.

    Raises:
        CheckpointError: the file is missing or damaged.
    """
    if not path.is_file():
        raise CheckpointError(f"program must be an existing file but '{path}' is not.")
    try:
        return _load_onnx(path) if path.suffix == ".onnx" else load_module(path)
    except SettingsError:
        raise
    except Exception as error:
        raise CheckpointError(f"program '{path}' cannot be loaded: {one_line(error)}") from error


def load_module(path: Path) -> nn.Module:
    """The plain module of a `.pt2` file: exported operators and weights, no class of the user's."""
    with warnings.catch_warnings():
        # torch.export's own notice on how it reads its archive; nothing that a caller can act on.
        warnings.simplefilter("ignore")
        module = torch.export.load(path).module()
    # An exported program is fixed to inference; by itself it refuses even `eval()`.
    for part in module.modules():
        part.training = False
    module.eval = MethodType(_as_it_is, module)  # type: ignore[method-assign]
    module.train = MethodType(_inference_only, module)  # type: ignore[method-assign]
    return module


def _as_it_is(module: nn.Module) -> nn.Module:
    return module


def _inference_only(module: nn.Module, mode: bool = True) -> nn.Module:
    if mode:
        raise CheckpointError("a loaded program is fixed to inference and cannot be set to training.")
    return module


def _load_onnx(path: Path) -> Program:
    _require_onnx()
    import onnxruntime

    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = torch.get_num_threads()
    options.add_session_config_entry("session.intra_op.allow_spinning", "0")
    session = onnxruntime.InferenceSession(str(path), options, providers=["CPUExecutionProvider"])
    name = session.get_inputs()[0].name

    def run(inputs: Tensor) -> Tensor:
        outputs: Any = session.run(None, {name: inputs.numpy()})[0]
        return torch.from_numpy(outputs)

    return run


def _require_onnx() -> None:
    try:
        import onnx  # noqa: F401
        import onnxruntime  # noqa: F401
        import onnxscript  # noqa: F401
    except ImportError as error:
        raise SettingsError(
            f"the ONNX format needs the extra 'onnx' (pip install 'autocompress[onnx]'): {error}."
        ) from error
