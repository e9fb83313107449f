"""Programs of `torch.export`, with a free batch size; and what runs files of each format."""

from __future__ import annotations

import io
import warnings
from functools import partial
from pathlib import Path
from types import MethodType
from typing import Any, cast

import torch
from torch import Tensor, fx, nn
from torch.export.passes import move_to_device_pass
from torch.utils import _pytree as pytree

from autocompress.checkpoint.archive import deflate, refuse_pickles, tensor_bytes
from autocompress.checkpoint.calling import Program
from autocompress.checkpoint.onnx_file import load_onnx, onnx_weight_bytes
from autocompress.checkpoint.openvino_ir import load_ir
from autocompress.checkpoint.slimming import slim
from autocompress.errors import CheckpointError, SettingsError, TrialError, one_line
from autocompress.graph.exporting import export, full_precision
from autocompress.graph.proof import TOLERANCE, relative_difference
from autocompress.graph.training_mode import marked, passing_modules, unmark
from autocompress.task.inputs import Inputs, call, moved
from autocompress.weights.encoded import codes_of


def export_program(model: nn.Module, example: Inputs, path: Path) -> fx.GraphModule:
    """Write the `torch.export` program of a model, batch norms folded and without debugging metadata, as a
    deflated archive.

    Args:
        model: exported in eval mode.
        example: `(B, ...)` with B ≥ 2.
        path: ends in `.pt2`.

    Returns:
        The program's graph with all that was known of it, around the model's own tensors; modules that return
        their input are marked in it, as `analyse` takes it.

    Raises:
        TrialError: the model cannot be exported.
    """
    try:
        # The program keeps its example inputs, of which only the shape matters; zeros take no space.
        passing = passing_modules(model, example)
        with marked(model, passing):
            program = export(model, pytree.tree_map_only(Tensor, torch.zeros_like, example))
        graph: Any = program.module(check_guards=False)
        unmark(program, model, passing)
        slim(program, halves=bool(codes_of(model)))
        _strip(program.graph_module)
        stored = io.BytesIO()
        with warnings.catch_warnings():
            # PyTorch's notice that a transposed tensor does not cover its storage, which it stores whole.
            warnings.simplefilter("ignore")
            torch.export.save(program, stored)
    except Exception as error:
        raise TrialError(f"the model could not be exported: {one_line(error)}") from error
    deflate(stored, path, program.state_dict)
    return cast(fx.GraphModule, graph)


def _strip(module: fx.GraphModule) -> None:
    """Take what only debugging needs out of a program's graph: where nodes came from, and assertions that
    a tensor has the type it was exported with."""
    for part in module.modules():
        if not isinstance(part, fx.GraphModule):
            continue
        for node in list(part.graph.nodes):
            if node.target is torch.ops.aten._assert_tensor_metadata.default:
                part.graph.erase_node(node)
            node.meta = {key: value for key, value in node.meta.items() if key == "val"}
        part.recompile()


def weight_bytes(path: Path) -> int:
    """Bytes that the tensors of a program's file take in it, as they are stored there.

    What is left is the graph and the container.
    """
    if path.suffix == ".xml":
        return path.with_suffix(".bin").stat().st_size
    return onnx_weight_bytes(path) if path.suffix == ".onnx" else tensor_bytes(path)


def files_of(path: Path) -> tuple[Path, ...]:
    """A program's file, and that beside it where the format has two."""
    return (path, path.with_suffix(".bin")) if path.suffix == ".xml" else (path,)


def load_program(path: Path) -> Program:
    """A callable from an exported file, `.pt2`, `.onnx` or `.xml`; `(B, ...)` → outputs.

    Raises:
        CheckpointError: the file is missing or damaged.
    """
    if not path.is_file():
        raise CheckpointError(f"program must be an existing file but '{path}' is not.")
    try:
        if path.suffix == ".xml":
            return load_ir(path)
        return load_onnx(path) if path.suffix == ".onnx" else partial(call, load_module(path))
    except (SettingsError, CheckpointError):
        raise
    except Exception as error:
        raise CheckpointError(f"program '{path}' cannot be loaded: {one_line(error)}") from error


def load_module(path: Path) -> nn.Module:
    """The plain module of a `.pt2` file: exported operators and weights, no class of the user's.

    Raises:
        CheckpointError: it is damaged, or loading it would run code.
    """
    refuse_pickles(path)
    with warnings.catch_warnings():
        # torch.export's own notice on how it reads its archive; nothing that a caller can act on.
        warnings.simplefilter("ignore")
        try:
            module = torch.export.load(path).module()
        except Exception as error:  # of a damaged file PyTorch raises any error
            raise CheckpointError(f"program '{path}' cannot be loaded: {one_line(error)}") from error
    # An exported program is fixed to inference; by itself it refuses even `eval()`.
    for part in module.modules():
        part.training = False
    module.eval = MethodType(_as_it_is, module)  # type: ignore[method-assign]
    module.train = MethodType(_inference_only, module)  # type: ignore[method-assign]
    return module


def program_on(path: Path, device: torch.device, example: Inputs) -> tuple[Program, torch.device]:
    """The program of a file on a device where it computes there what it does on the CPU; else on the CPU.

    What is deployed and loaded by others is the file on the CPU; a device is only faster.

    Args:
        path: of the exported file.
        device: where it should run.
        example: inputs to compare on, `(B, ...)`, on the CPU.

    Returns:
        The program, and where its inputs must be.

    Raises:
        CheckpointError: the file is missing or damaged.
    """
    on_cpu = load_program(path), torch.device("cpu")
    if device.type == "cpu" or path.suffix != ".pt2":
        return on_cpu
    try:
        on_device = _MovedProgram(path, device)
        with torch.no_grad():
            difference = relative_difference(
                on_cpu[0](example), moved(on_device(moved(example, device)), "cpu")
            )
    except (RuntimeError, NotImplementedError, ValueError):
        # A call that names the CPU in a way that cannot be moved.
        return on_cpu
    return (on_device, device) if difference <= TOLERANCE else on_cpu


class _MovedProgram:
    """A `.pt2` program on another device than it was exported on, in full single precision."""

    def __init__(self, path: Path, device: torch.device) -> None:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            refuse_pickles(path)
            self.module = move_to_device_pass(torch.export.load(path), str(device)).module()

    def __call__(self, inputs: Inputs) -> Any:
        with full_precision():
            return call(self.module, inputs)


def _as_it_is(module: nn.Module) -> nn.Module:
    return module


def _inference_only(module: nn.Module, mode: bool = True) -> nn.Module:
    if mode:
        raise CheckpointError("a loaded program is fixed to inference and cannot be set to training.")
    return module
