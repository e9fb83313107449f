"""Biases of an int8 file's layers, moved so that on average each layer gives what it gives in floats.

Rounded weights and activations move the mean of a layer's outputs, most where channels have unlike ranges,
as in depthwise convolutions. The bias of channel c takes back what they move it by,

    b_c ← b_c + E[y_c] − E[ỹ_c],

with y the layer's outputs in the float file and ỹ those in the int8 file, over calibration rows (Nagel et
al., *Data-Free Quantization through Weight Equalization and Bias Correction*, arXiv 1906.04721, section 4.2).
Layers follow each other, so that what one took back is not taken back again by the next.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

import numpy as np
from numpy.typing import NDArray

# Operators whose third input is a bias, and whose outputs have channels as their second dimension.
_LAYERS = ("Conv", "ConvTranspose", "Gemm")
# Names of tensors → arrays.
Feed = dict[str, Any]


def with_corrected_biases(quantized: Any, floats: Any, batches: Callable[[], Iterator[Feed]]) -> Any:
    """The int8 file with the biases corrected of all layers that compute in int8 and have one of their own.

    Args:
        quantized: the model of the int8 file, in QDQ form, its nodes in order; changed.
        floats: that of the float file, whose nodes have the same names.
        batches: gives the calibration rows.
    """
    biases = _biases(quantized)
    order = [node for node in quantized.graph.node if node.name in biases]
    outputs = {node.name: node.output[0] for node in floats.graph.node}
    expected = _means(floats, [outputs[node.name] for node in order], batches()) if order else {}
    for node in order:
        given = _means(quantized, [node.output[0]], batches())
        bias, scale = biases[node.name]
        moved = expected[outputs[node.name]] - given[node.output[0]]
        _add(quantized, bias, np.rint(moved / scale))
    return quantized


def _biases(model: Any) -> dict[str, tuple[str, NDArray[Any]]]:
    """By node: its bias in integers, and the scale of each of them."""
    import onnx

    constants = {tensor.name: tensor for tensor in model.graph.initializer}
    makers = {node.output[0]: node for node in model.graph.node}
    readers: dict[str, int] = {}
    for node in model.graph.node:
        for name in node.input:
            readers[name] = readers.get(name, 0) + 1
    biases = {}
    for node in model.graph.node:
        decoded = makers.get(node.input[2]) if node.op_type in _LAYERS and len(node.input) > 2 else None
        if decoded is None or decoded.op_type != "DequantizeLinear":
            continue
        if decoded.input[0] in constants and readers[node.input[2]] == readers[decoded.input[0]] == 1:
            scale = onnx.numpy_helper.to_array(constants[decoded.input[1]]).astype(np.float64)
            biases[node.name] = decoded.input[0], scale
    return biases


def _means(model: Any, names: list[str], batches: Iterator[Feed]) -> dict[str, NDArray[np.float64]]:
    """The mean of each channel of some tensors, `(C,)`, whose channels are the second dimension."""
    import onnx
    from onnxruntime import InferenceSession, SessionOptions

    shown = onnx.ModelProto()
    shown.CopyFrom(model)
    given = {output.name for output in shown.graph.output}
    shown.graph.output.extend(onnx.ValueInfoProto(name=name) for name in names if name not in given)
    options = SessionOptions()
    options.intra_op_num_threads = 1
    options.log_severity_level = 3
    session = InferenceSession(shown.SerializeToString(), options, providers=["CPUExecutionProvider"])
    sums = {name: np.zeros(()) for name in names}
    count = dict.fromkeys(names, 0)
    for feed in batches:
        for name, array in zip(names, session.run(names, feed), strict=True):
            others = tuple(place for place in range(array.ndim) if place != 1)
            sums[name] = sums[name] + array.sum(axis=others, dtype=np.float64)
            count[name] += array.size // array.shape[1]
    return {name: sums[name] / count[name] for name in names}


def _add(model: Any, name: str, values: NDArray[Any]) -> None:
    import onnx

    for tensor in model.graph.initializer:
        if tensor.name == name:
            changed = onnx.numpy_helper.to_array(tensor) + values
            tensor.CopyFrom(onnx.numpy_helper.from_array(changed.astype(np.int32), name))
