"""Linear and convolution layers: their sizes, costs, and whether two layers may stand for one."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from enum import Enum
from typing import Any

from torch import Tensor, fx, nn

from autocompress.graph.corrections import operator_name
from autocompress.graph.structure import Analysis
from autocompress.graph.topology import layer_of
from autocompress.graph.tracing import shape_of
from autocompress.weights.factored import FACTORABLE

_CALLS = ("linear", "conv1d", "conv2d", "conv3d")


class Obstacle(Enum):
    """Why two layers cannot stand for one; the value is what people read."""

    SHARED = "its weight is shared with another layer"
    READ_ELSEWHERE = "its weight is used outside its own forward"
    OWN_FORWARD = "its class has a forward of its own"


@dataclass(frozen=True)
class WeightLayer:
    """A linear or convolution layer.

    Args:
        name: of the module.
        kind: its class, "Linear", "Conv2d" and so on.
        shape: of the weight, `(f, c/groups, *kernel)`.
        groups: of the convolution.
        inputs: grid that it reads, `(T,)` or `(H, W)`; empty for `(B, c)`.
        outputs: grid that it makes.
        positions: outputs' positions that it computes for one input, all calls together.
        obstacle: why two layers cannot stand for it; None where they can.
    """

    name: str
    kind: str
    shape: tuple[int, ...]
    groups: int
    inputs: tuple[int, ...]
    outputs: tuple[int, ...]
    positions: int
    obstacle: Obstacle | None

    @property
    def params(self) -> int:
        """Numbers in the weight."""
        return math.prod(self.shape)

    @property
    def macs(self) -> int:
        """Multiply-accumulates of one input, all calls together."""
        return self.positions * self.params


def weight_layers(model: nn.Module, analysis: Analysis, macs: Mapping[str, int]) -> tuple[WeightLayer, ...]:
    """All linear and convolution layers whose weight the graph uses, in order of their first use.

    Args:
        model: not changed.
        analysis: of this model.
        macs: multiply-accumulates of one input by module, from `layer_macs`.
    """
    modules = dict(model.named_modules())
    readers: dict[str, list[fx.Node]] = {}
    for node in analysis.trace.graph.nodes:
        for source in node.all_input_nodes:
            owner, _, leaf = str(source.target).rpartition(".")
            if source.op == "get_attr" and leaf == "weight" and isinstance(modules.get(owner), FACTORABLE):
                readers.setdefault(owner, []).append(node)
    shared = _shared(model)
    return tuple(
        _describe(name, modules[name], nodes, shared, macs.get(name, 0)) for name, nodes in readers.items()
    )


def _describe(name: str, module: nn.Module, nodes: list[fx.Node], shared: set[str], macs: int) -> WeightLayer:
    layer: Any = module
    obstacle = None
    if f"{name}.weight" in shared:
        obstacle = Obstacle.SHARED
    elif not all(_own_call(node, name) for node in nodes):
        obstacle = Obstacle.READ_ELSEWHERE
    elif not any(type(module).forward is cls.forward for cls in FACTORABLE):
        obstacle = Obstacle.OWN_FORWARD
    grids = [_grids(node, isinstance(module, nn.Linear)) for node in nodes if operator_name(node) in _CALLS]
    # The last call's grid stands for all: layers that are called at several sizes are rare.
    inputs, outputs = grids[-1] if grids else ((), ())
    kind = next(cls.__name__ for cls in FACTORABLE if isinstance(module, cls))
    groups = int(getattr(layer, "groups", 1))
    # Layers that are not called as modules are not counted as modules either.
    positions = macs // layer.weight.numel() if macs else len(nodes) * math.prod(outputs)
    shape = tuple(layer.weight.shape)
    return WeightLayer(name, kind, shape, groups, inputs, outputs, positions, obstacle)


def _own_call(node: fx.Node, name: str) -> bool:
    return operator_name(node) in _CALLS and layer_of(node) == name


def _grids(node: fx.Node, linear: bool) -> tuple[tuple[int, ...], tuple[int, ...]]:
    source: Any = node.args[0]
    read, made = shape_of(source), shape_of(node)
    return (read[1:-1], made[1:-1]) if linear else (read[2:], made[2:])


def _shared(model: nn.Module) -> set[str]:
    """Names of parameters that go by more than one."""
    names: dict[int, list[str]] = {}
    for name, parameter in model.named_parameters(remove_duplicate=False):
        assert isinstance(parameter, Tensor)
        names.setdefault(id(parameter), []).append(name)
    return {name for same in names.values() if len(same) > 1 for name in same}
