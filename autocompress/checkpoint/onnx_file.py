"""ONNX files: exported with a free batch size, and run by ONNX Runtime."""

from __future__ import annotations

import ast
import contextlib
import io
import json
import re
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from numpy.typing import NDArray
from torch import nn
from torch.utils import _pytree as pytree

from autocompress.checkpoint.calling import Program, program_of
from autocompress.checkpoint.slimming import slim
from autocompress.errors import SettingsError, TrialError, one_line
from autocompress.graph.exporting import export, inference, quiet_logger
from autocompress.task.inputs import Inputs

# Metadata of a file whose model returns more than one tensor: each output's place, as JSON.
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
    require_onnx()
    from onnxscript.optimizer import optimize

    with inference(model), quiet_logger("torch.onnx"), contextlib.redirect_stdout(io.StringIO()):
        try:
            program, structure = _onnx_program(model, example)
            optimize(program.model, input_size_limit=_MOST_FOLDED, output_size_limit=_MOST_FOLDED)
            proto = program.model_proto
        except Exception as error:
            raise TrialError(f"the model could not be exported to ONNX: {one_line(error)}") from error
    del proto.metadata_props[:]
    origins = {node.name: _origins(node) for node in proto.graph.node}
    _strip_onnx(proto.graph)
    _name_batch(proto.graph)
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
    count = returned.num_leaves
    names = ["output"] if count == 1 else [f"output_{position}" for position in range(count)]
    if not {*names} & {spec.arg.name for spec in program.graph_signature.input_specs}:
        options["output_names"] = names
    return torch.onnx.export(program, **options), structure


def _name_batch(graph: Any) -> None:
    """Call the number of rows `batch`, where the exporter calls it `s77` or the like."""
    shapes = [value.type.tensor_type.shape.dim for value in (*graph.input, *graph.output)]
    symbol = next((dims[0].dim_param for dims in shapes if dims and dims[0].dim_param.isidentifier()), None)
    for dim in (dim for dims in shapes for dim in dims if symbol and dim.dim_param):
        dim.dim_param = re.sub(rf"\b{symbol}\b", "batch", dim.dim_param)


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


def onnx_weight_bytes(path: Path) -> int:
    """Bytes of the tensors of an ONNX file; two codes of 4 bits share one."""
    require_onnx()
    import onnx

    graph = onnx.load(str(path), load_external_data=False).graph
    total = 0
    for tensor in graph.initializer:
        numbers = onnx.numpy_helper.to_array(tensor)
        halves = tensor.data_type in (onnx.TensorProto.INT4, onnx.TensorProto.UINT4)
        total += -(-numbers.size // 2) if halves else numbers.nbytes
    return total


def output_places(path: Path) -> str | None:
    """Places of an ONNX file's outputs in what its model returns, as JSON; None of one tensor."""
    require_onnx()
    import onnx

    entries = onnx.load(str(path), load_external_data=False).metadata_props
    return next((entry.value for entry in entries if entry.key == _OUTPUTS), None)


def load_onnx(path: Path) -> Program:
    """The program of an ONNX file, on the CPU."""
    require_onnx()
    import onnxruntime

    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = torch.get_num_threads()
    options.add_session_config_entry("session.intra_op.allow_spinning", "0")
    session = onnxruntime.InferenceSession(str(path), options, providers=["CPUExecutionProvider"])
    names = [given.name for given in session.get_inputs()]

    def run(arrays: Sequence[NDArray[Any]]) -> list[NDArray[Any]]:
        outputs: list[NDArray[Any]] = session.run(None, dict(zip(names, arrays, strict=True)))
        return outputs

    return program_of(run, session.get_modelmeta().custom_metadata_map.get(_OUTPUTS))


def require_onnx() -> None:
    """Refuse to go on without what reads, writes and runs ONNX files.

    Raises:
        SettingsError: it is not installed.
    """
    try:
        import onnx  # noqa: F401
        import onnxruntime  # noqa: F401
        import onnxscript  # noqa: F401
    except ImportError as error:
        raise SettingsError(
            f"the ONNX format needs the extra 'onnx' (pip install 'autocompress[onnx]'): {error}."
        ) from error
