"""What an analysis says of a model: coupled channel groups, their members, and what is frozen."""

from __future__ import annotations

import copy
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from itertools import chain
from typing import Any, Literal

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, fx, nn

from autocompress.graph.labels import Ids
from autocompress.graph.topology import CutPoint, ResidualBranch

Role = Literal["out", "in", "channel"]


@dataclass(frozen=True)
class Member:
    """One dimension of one tensor that shrinks with a group.

    Args:
        tensor: state-dict name of the parameter or buffer.
        dim: the dimension that shrinks.
        role: "out" (makes the channels), "in" (reads them) or "channel" (both, as a norm does).
        unit_of: for each position of the dimension its unit in the group, or −1; `(size,)`.
        normalised: the layer's output goes to a normalisation of the group and nowhere else.
        whole_groups: the layer's convolution or normalisation groups are removed whole; their
            number, else 0.
        statistics: a normalisation whose statistics run over the channels that are kept.
    """

    tensor: str
    dim: int
    role: Role
    unit_of: NDArray[np.int64]
    normalised: bool = False
    whole_groups: int = 0
    statistics: bool = False

    @property
    def layer(self) -> str:
        """Name of the module that owns the tensor."""
        return self.tensor.rpartition(".")[0]

    def positions(self, units: Iterable[int]) -> NDArray[np.int64]:
        """Positions of the dimension that belong to these units."""
        return np.flatnonzero(np.isin(self.unit_of, list(units)))


@dataclass(frozen=True)
class Group:
    """Channels that can only be removed together, unit by unit, from all its members."""

    name: str
    width: int
    members: tuple[Member, ...]

    @property
    def layers(self) -> tuple[str, ...]:
        return tuple(dict.fromkeys(member.layer for member in self.members))


@dataclass(frozen=True)
class Trace:
    """The exported graph and the unit of each element of each tensor in it.

    Args:
        graph: of the whole model, for any batch size.
        values: node name → value, or list of values.
        roots: unit of each id.
        units: group name → the root of each of its units.
        axes: (parameter, dimension) → ids.
        shapes: parameter → shape.
        constants: tensors that the model's code made when it was traced, by their name in the graph.
    """

    graph: fx.Graph
    values: Mapping[str, Any]
    roots: Ids
    units: Mapping[str, Ids]
    axes: Mapping[tuple[str, int], Ids]
    shapes: Mapping[str, tuple[int, ...]]
    constants: Mapping[str, Tensor]

    def module(self, model: nn.Module) -> fx.GraphModule:
        """A graph module of this trace with a model's parameters; the model is not changed."""
        return graph_module(copy.deepcopy(model), copy.deepcopy(self.graph), self.constants)


def graph_module(model: nn.Module, graph: fx.Graph, constants: Mapping[str, Tensor]) -> fx.GraphModule:
    """A module that runs a graph with a model's layers and parameters, where these are.

    Args:
        model: gains the constants as buffers.
        graph: names layers and parameters as the model does; changed in place.
        constants: tensors that the graph has beside them.
    """
    near = next(chain(model.parameters(), model.buffers()), None)
    for name, tensor in constants.items():
        model.register_buffer(name, tensor.clone() if near is None else tensor.to(near.device, copy=True))
    follow_input(graph)
    return fx.GraphModule(model, graph, type(model).__name__)


def follow_input(graph: fx.Graph) -> None:
    """Let a graph make its tensors where its input is, in place of the device that it was traced on.

    `torch.export` writes that device into calls such as `arange` and `zeros`, the states of an LSTM among
    them, and into assertions, which go.
    """
    source = next(node for node in graph.nodes if node.op == "placeholder")
    device: fx.Node | None = None
    for node in list(graph.nodes):
        if node.target is torch.ops.aten._assert_tensor_metadata.default:
            graph.erase_node(node)
            continue
        given = [value for value in (*node.args, *node.kwargs.values()) if isinstance(value, torch.device)]
        if not given:
            continue
        if device is None:
            with graph.inserting_after(source):
                device = graph.call_function(getattr, (source, "device"))
        node.args = tuple(device if isinstance(value, torch.device) else value for value in node.args)
        node.kwargs = {k: device if isinstance(v, torch.device) else v for k, v in node.kwargs.items()}


@dataclass(frozen=True)
class Analysis:
    """What may be removed from a model, and why the rest may not.

    Args:
        groups: coupled channel groups, from input to output.
        frozen: layer name → why none of its output channels can be removed.
        layers: all layers that own parameters.
        cut_points: tensors that every path from input to output passes through.
        residuals: branches beside a shortcut, added to it at their end.
        trace: what the graph says, for rewriting it.
    """

    groups: tuple[Group, ...]
    frozen: dict[str, str]
    layers: tuple[str, ...]
    cut_points: tuple[CutPoint, ...]
    residuals: tuple[ResidualBranch, ...]
    trace: Trace = field(repr=False, compare=False)

    def group(self, name: str) -> Group:
        """The group of that name; `KeyError` if there is none."""
        for group in self.groups:
            if group.name == name:
                return group
        raise KeyError(name)


Keep = Mapping[str, Sequence[int]]
