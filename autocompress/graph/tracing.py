"""Walks an exported graph once, asking one rule per operator how labels travel through it."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, fx, nn
from torch.export import ExportedProgram

from autocompress.errors import TraceError, one_line
from autocompress.graph.labels import Ids, Units, Value

Arguments = dict[str, Any]
Rule = Callable[["Tracer", Arguments, fx.Node], Any]
RULES: dict[str, Rule] = {}


def rule(*operators: str) -> Callable[[Rule], Rule]:
    """Register a function as the rule of the named ATen operators."""

    def register(function: Rule) -> Rule:
        RULES.update(dict.fromkeys(operators, function))
        return function

    return register


def export_static(model: nn.Module, example: Tensor) -> ExportedProgram:
    """The exported program of a model, which is in eval mode, at the example's fixed shape.

    Raises:
        TraceError: `torch.export` cannot trace it.
    """
    # The fused attention kernels of inference hide the layers' weights from the graph.
    fastpath = torch.backends.mha.get_fastpath_enabled()
    torch.backends.mha.set_fastpath_enabled(False)
    try:
        with torch.no_grad():
            return torch.export.export(model, (example,))
    except Exception as error:
        raise TraceError(
            "the model must be traceable by torch.export (no control flow that depends on data) "
            f"but: {type(error).__name__}: {one_line(error)}"
        ) from error
    finally:
        torch.backends.mha.set_fastpath_enabled(fastpath)


@dataclass
class Tracer:
    """What one walk has gathered.

    `axes` holds the unit ids of each parameter dimension met, `roles` what the dimension is to its
    layer ("out", "in", "channel": in and out at once), `normalised` the producers whose output
    goes to one batch normalisation and nowhere else, `whole_groups` convolutions whose groups are
    removed whole (weight name → number of groups).
    """

    units: Units = field(default_factory=Units)
    axes: dict[tuple[str, int], Ids] = field(default_factory=dict)
    roles: dict[tuple[str, int], str] = field(default_factory=dict)
    whole_groups: dict[str, int] = field(default_factory=dict)
    normalised: set[str] = field(default_factory=set)
    producers: dict[str, str] = field(default_factory=dict)
    shapes: dict[str, tuple[int, ...]] = field(default_factory=dict)

    def axis(self, parameter: Value, dim: int, role: str) -> Ids:
        """Unit ids of one dimension of a parameter, made at its first use; `(size,)`."""
        assert parameter.parameter is not None
        key = (parameter.parameter, dim)
        if key not in self.axes:
            self.axes[key] = self.units.fresh(parameter.shape[dim])
            self.roles[key] = role
        elif self.roles[key] != role:
            self.roles[key] = "channel"
        return self.axes[key]

    def freeze(self, value: Value, reason: str) -> None:
        """Leave alone every unit that a tensor carries; all dimensions of a parameter."""
        self.units.freeze(value.labels, reason)
        if value.parameter is not None:
            for dim in range(len(value.shape)):
                self.units.freeze(self.axis(value, dim, "out"), reason)

    def run(self, program: ExportedProgram) -> None:
        """Walk the program's graph from inputs to outputs."""
        signature = program.graph_signature
        states = {**signature.inputs_to_parameters, **signature.inputs_to_buffers}
        values: dict[fx.Node, Any] = {}
        for node in program.graph.nodes:
            if node.op == "placeholder":
                values[node] = self._placeholder(node, states)
            elif node.op == "call_function":
                values[node] = self._call(node, values)
            elif node.op == "get_attr":
                values[node] = None
            elif node.op == "output":
                for value in _flat(fx.map_arg(node.args, lambda n: values[n])):
                    self.freeze(value, "it makes the model's outputs")

    def _placeholder(self, node: fx.Node, states: dict[str, str]) -> Value | None:
        tensor = node.meta.get("val")
        if not isinstance(tensor, Tensor):
            return None
        shape = tuple(tensor.shape)
        name = states.get(node.name)
        if name is None:
            return Value.untracked(shape)
        self.shapes[name] = shape
        return Value.parameter_of(name, shape)

    def _call(self, node: fx.Node, values: dict[fx.Node, Any]) -> Any:
        target: Any = node.target
        resolved: Any = fx.map_arg((node.args, node.kwargs), lambda n: values[n])
        args, kwargs = resolved
        if getattr(target, "__name__", "") == "getitem":
            return args[0][args[1]] if args[0] is not None else None
        schema = getattr(target, "_schema", None)
        name = schema.name.split("::")[-1] if schema is not None else str(target)
        apply = RULES.get(name) or RULES.get(name.removesuffix("_"))
        if name.startswith("_assert"):
            return None
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
        return Value.untracked(tuple(output.shape))
    if isinstance(output, (tuple, list)):
        return [Value.untracked(tuple(t.shape)) if isinstance(t, Tensor) else None for t in output]
    return None


def shape_of(node: fx.Node) -> tuple[int, ...]:
    """The shape of the one tensor that a node yields."""
    return tuple(int(size) for size in node.meta["val"].shape)


def _flat(item: Any) -> list[Value]:
    if isinstance(item, Value):
        return [item]
    if isinstance(item, (tuple, list)):
        return [value for entry in item for value in _flat(entry)]
    if isinstance(item, dict):
        return _flat(list(item.values()))
    return []
