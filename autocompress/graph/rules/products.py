"""Products of tensors: matrix products in all their forms, attention scores."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from typing import Any

from torch import fx

from autocompress.graph.labels import Value, compress
from autocompress.graph.rules.contractions import Factor, contract, contract_parameter
from autocompress.graph.rules.elements import aligned, coupled
from autocompress.graph.rules.layers import is_parameter
from autocompress.graph.tracing import Arguments, Tracer, freeze_all, rule, shape_of


@rule("matmul", "mm", "bmm", "mv")
def matmul(tracer: Tracer, arguments: Arguments, node: fx.Node) -> Any:
    """`x @ y`, of which one may be a parameter."""
    second = next(name for name in ("other", "mat2", "vec") if name in arguments)
    return _matrix_product(tracer, arguments["self"], arguments[second], node)


@rule("addmm", "baddbmm", "addmv")
def added_product(tracer: Tracer, arguments: Arguments, node: fx.Node) -> Any:
    """β·b + α·(x @ y), where b is a bias, as in GPT-2's `Conv1D`, or a computed tensor."""
    bias, x, y = (value for value in arguments.values() if isinstance(value, Value))
    product = _matrix_product(tracer, x, y, node)
    return coupled(tracer, [aligned(bias, len(product.shape)), product], product.shape, role="out")


def _matrix_product(tracer: Tracer, x: Value, y: Value, node: fx.Node) -> Any:
    # Dimensions before the last two are stacks of matrices, aligned from the right.
    depth = max(len(x.shape), len(y.shape), 2) - 2
    stack = [f"s{d}" for d in range(depth)]
    left = [*stack[depth + 2 - len(x.shape) :], "n", "k"] if len(x.shape) > 1 else ["k"]
    right = [*stack[depth + 2 - len(y.shape) :], "k", "m"] if len(y.shape) > 1 else ["k"]
    result = [*stack, *(name for name in ("n", "m") if name in left or name in right)]
    return _product(tracer, [Factor(x, left), Factor(y, right)], result, node)


@rule("einsum")
def einsum(tracer: Tracer, arguments: Arguments, node: fx.Node) -> Any:
    """A sum of products, each dimension named by a letter."""
    tensors = arguments["tensors"]
    names, result = _dimension_names(arguments["equation"], [len(v.shape) for v in tensors])
    if len(tensors) != 2 or any(len(set(own)) < len(own) for own in (*names, result)):
        return freeze_all(tracer, tensors, node, "this form of einsum is not analysed")
    factors = [Factor(value, own) for value, own in zip(tensors, names, strict=True)]
    return _product(tracer, factors, result, node)


def _dimension_names(equation: str, counts: Sequence[int]) -> tuple[list[list[str]], list[str]]:
    """Names of the dimensions of each operand and of the result; those that `...` stands for are numbered
    from the right."""
    given, arrow, result = equation.replace(" ", "").partition("->")
    operands = given.split(",")
    names = [_spelled_out(own, count) for own, count in zip(operands, counts, strict=True)]
    broadcast = sorted({name for own in names for name in own if name.isdigit()}, key=int, reverse=True)
    if arrow:
        before, dots, after = result.partition("...")
        return names, [*before, *(broadcast if dots else ()), *after]
    seen = Counter(name for own in names for name in own if not name.isdigit())
    return names, [*broadcast, *sorted(name for name, times in seen.items() if times == 1)]


def _spelled_out(letters: str, count: int) -> list[str]:
    before, _, after = letters.partition("...")
    return [*before, *(str(d) for d in reversed(range(count - len(before) - len(after)))), *after]


def _product(tracer: Tracer, factors: list[Factor], result: list[str], node: fx.Node) -> Any:
    shape = shape_of(node)
    parameters = [factor for factor in factors if is_parameter(factor.value)]
    if not parameters:
        return contract(tracer, factors, result, shape)
    if len(parameters) == 2:
        values = [factor.value for factor in factors]
        return freeze_all(tracer, values, node, "a product of parameters is not analysed")
    computed = next(factor for factor in factors if factor is not parameters[0])
    return contract_parameter(tracer, computed, _unexpanded(parameters[0]), result, shape)


def _unexpanded(parameter: Factor) -> Factor:
    """A view of a parameter with size 1 along the dimensions along which it repeats its elements."""
    if parameter.value.elements is None:
        return parameter
    distinct = compress(parameter.value.elements)
    return Factor(parameter.value.seen_as(distinct.shape, distinct), parameter.names)


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
