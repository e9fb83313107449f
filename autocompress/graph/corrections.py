"""Constants of an exported graph, set to what its tensors are after a removal."""

from __future__ import annotations

import operator
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import fx

from autocompress.errors import TrialError
from autocompress.graph.labels import Value
from autocompress.graph.survival import Survival

_aten = torch.ops.aten


@dataclass(frozen=True)
class Operation:
    """One operator as it was traced, its copy in the new graph, and what survives.

    Args:
        old: the node as traced.
        new: its copy, to be changed.
        survival: of all tensors.
    """

    old: fx.Node
    new: fx.Node
    survival: Survival

    def argument(self, name: str, copied: bool = False) -> Any:
        """An argument by its name in the operator's schema, as traced or in the copy."""
        node = self.new if copied else self.old
        schema = _schema(self.old)
        names = [argument.name for argument in schema.arguments]
        position = names.index(name)
        if position < len(node.args):
            return node.args[position]
        return node.kwargs.get(name, schema.arguments[position].default_value)

    def value(self, argument: str = "") -> Any:
        """The traced value of an argument, or of the result."""
        node = self.argument(argument) if argument else self.old
        return self.survival.trace.values[node.name]

    def set(self, name: str, argument: Any) -> None:
        """Change an argument of the copy."""
        position = [a.name for a in _schema(self.old).arguments].index(name)
        if position < len(self.new.args):
            self.new.update_arg(position, argument)
        else:
            self.new.update_kwarg(name, argument)


Correction = Callable[[Operation], None]


def correct(old: fx.Node, new: fx.Node, survival: Survival) -> None:
    """Set the constants of an operator to what its tensors now are.

    Raises:
        TrialError: what is kept is not a smaller tensor, or no constant says it for any batch size.
    """
    correction = _CORRECTIONS.get(operator_name(old))
    if correction is not None:
        correction(Operation(old, new, survival))


def operator_name(node: fx.Node) -> str:
    """Name of a node's ATen operator, without the underscore of in-place ones; "" if it is none."""
    schema = _schema(node)
    return schema.name.split("::")[-1].removesuffix("_") if schema is not None else ""


def _schema(node: fx.Node) -> Any:
    return getattr(node.target, "_schema", None)


def _sizes_in(argument: str) -> Correction:
    """Corrects the argument that lists sizes of the result."""

    def correction(operation: Operation) -> None:
        value: Value = operation.value()
        listed = list(operation.argument(argument, copied=True))
        # `unflatten` lists the sizes of the dimensions that it makes of one.
        first = int(operation.argument("dim")) if argument == "sizes" else 0
        first %= len(value.shape) - len(listed) + 1
        for i, size in enumerate(listed):
            kept = operation.survival.size(value, first + i)
            if kept != value.shape[first + i] and size != -1:
                listed[i] = _scaled(operation, first + i, kept)
        operation.set(argument, listed)

    return correction


def _scaled(operation: Operation, dim: int, kept: int) -> Any:
    """A size of the result: the number that is kept, or that number for each of the batch."""
    symbolic = operation.old.meta["val"].shape[dim]
    if isinstance(symbolic, int):
        return kept
    expression = symbolic.node.expr
    batch = next(iter(expression.free_symbols))
    if not (expression / batch).is_Integer:
        raise TrialError(f"a size that depends on the batch as {expression} cannot be corrected.")
    per_input, rest = divmod(kept * int(expression / batch), symbolic.node.hint)
    if rest:
        raise TrialError(f"{kept} of {expression} cannot be the size of a tensor for any batch.")
    graph = operation.new.graph
    inputs = next(n for n in graph.nodes if n.op == "placeholder")
    with graph.inserting_before(operation.new):
        count = graph.call_function(_aten.sym_size.int, (inputs, 0))
        return graph.call_function(operator.mul, (count, per_input))


def _slice(operation: Operation) -> None:
    value: Value = operation.value("self")
    dim = int(operation.argument("dim")) % len(value.shape)
    alive = operation.survival.along(value, dim)
    if alive.all():
        return
    if operation.argument("step") != 1:
        raise TrialError("a slice with a step through removed channels cannot be corrected.")
    # A bound moves to the number of survivors before it.
    part = slice(operation.argument("start"), operation.argument("end"))
    start, end, _ = part.indices(len(alive))
    operation.new.args = (operation.new.args[0], dim, int(alive[:start].sum()), int(alive[:end].sum()))


def _split(operation: Operation) -> None:
    value: Value = operation.value("self")
    dim = int(operation.argument("dim")) % len(value.shape)
    if not operation.survival.along(value, dim).all():
        sizes = [operation.survival.size(part, dim) for part in operation.value()]
        operation.new.target = _aten.split_with_sizes.default
        operation.new.args = (operation.new.args[0], sizes, dim)


def _normalized_shape(operation: Operation) -> None:
    value: Value = operation.value()
    first = len(value.shape) - len(operation.argument("normalized_shape"))
    sizes = [operation.survival.size(value, d) for d in range(first, len(value.shape))]
    operation.set("normalized_shape", sizes)


def _norm_groups(operation: Operation) -> None:
    value, groups = operation.value(), operation.argument("num_groups")
    if groups > 1:
        operation.set("num_groups", groups * operation.survival.size(value, 1) // value.shape[1])


def _conv_groups(operation: Operation) -> None:
    inputs, weight = operation.value("input"), operation.value("weight")
    if operation.argument("groups") > 1:
        channels = operation.survival.size(inputs, len(inputs.shape) - len(weight.shape) + 1)
        operation.set("groups", channels // operation.survival.size(weight, 1))


_CORRECTIONS: dict[str, Correction] = {
    **dict.fromkeys(("view", "expand", "zeros", "new_zeros"), _sizes_in("size")),
    "_unsafe_view": _sizes_in("size"),
    "reshape": _sizes_in("shape"),
    "unflatten": _sizes_in("sizes"),
    **dict.fromkeys(("chunk", "split", "split_with_sizes", "unsafe_split", "tensor_split"), _split),
    **dict.fromkeys(("conv1d", "conv2d", "conv3d"), _conv_groups),
    "slice": _slice,
    "layer_norm": _normalized_shape,
    "group_norm": _norm_groups,
}
