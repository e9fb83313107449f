"""int8 weights of an ONNX file as codes of 4 bits in blocks, each with a multiplier of 8 bits: w = c · m.

ONNX Runtime computes constants when it loads a file, so that a call takes as long as with int8 weights, be it
in int8 or in floats. Its own operator of 4 bits, `MatMulNBits`, decodes at every call.
"""

from __future__ import annotations

import math
from collections.abc import Collection, Mapping
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from numpy.typing import NDArray

# Weights of one output that share a multiplier: 4.25 bits a weight.
BLOCK = 32
# Codes are −7 to 7.
_GREATEST_CODE = 7
# Of fewer weights, or fewer inputs, what decodes them, some 700 bytes, takes much of what the codes save.
LEAST_WEIGHTS = 2048
_LEAST_INPUTS = 4
# That ONNX has codes of 4 bits from on. Between the exporter's and this, operators got more types; only
# GroupNormalization has another meaning, which the exporter does not write.
OPSET = 21


@dataclass(frozen=True)
class Blocks:
    """A tensor of int8 as blocks.

    Args:
        codes: `(rows · blocks, block, inner)`, −7 to 7, padded with zeros.
        multipliers: `(rows · blocks, 1, inner)`.
        padded: `(rows, blocks · block, inner)`.
        inputs: numbers of the middle dimension that are not padding.
    """

    codes: NDArray[np.int8]
    multipliers: NDArray[np.int8]
    padded: tuple[int, int, int]
    inputs: int


def in_blocks(values: NDArray[np.int8], dimension: int) -> Blocks:
    """The codes and multipliers whose products are nearest to a tensor, block by block in least squares.

    Args:
        values: −127 to 127; no product is further from 0 than the furthest of them.
        dimension: of outputs, none of which shares a block with another.
    """
    rows, inputs, inner = _shape(values.shape, dimension)
    blocks = -(-inputs // BLOCK)
    block = -(-inputs // blocks)
    padded = np.zeros((rows, blocks * block, inner), np.float32)
    padded[:, :inputs] = values.reshape(rows, inputs, inner)
    wanted = padded.reshape(rows * blocks, block, inner)
    codes = np.zeros_like(wanted)
    multipliers = np.ones((rows * blocks, 1, inner), np.float32)
    least = np.full_like(multipliers, np.inf)
    greatest = int(np.abs(values.astype(int)).max(initial=0))
    for multiplier in range(1, max(1, greatest // _GREATEST_CODE) + 1):
        tried = np.clip(np.rint(wanted / multiplier), -_GREATEST_CODE, _GREATEST_CODE)
        error = np.square(tried * multiplier - wanted).sum(axis=1, keepdims=True)
        better = error < least
        codes = np.where(better, tried, codes)
        multipliers[better], least[better] = multiplier, error[better]
    return Blocks(codes.astype(np.int8), multipliers.astype(np.int8), padded.shape, inputs)


def _shape(dimensions: tuple[int, ...], dimension: int) -> tuple[int, int, int]:
    """A tensor's shape with the inputs in the middle: those before the dimension of outputs, where there are
    any, else those behind it."""
    before = math.prod(dimensions[:dimension])
    behind = math.prod(dimensions[dimension + 1 :])
    outputs = dimensions[dimension]
    return (1, before, outputs * behind) if before > 1 else (outputs, behind, 1)


@dataclass
class FourBits:
    """An ONNX file with int8 weights, of which some are to have 4 bits.

    Args:
        content: of the file.
        weights: by node, the name of its int8 tensor and the dimension of outputs.
    """

    content: bytes
    weights: Mapping[str, tuple[str, int]]
    _blocks: dict[str, Blocks] = field(default_factory=dict)

    @property
    def nodes(self) -> list[str]:
        """Those whose weights take less in 4 bits."""
        import onnx

        shapes = {
            tensor.name: tuple(tensor.dims)
            for tensor in onnx.load_from_string(self.content).graph.initializer
            if tensor.data_type == onnx.TensorProto.INT8 and math.prod(tensor.dims) >= LEAST_WEIGHTS
        }
        return [
            node
            for node, (name, dimension) in self.weights.items()
            if name in shapes and _shape(shapes[name], dimension)[1] >= _LEAST_INPUTS
        ]

    def stored(self, nodes: Collection[str]) -> bytes:
        """The file with the weights of some nodes in 4 bits, but for those that another node has too.

        Args:
            nodes: of `nodes`.
        """
        import onnx

        model = onnx.load_from_string(self.content)
        others = {name for node, (name, _) in self.weights.items() if node not in nodes}
        chosen = {name: place for name, place in map(self.weights.__getitem__, nodes) if name not in others}
        made = []
        for tensor in [tensor for tensor in model.graph.initializer if tensor.name in chosen]:
            if tensor.name not in self._blocks:
                values = onnx.numpy_helper.to_array(tensor)
                self._blocks[tensor.name] = in_blocks(values, chosen[tensor.name])
            constants, decoding = _decoding(tensor.name, self._blocks[tensor.name], tuple(tensor.dims))
            model.graph.initializer.remove(tensor)
            model.graph.initializer.extend(constants)
            made += decoding
        kept = [*made, *model.graph.node]
        del model.graph.node[:]
        model.graph.node.extend(kept)
        if made:
            _raise_opset(model)
        content: bytes = model.SerializeToString()
        return content


def _decoding(name: str, blocks: Blocks, shape: tuple[int, ...]) -> tuple[list[Any], list[Any]]:
    """Constants, and nodes that make an int8 tensor of them.

    Args:
        name: of the tensor.
        blocks: its numbers.
        shape: of the tensor.
    """
    import onnx
    from ml_dtypes import int4  # which onnx itself needs

    constants = {
        "codes": blocks.codes.astype(int4),
        "multipliers": blocks.multipliers,
        "shape": np.array(shape),
    }
    steps: list[tuple[str, list[str], str, dict[str, int]]] = [
        ("Cast", ["codes"], "_cast", {"to": onnx.TensorProto.INT8}),
        ("Mul", ["cast", "multipliers"], "_product", {}),
        ("Reshape", ["product", "shape"], "", {}),
    ]
    if blocks.inputs < blocks.padded[1]:
        constants |= {
            "padded": np.array(blocks.padded),
            "start": np.array([0]),
            "inputs": np.array([blocks.inputs]),
            "axis": np.array([1]),
        }
        steps[2:] = [
            ("Reshape", ["product", "padded"], "_rows", {}),
            ("Slice", ["rows", "start", "inputs", "axis"], "_cut", {}),
            ("Reshape", ["cut", "shape"], "", {}),
        ]
    nodes = [
        onnx.helper.make_node(
            kind, [f"{name}_{given}" for given in inputs], [f"{name}{output}"], **attributes
        )
        for kind, inputs, output, attributes in steps
    ]
    return [onnx.numpy_helper.from_array(array, f"{name}_{key}") for key, array in constants.items()], nodes


def _raise_opset(model: Any) -> None:
    """Mark a file as of a version of ONNX that has codes of 4 bits, in place."""
    import onnx

    for entry in model.opset_import:
        if entry.domain in ("", "ai.onnx"):
            entry.version = max(entry.version, OPSET)
    least = onnx.helper.find_min_ir_version_for(model.opset_import, ignore_unknown=True)
    model.ir_version = max(model.ir_version, least)
