"""Deployable programs: `torch.export` and ONNX, exported with a free batch size and run again."""

from __future__ import annotations

import ast
import contextlib
import io
import json
import warnings
from collections.abc import Callable
from functools import partial
from pathlib import Path
from types import MethodType
from typing import Any, cast

import torch
from torch import Tensor, fx, nn
from torch.export.passes import move_to_device_pass
from torch.utils import _pytree as pytree

from autocompress.checkpoint.archive import deflate, refuse_pickles, tensor_bytes
from autocompress.checkpoint.slimming import slim
from autocompress.errors import CheckpointError, SettingsError, TrialError, one_line
from autocompress.graph.exporting import export, full_precision, inference
from autocompress.graph.proof import TOLERANCE, relative_difference
from autocompress.task.inputs import Inputs, arguments, call, moved, tensors

Program = Callable[[Inputs], Any]


def export_program(model: nn.Module, example: Inputs, path: Path) -> fx.GraphModule:
    """Write the `torch.export` program of a model, batch norms folded and without debugging metadata, as a
    deflated archive.

    Args:
        model: exported in eval mode.
        example: `(B, ...)` with B ≥ 2.
        path: ends in `.pt2`.

    Returns:
        The program's graph with all that was known of it, around the model's own tensors.

    Raises:
        TrialError: the model cannot be exported.
    """
    try:
        # The program keeps its example inputs, of which only the shape matters; zeros take no space.
        program = export(model, pytree.tree_map_only(Tensor, torch.zeros_like, example))
        graph: Any = program.module(check_guards=False)
        slim(program)
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


# Metadata of an ONNX file whose model returns more than one tensor: each output's place, as JSON.
_OUTPUTS = "autocompress.outputs"
_SCOPES = "pkg.torch.onnx.name_scopes"
# Constants of more numbers are computed where the program is loaded, so that the file keeps the codes that
# weights are decoded from, not the weights.
_MOST_FOLDED = 64


def export_onnx(model: nn.Module, example: Inputs, path: Path) -> dict[str, tuple[str, ...]]:
    """Write the ONNX model, opset as PyTorch's exporter chooses it, all weights in the one file and no
    debugging metadata.

    Returns:
        By node of its graph, the modules that it comes from and the tensors that it reads.

    Raises:
        SettingsError: the `onnx` extra is not installed.
        TrialError: the model cannot be exported.
    """
    _require_onnx()
    from onnxscript.optimizer import optimize

    with inference(model), contextlib.redirect_stdout(io.StringIO()):
        try:
            program, structure = _onnx_program(model, example)
            optimize(program.model, input_size_limit=_MOST_FOLDED, output_size_limit=_MOST_FOLDED)
            proto = program.model_proto
        except Exception as error:
            raise TrialError(f"the model could not be exported to ONNX: {one_line(error)}") from error
    del proto.metadata_props[:]
    origins = {node.name: _origins(node) for node in proto.graph.node}
    _strip_onnx(proto.graph)
    if not isinstance(structure, int):
        proto.metadata_props.add(key=_OUTPUTS, value=json.dumps(structure))
    path.write_bytes(proto.SerializeToString())
    return origins


def _origins(node: Any) -> tuple[str, ...]:
    """Names of the modules that a node comes from, where its debugging metadata tell, and of its inputs."""
    scopes = next((entry.value for entry in node.metadata_props if entry.key == _SCOPES), "[]")
    # The model itself comes first, the operator last.
    return (*ast.literal_eval(scopes)[1:-1], *node.input)


def _onnx_program(model: nn.Module, example: Inputs) -> tuple[Any, Any]:
    """The program of PyTorch's exporter, for any batch size, batch norms folded; and the outputs' places in
    what the model returns, 0 where that is one tensor.

    PyTorch 2.9 takes some graphs that were loaded from a file for unlike at a batch of one, though their
    operators are the same; the ONNX file holds no bound on the batch.
    """
    options: dict[str, Any] = {"dynamo": True, "optimize": False, "verbose": False}
    try:
        program = export(model, example)
    except (ValueError, RuntimeError):  # violated constraints are among both
        program = export(model, example, least=2)
    slim(program)
    returned = program.call_spec.out_spec
    structure = pytree.tree_unflatten(list(range(returned.num_leaves)), returned)
    return torch.onnx.export(program, **options), structure


def _placed(structure: Any, outputs: list[Tensor]) -> Any:
    """A file's outputs in the containers that the model returned them in."""
    if isinstance(structure, dict):
        return {name: _placed(part, outputs) for name, part in structure.items()}
    if isinstance(structure, list):
        return tuple(_placed(part, outputs) for part in structure)
    return outputs[structure]


def _strip_onnx(graph: Any) -> None:
    """Take what only debugging needs out of an ONNX graph and those within its nodes."""
    del graph.value_info[:], graph.metadata_props[:]
    for item in (*graph.node, *graph.initializer, *graph.input, *graph.output):
        del item.metadata_props[:]
        item.ClearField("doc_string")
    for node in graph.node:
        for attribute in node.attribute:
            if attribute.HasField("g"):
                _strip_onnx(attribute.g)


def weight_bytes(path: Path) -> int:
    """Bytes that the tensors of a program's file take in it, as they are stored there.

    What is left is the graph and the container.
    """
    if path.suffix == ".onnx":
        _require_onnx()
        import onnx

        graph = onnx.load(str(path), load_external_data=False).graph
        return sum(len(onnx.numpy_helper.to_array(tensor).tobytes()) for tensor in graph.initializer)
    return tensor_bytes(path)


def load_program(path: Path) -> Program:
    """A callable from an exported file, `.pt2` or `.onnx`; `(B, ...)` → outputs.

    Raises:
        CheckpointError: the file is missing or damaged.
    """
    if not path.is_file():
        raise CheckpointError(f"program must be an existing file but '{path}' is not.")
    try:
        return _load_onnx(path) if path.suffix == ".onnx" else partial(call, load_module(path))
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


def _load_onnx(path: Path) -> Program:
    _require_onnx()
    import onnxruntime

    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = torch.get_num_threads()
    options.add_session_config_entry("session.intra_op.allow_spinning", "0")
    session = onnxruntime.InferenceSession(str(path), options, providers=["CPUExecutionProvider"])
    names = [given.name for given in session.get_inputs()]
    structure = session.get_modelmeta().custom_metadata_map.get(_OUTPUTS)

    def run(inputs: Inputs) -> Any:
        arrays = [tensor.numpy() for tensor in tensors(arguments(inputs))]
        outputs = [
            torch.from_numpy(output) for output in session.run(None, dict(zip(names, arrays, strict=True)))
        ]
        return outputs[0] if structure is None else _placed(json.loads(structure), outputs)

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
