"""How units travel through operators without weights: element-wise ones, pools, views."""

from __future__ import annotations

from typing import Any

import numpy as np
from torch import fx

from autocompress.graph.labels import UNTRACKED, Ids, Value, compress, reshape_labels
from autocompress.graph.tracing import Arguments, Tracer, like, rule, shape_of

ELEMENTWISE = """
relu relu6 gelu silu hardswish hardsigmoid hardtanh leaky_relu elu selu celu mish softplus softsign
sigmoid tanh log_sigmoid tanhshrink hardshrink softshrink neg abs exp log log1p sqrt rsqrt square
reciprocal sin cos erf clamp clamp_min clamp_max pow dropout feature_dropout alpha_dropout clone
contiguous detach alias to _to_copy type_as lift_fresh_copy nan_to_num round floor ceil sign
"""


@rule(*ELEMENTWISE.split())
def elementwise(tracer: Tracer, arguments: Arguments, node: fx.Node) -> Value:
    """Each element depends on the same element of the one input."""
    x = _operand(arguments)
    others = [v for k, v in arguments.items() if isinstance(v, Value) and v is not x]
    if x.parameter is not None or any(v.tracked for v in others):
        return _freeze_all(tracer, [x, *others], node)
    return Value(x.shape, x.labels)


@rule("add", "sub", "mul", "div", "maximum", "minimum", "where", "prelu")
def broadcasted(tracer: Tracer, arguments: Arguments, node: fx.Node) -> Value:
    """Each element depends on the matching, broadcast elements of several tensors."""
    shape = shape_of(node)
    operands = [_align(v, len(shape)) for v in arguments.values() if isinstance(v, Value)]
    if "prelu" in str(node.target):
        # PReLU's slopes run along the channel dimension, not the last one.
        slope = arguments["weight"]
        aligned = (1, slope.shape[0], *[1] * (len(shape) - 2))
        operands[1] = Value(aligned, slope.labels.reshape((1,) * len(aligned)), slope.parameter)
    varying = sorted({d for v in operands for d in v.varies()})
    # An operand of size 1 along every dimension on which units depend is broadcast, not coupled.
    coupled = [v for v in operands if any(v.shape[d] > 1 for d in varying)]
    if not coupled:
        return Value.untracked(shape)
    labels = [_operand_labels(tracer, v, varying) for v in coupled]
    result = labels[0]
    for other in labels[1:]:
        tracer.units.tie(result, other)
        result = np.maximum(result, other)
    return Value(shape, compress(result))


def _align(value: Value, dims: int) -> Value:
    """Leading dimensions of size 1, as broadcasting adds them."""
    lead = (1,) * (dims - len(value.shape))
    return Value(lead + value.shape, value.labels.reshape(lead + value.labels.shape), value.parameter)


def _operand_labels(tracer: Tracer, value: Value, varying: list[int]) -> Ids:
    """Labels of an aligned operand; a parameter is labelled along the one dimension that varies."""
    if value.parameter is None:
        return value.labels
    dims = [d for d in varying if value.shape[d] > 1]
    original = tracer.shapes[value.parameter]
    if len(dims) > 1:
        tracer.freeze(
            Value.parameter_of(value.parameter, original), "its units run across several dimensions"
        )
        return value.labels
    offset = len(value.shape) - len(original)
    own = dims[0] - offset if len(original) > 1 else 0
    ids = tracer.axis(Value.parameter_of(value.parameter, original), own, "channel")
    sizes = [1] * len(value.shape)
    sizes[dims[0]] = len(ids)
    return ids.reshape(sizes)


@rule("softmax", "log_softmax", "_softmax", "_log_softmax", "cumsum", "argmax", "argmin")
def mixes_one_dim(tracer: Tracer, arguments: Arguments, node: fx.Node) -> Value:
    """Elements along one dimension depend on each other."""
    x = arguments["self"]
    dim = arguments["dim"]
    if dim is None or int(dim) % len(x.shape) in x.varies():
        return _freeze_all(tracer, [x], node, "an operator mixes these channels by position")
    return Value(shape_of(node), x.labels)


@rule(
    "max_pool1d", "max_pool2d", "max_pool3d", "avg_pool1d", "avg_pool2d", "avg_pool3d",
    "adaptive_avg_pool1d", "adaptive_avg_pool2d", "adaptive_avg_pool3d", "adaptive_max_pool1d",
    "adaptive_max_pool2d", "adaptive_max_pool3d", "upsample_nearest1d", "upsample_nearest2d",
    "upsample_nearest3d", "upsample_bilinear2d", "upsample_bicubic2d", "upsample_trilinear3d",
    "upsample_linear1d",
)  # fmt: skip
def spatial(tracer: Tracer, arguments: Arguments, node: fx.Node) -> Any:
    """Dimensions after the channels are pooled or resampled."""
    x = _operand(arguments)
    output = node.meta["val"]
    shape = tuple((output[0] if isinstance(output, (tuple, list)) else output).shape)
    if any(d >= 2 for d in x.varies()):
        tracer.freeze(x, "its units run across pooled dimensions")
        return like(node)
    value = Value(shape, x.labels)
    # Adaptive max pooling also returns the indices of the maxima.
    return [value, Value.untracked(shape)] if isinstance(output, (tuple, list)) else value


@rule("mean", "sum", "amax", "amin", "std", "var", "norm", "linalg_vector_norm")
def reduction(tracer: Tracer, arguments: Arguments, node: fx.Node) -> Value:
    """Some dimensions are reduced; the others keep their units."""
    x = arguments["self"]
    dims = arguments.get("dim")
    count = len(x.shape)
    reduced = {d % count for d in ([dims] if isinstance(dims, int) else dims or range(count))}
    if reduced & set(x.varies()):
        return _freeze_all(tracer, [x], node, "an operator reduces over these channels")
    keep = bool(arguments.get("keepdim", False))
    sizes = [size for d, size in enumerate(x.labels.shape) if keep or d not in reduced]
    return Value(shape_of(node), x.labels.reshape(sizes))


@rule("view", "reshape", "_unsafe_view", "flatten", "unflatten", "squeeze", "unsqueeze")
def reshaped(tracer: Tracer, arguments: Arguments, node: fx.Node) -> Value:
    """The same elements in another shape; a channel dimension that is split up is left alone."""
    x = _operand(arguments)
    shape = shape_of(node)
    if x.parameter is not None:
        return _freeze_all(tracer, [x], node)
    labels = reshape_labels(x.labels, x.shape, shape)
    if sum(size > 1 for size in labels.shape) > max(1, len(x.varies())):
        return _freeze_all(tracer, [x], node, "a reshape splits these channels up")
    return Value(shape, labels)


@rule("permute", "transpose", "t", "numpy_T", "movedim")
def permuted(tracer: Tracer, arguments: Arguments, node: fx.Node) -> Value:
    """The same elements with dimensions in another order."""
    x = arguments["self"]
    order = list(range(len(x.shape)))
    if x.parameter is not None or "movedim" in str(node.target):
        return _freeze_all(tracer, [x], node)
    if "permute" in str(node.target):
        order = [int(d) % len(order) for d in arguments["dims"]]
    else:
        a = int(arguments.get("dim0", 0)) if len(order) > 1 else 0
        b = int(arguments.get("dim1", 1)) if len(order) > 1 else 0
        order[a], order[b] = order[b], order[a]
    return Value(shape_of(node), x.labels.transpose(order))


@rule("cat", "concat", "concatenate")
def concatenated(tracer: Tracer, arguments: Arguments, node: fx.Node) -> Value:
    """Tensors one after the other; along other dimensions their units are coupled."""
    tensors: list[Value] = [v for v in arguments["tensors"] if v.shape != (0,)]
    shape = shape_of(node)
    dim = int(arguments.get("dim", 0)) % len(shape)
    if any(v.parameter is not None for v in tensors):
        return _freeze_all(tracer, tensors, node)
    if not any(v.tracked for v in tensors):
        return Value.untracked(shape)
    varying = sorted({d for v in tensors for d in v.varies()})
    if varying and varying != [dim]:
        first = tensors[0].labels
        for other in tensors[1:]:
            tracer.units.tie(first, other.labels)
        return Value(shape, first) if dim not in varying else _freeze_all(tracer, tensors, node)
    sizes = [[1] * len(shape) for _ in tensors]
    for size, value in zip(sizes, tensors, strict=True):
        size[dim] = value.shape[dim]
    parts = [np.broadcast_to(v.labels, size) for v, size in zip(tensors, sizes, strict=True)]
    return Value(shape, compress(np.concatenate(parts, axis=dim)))


@rule("slice", "select", "narrow", "index_select")
def sliced(tracer: Tracer, arguments: Arguments, node: fx.Node) -> Value:
    """A part of a tensor; positions of channels are burned in, so those are left alone."""
    x = arguments["self"]
    dim = int(arguments["dim"]) % len(x.shape)
    if x.parameter is not None or dim in x.varies():
        return _freeze_all(tracer, [x], node, "a slice picks these channels by position")
    labels = x.labels
    if "select" in str(node.target) and "index" not in str(node.target):
        labels = labels.squeeze(dim)
    return Value(shape_of(node), labels)


@rule("chunk", "split", "split_with_sizes", "unsafe_split", "unbind", "tensor_split")
def split(tracer: Tracer, arguments: Arguments, node: fx.Node) -> list[Value]:
    """Parts of a tensor; channels that are split by position are left alone."""
    x = arguments["self"]
    dim = int(arguments.get("dim", 0)) % len(x.shape)
    shapes = [tuple(t.shape) for t in node.meta["val"]]
    if x.parameter is not None or dim in x.varies():
        tracer.freeze(x, "a split picks these channels by position")
        return [Value.untracked(shape) for shape in shapes]
    labels = x.labels.squeeze(dim) if "unbind" in str(node.target) else x.labels
    return [Value(shape, labels) for shape in shapes]


@rule("pad", "constant_pad_nd")
def padded(tracer: Tracer, arguments: Arguments, node: fx.Node) -> Value:
    """Constant elements around a tensor; they belong to no unit."""
    x = arguments["self"]
    shape = shape_of(node)
    labels = x.labels
    for position, dim in enumerate(range(len(shape) - 1, -1, -1)):
        before, after = (*arguments["pad"], *[0] * 2 * len(shape))[2 * position : 2 * position + 2]
        if labels.shape[dim] == 1 or (before == 0 and after == 0):
            continue
        if arguments.get("mode", "constant") != "constant" or min(before, after) < 0:
            return _freeze_all(tracer, [x], node)
        widths = [(0, 0)] * len(shape)
        widths[dim] = (before, after)
        labels = np.pad(labels, widths, constant_values=UNTRACKED)
    return Value(shape, labels)


@rule("expand", "expand_as", "broadcast_to")
def expanded(tracer: Tracer, arguments: Arguments, node: fx.Node) -> Value:
    """Dimensions of size 1 are repeated."""
    x = _align(arguments["self"], len(shape_of(node)))
    if x.parameter is not None:
        return _freeze_all(tracer, [arguments["self"]], node)
    return Value(shape_of(node), x.labels)


def _operand(arguments: Arguments) -> Value:
    value: Value = arguments["self"] if "self" in arguments else arguments["input"]
    return value


def _freeze_all(tracer: Tracer, values: list[Value], node: fx.Node, reason: str = "") -> Value:
    name = str(node.target).removeprefix("aten.").split(".")[0]
    for value in values:
        tracer.freeze(value, reason or f"operator {name} is not analysed for these operands")
    return Value.untracked(shape_of(node))
