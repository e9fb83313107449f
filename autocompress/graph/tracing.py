"""Walks an exported graph once, asking one rule per operator how labels travel through it."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field
from types import MappingProxyType
from typing import Any, Literal

import numpy as np
import torch
from torch import Tensor, fx

from autocompress.graph.labels import Ids, Units, Value, compress

Arguments = dict[str, Any]
Role = Literal["out", "in", "channel"]
Rule = Callable[["Tracer", Arguments, fx.Node], Any]
RULES: dict[str, Rule] = {}


def rule(*operators: str) -> Callable[[Rule], Rule]:
    """Register a function as the rule of the named ATen operators."""

    def register(function: Rule) -> Rule:
        RULES.update(dict.fromkeys(operators, function))
        return function

    return register


@dataclass
class Tracer:
    """What one walk has gathered.

    Args:
        units: all units met, and what ties or freezes them.
        values: node name → its value, or a list of values where it yields several tensors.
        axes: (parameter, dimension) → unit ids, for each parameter dimension met.
        roles: what the dimension is to its layer: "out", "in", or "channel" (in and out at once).
        shapes: parameter → shape.
        normalised: weights of producers whose output goes to one normalisation and nowhere else.
        whole_groups: weights of layers whose groups are removed whole → number of groups.
        statistics: weights of normalisations whose statistics run over the channels.
        producers: node name → weight of the layer that makes it.
    """

    units: Units = field(default_factory=Units)
    values: dict[str, Any] = field(default_factory=dict)
    axes: dict[tuple[str, int], Ids] = field(default_factory=dict)
    roles: dict[tuple[str, int], Role] = field(default_factory=dict)
    shapes: dict[str, tuple[int, ...]] = field(default_factory=dict)
    whole_groups: dict[str, int] = field(default_factory=dict)
    normalised: set[str] = field(default_factory=set)
    statistics: set[str] = field(default_factory=set)
    producers: dict[str, str] = field(default_factory=dict)

    def axis(self, value: Value, dims: int | Iterable[int], role: Role) -> Ids:
        """Unit ids of the parameter dimension that runs along these dimensions of a view of it.

        Returns:
            `(size,)` for one dimension; else an array that broadcasts to the view's shape.

        Raises:
            ValueError: no single dimension of the parameter runs along them.
        """
        name = value.parameter
        assert name is not None
        if value.elements is None and isinstance(dims, int):
            return self._ids(name, dims % len(value.shape), role)
        wanted = {dims % len(value.shape)} if isinstance(dims, int) else set(dims)
        coordinates = [compress(c) for c in np.unravel_index(value.positions(), self.shapes[name])]
        runs = [{d for d, size in enumerate(c.shape) if size > 1} for c in coordinates]
        matching = [own for own, along in enumerate(runs) if along & wanted]
        if len(matching) != 1 or not runs[matching[0]] <= wanted:
            raise ValueError("no single dimension of the parameter runs there")
        ids = self._ids(name, matching[0], role)[coordinates[matching[0]]]
        if isinstance(dims, int):
            return np.broadcast_to(ids.ravel(), (value.shape[dims],))
        return ids

    def _ids(self, name: str, dim: int, role: Role) -> Ids:
        key = (name, dim)
        if key not in self.axes:
            self.axes[key] = self.units.fresh(self.shapes[name][dim])
            self.roles[key] = role
        elif self.roles[key] != role:
            self.roles[key] = "channel"
        return self.axes[key]

    def freeze(self, value: Value, reason: str) -> None:
        """Leave alone every unit that a tensor carries; all dimensions of a parameter."""
        self.units.freeze(value.labels, reason)
        if value.parameter is not None:
            for dim in range(len(self.shapes[value.parameter])):
                self.units.freeze(self._ids(value.parameter, dim, "out"), reason)

    def run(
        self,
        graph: fx.Graph,
        states: Mapping[str, Tensor],
        constants: Mapping[str, Tensor] = MappingProxyType({}),
    ) -> None:
        """Walk a graph from inputs to outputs.

        Args:
            graph: of the model.
            states: the model's parameters and buffers, shared ones under each of their names, of which the
                first stands for all.
            constants: other tensors that the graph has.
        """
        first_names: dict[int, str] = {}
        for name, tensor in states.items():
            first_names.setdefault(id(tensor), name)
        for node in graph.nodes:
            if node.op == "get_attr" and node.target in states:
                name = first_names[id(states[node.target])]
                self.shapes[name] = tuple(states[name].shape)
                self.values[node.name] = Value.parameter_of(name, self.shapes[name])
            elif node.op == "get_attr" and node.target in constants:
                self.shapes[node.target] = tuple(constants[node.target].shape)
                self.values[node.name] = Value.parameter_of(
                    node.target, self.shapes[node.target], constant=True
                )
            elif node.op in ("placeholder", "get_attr"):
                self.values[node.name] = like(node)
            elif node.op == "call_function":
                self.values[node.name] = self._call(node)
            elif node.op == "output":
                for value in _flat(fx.map_arg(node.args, lambda n: self.values[n.name])):
                    self.freeze(value, "it makes the model's outputs")

    def _call(self, node: fx.Node) -> Any:
        target: Any = node.target
        resolved: Any = fx.map_arg((node.args, node.kwargs), lambda n: self.values[n.name])
        args, kwargs = resolved
        if getattr(target, "__name__", "") == "getitem":
            return args[0][args[1]] if args[0] is not None else None
        if not _has_tensor(node.meta.get("val")):
            # Sizes, and arithmetic with them.
            return None
        schema = getattr(target, "_schema", None)
        name = schema.name.split("::")[-1] if schema is not None else str(target)
        apply = RULES.get(name) or RULES.get(name.removesuffix("_"))
        if schema is None or apply is None:
            return self.unknown(_flat((args, kwargs)), node, name)
        arguments = {a.name: a.default_value for a in schema.arguments}
        arguments.update(zip((a.name for a in schema.arguments), args, strict=False))
        arguments.update(kwargs)
        try:
            return apply(self, arguments, node)
        except (AttributeError, IndexError, KeyError, TypeError, ValueError):
            # A form of the operator that its rule does not foresee: frozen, never guessed.
            return self.unknown(_flat((args, kwargs)), node, name)

    def unknown(self, operands: list[Value], node: fx.Node, name: str) -> Any:
        """Freeze what an operator without a rule touches."""
        for value in operands:
            self.freeze(value, f"operator {name} is not analysed")
        return like(node)


def like(node: fx.Node) -> Any:
    """Untracked values of the shapes that a node yields."""
    output = node.meta.get("val")
    if isinstance(output, Tensor):
        return Value.untracked(sizes(output))
    if isinstance(output, (tuple, list)):
        return [Value.untracked(sizes(t)) if isinstance(t, Tensor) else None for t in output]
    return None


def sizes(tensor: Tensor) -> tuple[int, ...]:
    """The shape of a traced tensor, symbolic sizes as in the example; 2 for those that depend on data."""
    hints = (size.node.hint if isinstance(size, torch.SymInt) else size for size in tensor.shape)
    return tuple(2 if hint is None else int(hint) for hint in hints)


def shape_of(node: fx.Node) -> tuple[int, ...]:
    """The shape of the one tensor that a node yields."""
    return sizes(node.meta["val"])


def freeze_all(tracer: Tracer, values: Iterable[object], node: fx.Node, reason: str = "") -> Any:
    """Leave alone what an operator touches, for a reason of its own."""
    name = str(node.target).removeprefix("aten.").split(".")[0]
    for value in values:
        if isinstance(value, Value):
            tracer.freeze(value, reason or f"operator {name} is not analysed for these operands")
    return like(node)


def _has_tensor(output: Any) -> bool:
    if isinstance(output, (tuple, list)):
        return any(_has_tensor(entry) for entry in output)
    return isinstance(output, Tensor)


def _flat(item: Any) -> list[Value]:
    if isinstance(item, Value):
        return [item]
    if isinstance(item, (tuple, list)):
        return [value for entry in item for value in _flat(entry)]
    if isinstance(item, dict):
        return _flat(list(item.values()))
    return []
