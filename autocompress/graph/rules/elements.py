"""Operators element by element, along single dimensions, and over space."""

from __future__ import annotations

from typing import Any

import numpy as np
from torch import fx

from autocompress.graph.labels import Ids, Value, compress
from autocompress.graph.tracing import Arguments, Role, Tracer, freeze_all, like, rule, shape_of

ELEMENTWISE = """
relu relu6 gelu silu hardswish hardsigmoid hardtanh leaky_relu elu selu celu mish softplus softsign
sigmoid tanh log_sigmoid tanhshrink hardshrink softshrink neg abs exp log log1p sqrt rsqrt square
reciprocal sin cos erf clamp clamp_min clamp_max pow dropout feature_dropout alpha_dropout clone
contiguous detach alias to _to_copy type_as lift_fresh_copy nan_to_num round floor ceil sign
zeros_like ones_like zero rsub
"""


@rule(*ELEMENTWISE.split())
def elementwise(tracer: Tracer, arguments: Arguments, node: fx.Node) -> Any:
    """Each element depends on the same element of the one input."""
    x = operand(arguments)
    others = [v for v in arguments.values() if isinstance(v, Value) and v is not x]
    if any(v.tracked for v in others) or (x.parameter is not None and others):
        return freeze_all(tracer, [x, *others], node)
    return x


@rule("add", "sub", "mul", "div", "maximum", "minimum", "where", "prelu", "masked_fill")
def broadcasted(tracer: Tracer, arguments: Arguments, node: fx.Node) -> Value:
    """Each element depends on the matching, broadcast elements of several tensors."""
    shape = shape_of(node)
    operands = [aligned(v, len(shape)) for v in arguments.values() if isinstance(v, Value)]
    if "prelu" in str(node.target):
        # PReLU's slopes run along the channel dimension, not the last one.
        slope = arguments["weight"]
        sizes = (1, slope.shape[0], *[1] * (len(shape) - 2))
        positions = None if slope.elements is None else slope.elements.reshape(sizes)
        operands[1] = Value(sizes, slope.labels.reshape((1,) * len(sizes)), slope.parameter, positions)
    return coupled(tracer, operands, shape)


def coupled(tracer: Tracer, operands: list[Value], shape: tuple[int, ...], role: Role = "channel") -> Value:
    """The value of that shape whose elements depend on the matching elements of aligned operands; dimensions
    of parameters have the role."""
    if len(operands) == 1:
        return operands[0]
    varying = sorted({d for v in operands for d in v.varies()})
    # An operand of size 1 along every dimension on which units depend is broadcast, not coupled.
    dependent = [v for v in operands if any(v.shape[d] > 1 for d in varying)]
    if not dependent:
        return Value.untracked(shape)
    labels = [operand_labels(tracer, v, varying, role) for v in dependent]
    result = labels[0]
    for other in labels[1:]:
        tracer.units.tie(result, other)
        result = np.maximum(result, other)
    return Value(shape, compress(result))


def aligned(value: Value, dims: int) -> Value:
    """Leading dimensions of size 1, as broadcasting adds them."""
    lead = (1,) * (dims - len(value.shape))
    positions = value.positions() if value.parameter is not None else None
    positions = None if positions is None else positions.reshape(lead + value.shape)
    labels = value.labels.reshape(lead + value.labels.shape)
    return Value(lead + value.shape, labels, value.parameter, positions)


def operand_labels(tracer: Tracer, value: Value, varying: list[int], role: Role = "channel") -> Ids:
    """Labels of an aligned operand; a parameter is labelled along the dimensions that vary."""
    if value.parameter is None:
        return value.labels
    dims = [d for d in varying if value.shape[d] > 1]
    try:
        return tracer.axis(value, dims, role)
    except ValueError:
        tracer.freeze(value, "its units run across several dimensions of a parameter")
        return value.labels


@rule("softmax", "log_softmax", "_softmax", "_log_softmax", "cumsum")
def mixes_one_dim(tracer: Tracer, arguments: Arguments, node: fx.Node) -> Any:
    """Elements along one dimension depend on each other."""
    x = operand(arguments)
    if x.parameter is not None:
        return freeze_all(tracer, [x], node)
    dim = int(arguments["dim"]) % len(x.shape)
    if dim in x.varies():
        return freeze_all(tracer, [x], node, "an operator mixes these channels by position")
    return Value(shape_of(node), x.labels)


@rule(
    "max_pool1d", "max_pool2d", "max_pool3d", "avg_pool1d", "avg_pool2d", "avg_pool3d",
    "adaptive_avg_pool1d", "adaptive_avg_pool2d", "adaptive_avg_pool3d", "adaptive_max_pool1d",
    "adaptive_max_pool2d", "adaptive_max_pool3d", "upsample_nearest1d", "upsample_nearest2d",
    "upsample_nearest3d", "upsample_bilinear2d", "upsample_bicubic2d", "upsample_trilinear3d",
    "upsample_linear1d", "reflection_pad1d", "reflection_pad2d", "replication_pad2d",
)  # fmt: skip
def spatial(tracer: Tracer, arguments: Arguments, node: fx.Node) -> Any:
    """Dimensions after the channels are pooled or resampled."""
    x = operand(arguments)
    results = like(node)
    shape = (results[0] if isinstance(results, list) else results).shape
    if x.parameter is not None or any(d >= 2 for d in x.varies()):
        return freeze_all(tracer, [x], node, "its units run across pooled dimensions")
    value = Value(shape, x.labels)
    # Adaptive max pooling also returns the indices of the maxima.
    return [value, *results[1:]] if isinstance(results, list) else value


@rule("mean", "sum", "amax", "amin", "std", "var", "norm", "linalg_vector_norm")
def reduction(tracer: Tracer, arguments: Arguments, node: fx.Node) -> Any:
    """Some dimensions are reduced; the others keep their units, of which each goes whole."""
    x = operand(arguments)
    dims = arguments.get("dim")
    count = len(x.shape)
    reduced = {d % count for d in ([dims] if isinstance(dims, int) else dims or range(count))}
    kept = [d for d in x.varies() if d not in reduced]
    summed = [d for d in x.varies() if d in reduced]
    if x.parameter is not None or (summed and not kept):
        return freeze_all(tracer, [x], node, "an operator reduces over these channels")
    labels = tracer.units.tie_along(x.labels, summed)
    keep = bool(arguments.get("keepdim", False))
    sizes = [size for d, size in enumerate(labels.shape) if keep or d not in reduced]
    return Value(shape_of(node), labels.reshape(sizes))


@rule("new_zeros", "new_ones", "new_full", "new_empty")
def constant(tracer: Tracer, arguments: Arguments, node: fx.Node) -> Any:
    """A new tensor of a given size, which takes nothing of the operand but its type."""
    return like(node)


@rule("argmax", "argmin", "topk", "sort")
def ordering(tracer: Tracer, arguments: Arguments, node: fx.Node) -> Any:
    """Positions are the result, so that channels along them must stay."""
    x = operand(arguments)
    dim = arguments.get("dim")
    if x.parameter is not None or dim is None or int(dim) % len(x.shape) in x.varies():
        return freeze_all(tracer, [x], node, "an operator orders these channels by value")
    return like(node) if not x.tracked else freeze_all(tracer, [x], node)


def operand(arguments: Arguments) -> Value:
    """The one tensor of an operator that has one."""
    value: Value = arguments["self"] if "self" in arguments else arguments["input"]
    return value
