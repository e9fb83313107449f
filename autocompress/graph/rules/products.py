"""Products of two computed tensors: attention scores, and matrix products with parameters."""

from __future__ import annotations

from typing import Any

from torch import fx

from autocompress.graph.labels import Ids, Value
from autocompress.graph.rules.layers import channels_of, consume, is_parameter, place
from autocompress.graph.tracing import Arguments, Tracer, freeze_all, rule, shape_of


@rule("matmul", "mm", "bmm")
def matmul(tracer: Tracer, arguments: Arguments, node: fx.Node) -> Any:
    """`x @ y`: with a parameter `(in, out)` a linear layer, else a product of two activations."""
    x, y = arguments["self"], arguments["other" if "other" in arguments else "mat2"]
    shape = shape_of(node)
    if is_parameter(x):
        return freeze_all(tracer, (x, y), node, "a parameter is the left factor of a product")
    if is_parameter(y):
        if len(y.shape) != 2:
            return freeze_all(tracer, (x, y), node, "a parameter is used as a stack of matrices")
        consume(tracer, channels_of(tracer, x, -1), tracer.axis(y, 0, "in"))
        return place(tracer.axis(y, 1, "out"), shape, len(shape) - 1)
    if min(len(x.shape), len(y.shape)) < 2:
        return freeze_all(tracer, (x, y), node, "a product with a vector is not analysed")
    stack = [f"s{d}" for d in range(len(shape) - 2)]
    left, right = stack[len(shape) - len(x.shape) :], stack[len(shape) - len(y.shape) :]
    return _contracted(tracer, [(x, [*left, "n", "k"]), (y, [*right, "k", "m"])], [*stack, "n", "m"], shape)


@rule("einsum")
def einsum(tracer: Tracer, arguments: Arguments, node: fx.Node) -> Any:
    """A sum of products, each dimension named by a letter."""
    tensors = arguments["tensors"]
    given, _, result = arguments["equation"].replace(" ", "").partition("->")
    names = given.split(",")
    plain = all(len(set(n)) == len(n) and n.isalpha() for n in (*names, result))
    if len(tensors) != 2 or not plain or any(is_parameter(v) for v in tensors):
        return freeze_all(tracer, tensors, node, "this form of einsum is not analysed")
    factors = [(value, list(letters)) for value, letters in zip(tensors, names, strict=True)]
    return _contracted(tracer, factors, list(result), shape_of(node))


def _contracted(
    tracer: Tracer, factors: list[tuple[Value, list[str]]], result: list[str], shape: tuple[int, ...]
) -> Value:
    """A product of tensors whose dimensions are named, summed over the names that `result` lacks.

    What is summed over goes whole where units also run along other dimensions (a head's features go
    with the head), and unit by unit, the same in both factors, where they do not.
    """
    summed = sorted({name for _, names in factors for name in names} - set(result))
    order = [*result, *summed]
    sizes = [[_at(v.shape, names, name) for name in order] for v, names in factors]
    labels = [_ordered(v.labels, names, order) for v, names in factors]
    over = range(len(result), len(order))
    varying = [d for d in range(len(order)) if any(ids.shape[d] > 1 for ids in labels)]
    kept = [d for d in varying if d not in over]
    if kept:
        labels = [tracer.units.tie_along(ids, over) for ids in labels]
    # A factor that has none of the dimensions on which units depend is broadcast, not coupled.
    along = kept or varying
    coupled = [ids for ids, own in zip(labels, sizes, strict=True) if any(own[d] > 1 for d in along)]
    for other in coupled[1:]:
        tracer.units.tie(coupled[0], other)
    if not kept:
        return Value.untracked(shape)
    widest = max(coupled, key=lambda ids: ids.size)
    return Value(shape, widest.reshape(widest.shape[: len(result)]))


def _at(shape: tuple[int, ...], names: list[str], name: str) -> int:
    return shape[names.index(name)] if name in names else 1


def _ordered(labels: Ids, names: list[str], order: list[str]) -> Ids:
    """Labels with a dimension for each name of `order`."""
    present = [names.index(name) for name in order if name in names]
    sizes = [_at(labels.shape, names, name) for name in order]
    return labels.transpose(present).reshape(sizes)


@rule("scaled_dot_product_attention")
def attention(tracer: Tracer, arguments: Arguments, node: fx.Node) -> Any:
    """query `(..., heads, T, D)`, key and value alike: a head is one unit, all its features with it."""
    query, key, value = (arguments[name] for name in ("query", "key", "value"))
    if arguments.get("enable_gqa") or is_parameter(query) or is_parameter(key) or is_parameter(value):
        return freeze_all(tracer, (query, key, value), node, "this form of attention is not analysed")
    if not any(v.tracked for v in (query, key, value)):
        return Value.untracked(shape_of(node))
    last = len(query.shape) - 1
    if any(d in (last, last - 1) for v in (query, key, value) for d in v.varies()) and not any(
        d < last - 1 for v in (query, key, value) for d in v.varies()
    ):
        reason = "attention with a single head mixes all of its features"
        return freeze_all(tracer, (query, key, value), node, reason)
    fused = [tracer.units.tie_along(v.labels, [last]) for v in (query, key, value)]
    for other in fused[1:]:
        tracer.units.tie(fused[0], other)
    mask = arguments.get("attn_mask")
    if isinstance(mask, Value) and (mask.tracked or mask.parameter is not None):
        tracer.freeze(mask, "it masks attention")
    labels = max(fused, key=lambda ids: ids.size)
    return Value(shape_of(node), labels)
