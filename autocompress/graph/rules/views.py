"""Operators that arrange elements anew: reshapes, permutations, parts, joins."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
from torch import fx

from autocompress.graph.corrections import operator_name
from autocompress.graph.labels import UNTRACKED, Ids, Value, compress, reshape_labels
from autocompress.graph.rules.elements import aligned, operand, operand_labels
from autocompress.graph.tracing import Arguments, Tracer, freeze_all, rule, shape_of, sizes


def _arranged(value: Value, shape: tuple[int, ...], arrange: Callable[[Ids], Ids]) -> Value:
    """The value after an operation that acts alike on elements, on labels and on their dimensions."""
    if value.parameter is not None:
        return value.seen_as(shape, arrange(value.positions()))
    return Value(shape, arrange(value.labels))


@rule("view", "reshape", "_unsafe_view", "flatten", "unflatten")
def reshaped(tracer: Tracer, arguments: Arguments, node: fx.Node) -> Value:
    """The same elements in another shape."""
    x, shape = operand(arguments), shape_of(node)
    if x.parameter is not None:
        return x.seen_as(shape, x.positions().reshape(shape))
    labels = reshape_labels(x.labels, x.shape, shape)
    if sum(size > 1 for size in labels.shape) > 1:
        tracer.units.grids.append(labels)
    return Value(shape, labels)


@rule("reshape_as", "view_as")
def reshaped_as(tracer: Tracer, arguments: Arguments, node: fx.Node) -> Value:
    """The same elements in the shape of another tensor, which must stay the shape of both."""
    value: Value = reshaped(tracer, arguments, node)
    like: Value = arguments["other"]
    if value.parameter is None and (value.tracked or like.tracked):
        tracer.units.tie(value.labels, like.labels)
    return value


@rule("squeeze", "unsqueeze")
def resized(tracer: Tracer, arguments: Arguments, node: fx.Node) -> Value:
    """Dimensions of size 1 come or go."""
    x, shape = operand(arguments), shape_of(node)
    if x.parameter is not None:
        return x.seen_as(shape, x.positions().reshape(shape))
    return Value(shape, reshape_labels(x.labels, x.shape, shape))


@rule("permute", "transpose", "swapaxes", "swapdims", "t", "numpy_T", "mT", "adjoint", "movedim", "moveaxis")
def permuted(tracer: Tracer, arguments: Arguments, node: fx.Node) -> Any:
    """The same elements with dimensions in another order."""
    x, name = operand(arguments), operator_name(node)
    count = len(x.shape)
    order = list(range(count))
    if name in ("movedim", "moveaxis"):
        # NumPy moves dimensions of unlike sizes, which tell where each has gone.
        unlike = np.empty(range(1, count + 1))
        moved = np.moveaxis(unlike, arguments["source"], arguments["destination"])
        order = [size - 1 for size in moved.shape]
    elif name == "numpy_T":
        order.reverse()
    elif name == "permute":
        order = [int(d) % count for d in arguments["dims"]]
    elif count > 1:
        a: Any = arguments.get("dim0", arguments.get("axis0", -2 if name in ("mT", "adjoint") else 0))
        b: Any = arguments.get("dim1", arguments.get("axis1", -1 if name in ("mT", "adjoint") else 1))
        order[a], order[b] = order[b], order[a]
    return _arranged(x, shape_of(node), lambda ids: ids.transpose(order))


@rule("expand", "expand_as", "broadcast_to")
def expanded(tracer: Tracer, arguments: Arguments, node: fx.Node) -> Value:
    """Dimensions of size 1 are repeated."""
    shape = shape_of(node)
    x = aligned(operand(arguments), len(shape))
    if x.parameter is not None:
        return x.seen_as(shape, np.broadcast_to(x.positions(), shape))
    return Value(shape, x.labels)


@rule("slice", "narrow")
def sliced(tracer: Tracer, arguments: Arguments, node: fx.Node) -> Value:
    """Positions `start:end:step` of one dimension."""
    x = operand(arguments)
    dim = int(arguments["dim"]) % len(x.shape)
    if "narrow" in str(node.target):
        start, step = int(arguments["start"]), 1
        end = start + int(arguments["length"])
    else:
        start = int(arguments["start"] or 0)
        step = int(arguments["step"] or 1)
        end = x.shape[dim] if arguments["end"] is None else int(arguments["end"])
    part = [slice(None)] * len(x.shape)
    part[dim] = slice(start, end, step)
    return _part(x, shape_of(node), dim, tuple(part))


@rule("select")
def selected(tracer: Tracer, arguments: Arguments, node: fx.Node) -> Value:
    """One position of one dimension, which is then gone."""
    x = operand(arguments)
    dim = int(arguments["dim"]) % len(x.shape)
    part: list[Any] = [slice(None)] * len(x.shape)
    part[dim] = int(arguments["index"])
    if dim in x.varies():
        _fix_positions(tracer, x, dim)
    return _part(x, shape_of(node), dim, tuple(part))


def _fix_positions(tracer: Tracer, x: Value, dim: int) -> None:
    """Positions that are picked one by one must all stay, or go together with another dimension."""
    if x.varies() == [dim]:
        tracer.freeze(x, "an operator picks these channels by position")
    else:
        tracer.units.tie_along(x.labels, [dim])


def _part(x: Value, shape: tuple[int, ...], dim: int, part: tuple[Any, ...]) -> Value:
    if x.parameter is not None:
        return x.seen_as(shape, x.positions()[part])
    if x.labels.shape[dim] == 1:
        gone = len(shape) < len(x.shape)
        return Value(shape, x.labels.squeeze(dim) if gone else x.labels)
    return Value(shape, compress(x.labels[part]))


@rule("chunk", "split", "split_with_sizes", "unsafe_split", "unbind", "tensor_split")
def split(tracer: Tracer, arguments: Arguments, node: fx.Node) -> list[Value]:
    """Parts of a tensor along one dimension, one after the other."""
    x = operand(arguments)
    dim = int(arguments.get("dim", 0)) % len(x.shape)
    unbound = "unbind" in str(node.target)
    if unbound and dim in x.varies():
        _fix_positions(tracer, x, dim)
    parts, start = [], 0
    for tensor in node.meta["val"]:
        shape = sizes(tensor)
        size = 1 if unbound else shape[dim]
        part: list[Any] = [slice(None)] * len(x.shape)
        part[dim] = start if unbound else slice(start, start + size)
        parts.append(_part(x, shape, dim, tuple(part)))
        start += size
    return parts


@rule("cat", "concat", "concatenate", "stack")
def concatenated(tracer: Tracer, arguments: Arguments, node: fx.Node) -> Any:
    """Tensors one after the other; along other dimensions their units are coupled."""
    tensors: list[Value] = [v for v in arguments["tensors"] if v.shape != (0,)]
    shape = shape_of(node)
    dim = int(arguments.get("dim", 0)) % len(shape)
    if "stack" in str(node.target):
        tensors = [_unsqueezed(v, dim) for v in tensors]
    if not any(v.tracked for v in tensors):
        if not any(v.parameter is not None for v in tensors):
            return Value.untracked(shape)
        if len(shape) > 1:
            return freeze_all(tracer, tensors, node)
    others = sorted({d for v in tensors for d in v.varies()} - {dim})
    along = dim in {d for v in tensors for d in v.varies()} or not others
    varying = [*others, *([dim] if along else [])]
    labels = [operand_labels(tracer, v, varying) if v.parameter else v.labels for v in tensors]
    if others:
        for other in labels[1:]:
            first = labels[0].take([0], axis=dim) if along else labels[0]
            tracer.units.tie(first, other)
        if along:
            return freeze_all(tracer, tensors, node)
        return Value(shape, labels[0])
    return Value(shape, compress(np.concatenate(_spread(tensors, labels, dim), axis=dim)))


def _spread(tensors: list[Value], labels: list[Ids], dim: int) -> list[Ids]:
    """Labels at full size along one dimension."""
    parts = []
    for value, ids in zip(tensors, labels, strict=True):
        full = list(ids.shape)
        full[dim] = value.shape[dim]
        parts.append(np.broadcast_to(ids, full))
    return parts


def _unsqueezed(value: Value, dim: int) -> Value:
    shape = (*value.shape[:dim], 1, *value.shape[dim:])
    return _arranged(value, shape, lambda ids: np.expand_dims(ids, dim))


@rule("index")
def indexed(tracer: Tracer, arguments: Arguments, node: fx.Node) -> Any:
    """Rows picked by one index tensor, along a dimension that no unit runs along."""
    x, shape = operand(arguments), shape_of(node)
    indices = arguments["indices"]
    given = [d for d, index in enumerate(indices) if index is not None]
    if len(given) != 1 or given[0] in x.varies() or indices[given[0]].tracked:
        return freeze_all(tracer, [x, *(i for i in indices if i is not None)], node)
    dim, index_shape = given[0], indices[given[0]].shape
    if x.parameter is not None:
        # Which rows is not known here: along them, no dimension of the parameter is followed.
        rows = x.positions().take(np.zeros(index_shape, dtype=np.int64), axis=dim)
        return x.seen_as(shape, rows)
    ones = [1] * len(index_shape)
    return Value(shape, x.labels.reshape([*x.labels.shape[:dim], *ones, *x.labels.shape[dim + 1 :]]))


@rule("index_select", "roll", "flip")
def rearranged(tracer: Tracer, arguments: Arguments, node: fx.Node) -> Any:
    """Positions of some dimensions in another order, along dimensions that no unit runs along."""
    x = operand(arguments)
    dims: Any = arguments.get("dims", arguments.get("dim"))
    moved = {int(d) % len(x.shape) for d in ([dims] if isinstance(dims, int) else dims)}
    if x.parameter is not None or not moved or moved & set(x.varies()):
        return freeze_all(tracer, [x], node, "an operator moves these channels by position")
    return Value(shape_of(node), x.labels)


@rule("pixel_shuffle")
def pixels_from_channels(tracer: Tracer, arguments: Arguments, node: fx.Node) -> Any:
    """`(…, C·r², H, W)` to `(…, C, H·r, W·r)`: r² channels are one of the result and go with it."""
    x, shape, dim = operand(arguments), shape_of(node), len(shape_of(node)) - 3
    if x.parameter is not None or set(x.varies()) - {dim}:
        return freeze_all(tracer, [x], node)
    parts = x.along(dim).reshape(shape[dim], -1)
    sizes = [1] * len(shape)
    sizes[dim] = shape[dim]
    return Value(shape, compress(tracer.units.tie_along(parts, [1]).reshape(sizes)))


@rule("pixel_unshuffle")
def channels_from_pixels(tracer: Tracer, arguments: Arguments, node: fx.Node) -> Any:
    """`(…, C, H·r, W·r)` to `(…, C·r², H, W)`: each channel becomes r² of the result."""
    x, shape, dim = operand(arguments), shape_of(node), len(shape_of(node)) - 3
    if x.parameter is not None or set(x.varies()) - {dim}:
        return freeze_all(tracer, [x], node)
    return Value(shape, compress(np.repeat(x.labels, shape[dim] // x.shape[dim], axis=dim)))


@rule("glu")
def gated_half(tracer: Tracer, arguments: Arguments, node: fx.Node) -> Any:
    """The first half of a dimension, times what the second half opens of it: both go together."""
    x, shape = operand(arguments), shape_of(node)
    dim = int(arguments["dim"]) % len(shape)
    if x.parameter is not None:
        return freeze_all(tracer, [x], node)
    if x.labels.shape[dim] == 1:
        return Value(shape, x.labels)
    first, second = np.split(x.labels, 2, axis=dim)
    tracer.units.tie(first, second)
    return Value(shape, compress(first))


@rule("repeat", "tile")
def repeated(tracer: Tracer, arguments: Arguments, node: fx.Node) -> Any:
    """The whole tensor several times, along dimensions that no unit runs along."""
    shape = shape_of(node)
    x = aligned(operand(arguments), len(shape))
    if x.parameter is not None or any(shape[d] != x.shape[d] for d in x.varies()):
        return freeze_all(tracer, [x], node)
    return Value(shape, x.labels)


@rule("pad", "constant_pad_nd")
def padded(tracer: Tracer, arguments: Arguments, node: fx.Node) -> Any:
    """Constant elements around a tensor; they belong to no unit."""
    x = operand(arguments)
    shape = shape_of(node)
    if x.parameter is not None:
        return freeze_all(tracer, [x], node)
    labels = x.labels
    for position, dim in enumerate(range(len(shape) - 1, -1, -1)):
        before, after = (*arguments["pad"], *[0] * 2 * len(shape))[2 * position : 2 * position + 2]
        if labels.shape[dim] == 1 or (before == 0 and after == 0):
            continue
        if arguments.get("mode", "constant") != "constant" or min(before, after) < 0:
            return freeze_all(tracer, [x], node)
        widths = [(0, 0)] * len(shape)
        widths[dim] = (before, after)
        labels = np.pad(labels, widths, constant_values=UNTRACKED)
    return Value(shape, labels)
