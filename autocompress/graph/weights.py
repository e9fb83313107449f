"""Weights, the parameters of more than one dimension: their sizes, costs, and what may stand for them."""

from __future__ import annotations

import math
from collections.abc import Collection, Iterable, Mapping
from dataclasses import dataclass, replace
from enum import Enum
from typing import Any

import torch
from torch import Tensor, fx, nn

from autocompress.graph.corrections import operator_name
from autocompress.graph.counting import counting
from autocompress.graph.structure import Analysis
from autocompress.graph.topology import data_nodes, layer_of
from autocompress.graph.tracing import shape_of, sizes
from autocompress.task import Limits
from autocompress.weights.factored import layer_kind, outputs_first

# Operators whose grid a low rank can change, and all that are layers' calls.
_GRIDS = ("linear", "conv1d", "conv2d", "conv3d")
_CALLS = (*_GRIDS, "addmm", "embedding", "conv_transpose1d", "conv_transpose2d", "conv_transpose3d")


class Obstacle(Enum):
    """Why two layers cannot stand for one; the value is what people read."""

    NO_LAYER = "it is no linear, convolution or embedding layer's"
    SHARED = "its weight is shared with another layer"
    READ_ELSEWHERE = "its weight is used outside its own forward"
    OWN_FORWARD = "its class has a forward of its own"
    SCALES_ROWS = "its rows are scaled whenever they are read (max_norm)"
    NO_NAME = "it is the model itself"
    PART_STAYS = "another of its parameters stays as it is"


@dataclass(frozen=True)
class Weight:
    """A parameter with more than one dimension, or the weight of a linear, convolution or embedding layer.

    Args:
        name: what people and schemes call it: its module's, or its own where it is not called `weight` there.
        parameter: its name in the model's state.
        kind: class of the module that it is of, "Linear", "Conv2d", "LSTM" and so on.
        shape: as it is stored.
        folded: its shape for low ranks: of a layer `(f, c/groups, *kernel)`, else without dimensions of 1.
        groups: of a convolution.
        inputs: grid that a layer reads, `(T,)` or `(H, W)`; empty for `(B, c)`, and where it is no layer's.
        outputs: grid that it makes.
        positions: how often each of its numbers is multiplied for one input, all calls together.
        obstacle: why two layers cannot stand for the layer; None where they can.
        aliases: other names of modules and parameters that share it.
    """

    name: str
    parameter: str
    kind: str
    shape: tuple[int, ...]
    folded: tuple[int, ...]
    groups: int
    inputs: tuple[int, ...]
    outputs: tuple[int, ...]
    positions: int
    obstacle: Obstacle | None
    aliases: tuple[str, ...] = ()

    @property
    def layer(self) -> str:
        """Name of the module that it is of."""
        return self.parameter.rpartition(".")[0]

    @property
    def params(self) -> int:
        """Numbers in the weight."""
        return math.prod(self.shape)

    @property
    def macs(self) -> int:
        """Multiply-accumulates of one input, all calls together."""
        return self.positions * self.params

    @property
    def product_shape(self) -> tuple[int, ...]:
        """The shape that it has when it is stored as a product: as it is stored for a layer, whose kernel may
        be 1, and else without dimensions of 1."""
        return self.folded if self.obstacle is Obstacle.NO_LAYER else self.shape

    def of(self, model: nn.Module) -> nn.Parameter:
        """The weight itself."""
        return model.get_parameter(self.parameter)


def weights_of(model: nn.Module, analysis: Analysis, macs: Mapping[str, int]) -> tuple[Weight, ...]:
    """All weights that the graph uses, in order of their first use; shared ones once. Those that stay as they
    are are left out.

    Args:
        model: not changed.
        analysis: of this model, within limits.
        macs: multiply-accumulates of one input by module, from `layer_macs`.
    """
    modules = dict(model.named_modules(remove_duplicate=False))
    parameters = dict(model.named_parameters(remove_duplicate=False))
    names: dict[nn.Parameter, list[str]] = {}
    for name, parameter in parameters.items():
        names.setdefault(parameter, []).append(name)
    limits = analysis.limits
    staying = {parameter for name, parameter in parameters.items() if limits.why_tensor(name) is not None}
    readers: dict[nn.Parameter, list[fx.Node]] = {}
    for node in analysis.trace.graph.nodes:
        for source in node.all_input_nodes:
            read = parameters.get(str(source.target)) if source.op == "get_attr" else None
            if read is not None and read not in staying and _is_weight(read, names[read], modules):
                readers.setdefault(read, []).append(node)
    products = _Products(analysis.trace.graph, readers)
    return tuple(
        _describe(parameter, names[parameter], modules, nodes, macs, products, limits)
        for parameter, nodes in readers.items()
    )


def staying_weights(model: nn.Module, analysis: Analysis, macs: Mapping[str, int]) -> tuple[Weight, ...]:
    """The weights that `weights_of` leaves out, for they stay as they are.

    Args:
        model: not changed.
        analysis: of this model, within limits.
        macs: multiply-accumulates of one input by module, from `layer_macs`.
    """
    if analysis.limits == Limits():
        return ()
    changing = {weight.parameter for weight in weights_of(model, analysis, macs)}
    every = weights_of(model, replace(analysis, limits=Limits()), macs)
    return tuple(weight for weight in every if weight.parameter not in changing)


def _is_weight(parameter: nn.Parameter, names: list[str], modules: Mapping[str, nn.Module]) -> bool:
    return sum(size > 1 for size in parameter.shape) > 1 or any(
        _layer_of_weight(name, modules) is not None for name in names
    )


def _layer_of_weight(name: str, modules: Mapping[str, nn.Module]) -> type[nn.Module] | None:
    """The kind of layer whose `weight` goes by this name; None where it is another parameter."""
    owner, _, leaf = name.rpartition(".")
    return layer_kind(modules[owner]) if leaf == "weight" else None


def _describe(
    parameter: nn.Parameter,
    names: list[str],
    modules: Mapping[str, nn.Module],
    nodes: list[fx.Node],
    macs: Mapping[str, int],
    products: _Products,
    limits: Limits,
) -> Weight:
    name = names[0]
    owner = name.rpartition(".")[0]
    module: Any = modules[owner]
    kind, groups = _layer_of_weight(name, modules), int(getattr(module, "groups", 1))
    shape = tuple(parameter.shape)
    if kind is None:
        groups, folded = 1, tuple(size for size in shape if size > 1)
    else:
        folded = tuple(outputs_first(kind, parameter, groups).shape)
    grids = [_grids(node) for node in nodes if operator_name(node) in _GRIDS]
    # The last call's grid stands for all: layers that are called at several sizes are rare.
    inputs, outputs = grids[-1] if grids and kind is not None else ((), ())
    # Layers that are not called as modules are not counted as modules either.
    counted = macs.get(owner, 0) if kind is not None and len(names) == 1 else 0
    multiplied = counted or products.macs(parameter)
    called, *aliases = dict.fromkeys([*map(_people_say, names), *names])
    return Weight(
        name=called,
        parameter=name,
        kind=(kind or type(module)).__name__,
        shape=shape,
        folded=folded,
        groups=groups,
        inputs=inputs,
        outputs=outputs,
        positions=multiplied // parameter.numel(),
        obstacle=_obstacle(names, modules, nodes, limits),
        aliases=tuple(aliases),
    )


def _people_say(parameter: str) -> str:
    """A parameter's own name, or its module's where it is the `weight` of one."""
    return parameter.removesuffix(".weight")


def _obstacle(
    names: list[str], modules: Mapping[str, nn.Module], nodes: list[fx.Node], limits: Limits
) -> Obstacle | None:
    kind, owner = _layer_of_weight(names[0], modules), names[0].rpartition(".")[0]
    if kind is None:
        return Obstacle.NO_LAYER
    if not owner:
        return Obstacle.NO_NAME
    if len(names) > 1:
        return Obstacle.SHARED
    if limits.why_layer(owner) is not None:
        return Obstacle.PART_STAYS
    if getattr(modules[owner], "max_norm", None) is not None:
        return Obstacle.SCALES_ROWS
    if not all(operator_name(node) in _CALLS and layer_of(node) == owner for node in nodes):
        return Obstacle.READ_ELSEWHERE
    if type(modules[owner]).forward is not kind.forward:
        return Obstacle.OWN_FORWARD
    return None


def _grids(node: fx.Node) -> tuple[tuple[int, ...], tuple[int, ...]]:
    source: Any = node.args[0]
    read, made = shape_of(source), shape_of(node)
    return (read[1:-1], made[1:-1]) if operator_name(node) == "linear" else (read[2:], made[2:])


class _Products:
    """Where a graph multiplies weights with what depends on its inputs, and how much that costs.

    Args:
        graph: exported.
        readers: weight → the nodes that read it.
    """

    def __init__(self, graph: fx.Graph, readers: Mapping[nn.Parameter, list[fx.Node]]) -> None:
        nodes = data_nodes(graph)
        # As the rows of inputs are counted: by the first tensor with a dimension.
        tensors = [node for node in nodes if isinstance(node.meta.get("val"), Tensor)]
        self.batch = next(shape_of(node)[0] for node in tensors if shape_of(node))
        data = set(nodes)
        self.of = {parameter: _first(reading, data) for parameter, reading in readers.items()}
        self.numbers: dict[fx.Node, int] = {}
        for parameter, products in self.of.items():
            for node in products:
                self.numbers[node] = self.numbers.get(node, 0) + parameter.numel()

    def macs(self, parameter: nn.Parameter) -> int:
        """Multiply-accumulates of one input; weights share those of an operator by their sizes."""
        shares = (_node_macs(node) * parameter.numel() / self.numbers[node] for node in self.of[parameter])
        return round(sum(shares) / self.batch)


def _first(nodes: Iterable[fx.Node], among: Collection[fx.Node]) -> list[fx.Node]:
    """The first nodes of a kind that come of given ones."""
    reached: dict[fx.Node, None] = {}
    seen: set[fx.Node] = set()
    waiting = list(nodes)
    while waiting:
        node = waiting.pop()
        if node in among:
            reached[node] = None
        elif node not in seen:
            waiting += node.users
        seen.add(node)
    return list(reached)


def _node_macs(node: fx.Node) -> int:
    """Multiply-accumulates of one operator, counted on tensors without numbers."""

    def meta(source: fx.Node) -> Any:
        value = source.meta.get("val")
        if isinstance(value, Tensor):
            return torch.empty(sizes(value), dtype=value.dtype, device="meta")
        hint: Any = value.node.hint if isinstance(value, torch.SymInt) else value
        return hint

    operator: Any = node.target
    arguments: Any = fx.map_arg((node.args, node.kwargs), meta)
    with counting() as counter:
        try:
            operator(*arguments[0], **arguments[1])
        except (RuntimeError, NotImplementedError):
            # An operator that PyTorch has not described for such tensors is none that it counts.
            return 0
    total: int = counter.get_total_flops() // 2
    return total
