"""Post-training static quantisation of OpenVINO's files to int8 by NNCF, with layers that hurt in floats."""

from __future__ import annotations

import contextlib
import io
import os
from collections.abc import Collection, Iterable, Sequence
from pathlib import Path
from typing import Any

from autocompress.checkpoint.calling import program_of
from autocompress.checkpoint.openvino_ir import ACCURATE, OUTPUTS, load_ir, require_openvino
from autocompress.checkpoint.program import files_of
from autocompress.checkpoint.quantize import Control, Quantized, quiet
from autocompress.errors import SettingsError, TrialError, one_line
from autocompress.task.inputs import Inputs, arguments, tensors

# Operators with weights, by OpenVINO's names.
_LAYERS = (
    *("Convolution", "ConvolutionBackpropData", "GroupConvolution", "GroupConvolutionBackpropData"),
    "MatMul",
)
# NNCF sends statistics of its use, but where this is set when it is imported.
_NO_TELEMETRY = "NNCF_CI"


def quantize_openvino(
    path: Path,
    calibration: Sequence[Inputs],
    in_floats: Collection[str] = (),
    control: Control | None = None,
) -> Quantized:
    """Replace a float file of OpenVINO's by its int8 form.

    Args:
        path: the `.xml` file, as `export_openvino` writes it; its numbers lie beside it.
        calibration: batches that the ranges of activations are read off, `(B, ...)` each.
        in_floats: names of the ONNX file's nodes that stay as they are.
        control: what int8 may cost: layers that cost most go back to floats until the bound holds. None
            quantises all that NNCF can. Nothing is timed.

    Raises:
        SettingsError: the extra `openvino` is not installed.
        TrialError: NNCF cannot quantise the model.
    """
    openvino, nncf = require_openvino(), require_nncf()
    floats = load_ir(path)
    pairs = [] if control is None else [(rows, floats(rows)) for rows in control.rows]
    model = openvino.Core().read_model(path)
    _decode(model)
    places = model.get_rt_info(OUTPUTS).astype(str) if model.has_rt_info(OUTPUTS) else None
    ignored = nncf.IgnoredScope(names=_names(model, in_floats), validate=False)
    # Weights of 7 bits in all layers, as those of ONNX files: CPUs without VNNI would cut off some sums.
    halved = nncf.AdvancedQuantizationParameters(overflow_fix=nncf.OverflowFix.ENABLE)
    options = {"subset_size": len(calibration), "ignored_scope": ignored}
    dataset = nncf.Dataset(calibration, _arrays)

    def agreement(compiled: Any, judged: Iterable[tuple[Inputs, Any]]) -> tuple[float, None]:
        program = program_of(lambda arrays: list(compiled(list(arrays)).values()), places)
        answers, expected = zip(*((program(rows), answer) for rows, answer in judged), strict=True)
        assert control is not None
        return 1 - control.difference(expected, answers), None

    with quiet(), contextlib.redirect_stdout(io.StringIO()):  # where NNCF draws bars
        try:
            if control is None:
                quantized = nncf.quantize(model, dataset, advanced_parameters=halved, **options)
            else:
                judging = nncf.Dataset(pairs, lambda pair: _arrays(pair[0]))
                quantized = nncf.quantize_with_accuracy_control(
                    model,
                    dataset,
                    judging,
                    agreement,
                    max_drop=control.bound,
                    advanced_quantization_parameters=halved,
                    **options,
                )
        except Exception as error:  # NNCF's and OpenVINO's own, of many classes
            raise TrialError(f"the model could not be quantised to int8: {one_line(error)}") from error
    if places is not None:
        quantized.set_rt_info(places, OUTPUTS)
    _replace(path, quantized)
    difference = None
    if control is not None:
        program = load_ir(path)
        difference = control.difference([answer for _, answer in pairs], [program(rows) for rows, _ in pairs])
    in_int8 = _in_int8(quantized)
    return Quantized(
        "NNCF",
        tuple(name for name, is_int8 in in_int8.items() if is_int8),
        (),
        tuple(name for name, is_int8 in in_int8.items() if not is_int8),
        difference=difference,
    )


def _decode(model: Any) -> None:
    """Compute what hangs on constants alone, as weights that are stored as codes do, in place: NNCF takes
    constants for weights, and OpenVINO's own folding leaves some operators."""
    openvino = require_openvino()
    fixed: set[str] = set()
    inputs = []
    for operator in model.get_ordered_ops():
        sources = [value.get_source_output() for value in operator.inputs()]
        decoded = [source.get_node().get_name() in fixed for source in sources]
        if operator.get_type_name() == "Constant" or (sources and all(decoded)):
            fixed.add(operator.get_name())
            continue
        for value, source, is_fixed in zip(operator.inputs(), sources, decoded, strict=True):
            if is_fixed and source.get_node().get_type_name() != "Constant":
                inputs.append((value, source))
    if inputs:
        decoder = openvino.Model([source for _, source in inputs], [])
        arrays = openvino.compile_model(decoder, "CPU", ACCURATE)([])
        for place, (value, _) in enumerate(inputs):
            value.replace_source_output(openvino.opset13.constant(arrays[place]).output(0))
        model.validate_nodes_and_infer_types()


def _replace(path: Path, model: Any) -> None:
    """Write a file in the place of another one, whose numbers the model may still read."""
    aside = path.with_name(f"int8-{path.name}")
    require_openvino().save_model(model, aside, compress_to_fp16=False)
    for made, old in zip(files_of(aside), files_of(path), strict=True):
        os.replace(made, old)


def require_nncf() -> Any:
    """The package `nncf`, which then sends no statistics of its use.

    Raises:
        SettingsError: it is not installed.
    """
    before = os.environ.get(_NO_TELEMETRY)
    os.environ[_NO_TELEMETRY] = "1"
    try:
        import nncf
    except ImportError as error:
        raise SettingsError(
            "the artifact openvino-int8 needs the extra 'openvino' "
            f"(pip install 'autocompress[openvino]'): {error}."
        ) from error
    finally:
        os.environ.pop(_NO_TELEMETRY)
        if before is not None:
            os.environ[_NO_TELEMETRY] = before
    return nncf


def _arrays(rows: Inputs) -> list[Any]:
    return [tensor.numpy() for tensor in tensors(arguments(rows))]


def _names(model: Any, nodes: Collection[str]) -> list[str]:
    """OpenVINO's names of the operators with weights that nodes of the ONNX file became."""
    operators = [operator for operator in model.get_ops() if operator.get_type_name() in _LAYERS]
    return [operator.get_friendly_name() for operator in operators if _node(operator) in nodes]


def _node(operator: Any) -> str:
    """The node of the ONNX file that became an operator with weights, and what adds the bias.

    The operator has the node's name, or that with what it lacks behind a slash; or one of its own, and what
    adds the bias has the node's.
    """
    name: str = operator.get_friendly_name()
    if name.startswith(f"{operator.get_type_name()}_"):
        for following in operator.output(0).get_target_inputs():
            if following.get_node().get_type_name() == "Add":
                name = following.get_node().get_friendly_name()
    return name.partition("/")[0]


def _in_int8(model: Any) -> dict[str, bool]:
    """By operator with weights, whether these are int8."""
    in_int8 = {}
    for operator in model.get_ops():
        if operator.get_type_name() not in _LAYERS:
            continue
        source, is_int8 = operator.input_value(1).get_node(), False
        while source.get_input_size():
            is_int8 = is_int8 or source.get_type_name() == "FakeQuantize"
            source = source.input_value(0).get_node()
        if source.get_type_name() == "Constant":
            in_int8[_node(operator)] = is_int8 or source.get_element_type().get_type_name() in ("i8", "u8")
    return in_int8
