"""What an analysis says of a model: coupled channel groups, their members, and what is frozen."""

from __future__ import annotations

import copy
import itertools
from collections.abc import Container, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from operator import attrgetter
from types import MappingProxyType
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, fx, nn

from autocompress.graph.labels import Ids
from autocompress.graph.topology import CutPoint, ResidualBranch
from autocompress.graph.tracing import Role
from autocompress.task import Limits


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
    """Channels that can only be removed together, unit by unit, from all its members.

    Args:
        name: of the layer that makes them.
        width: how many units there are.
        members: all that they run through.
        least: units that must stay.
    """

    name: str
    width: int
    members: tuple[Member, ...]
    least: int = 1

    @property
    def layers(self) -> tuple[str, ...]:
        """Names of the layers that the group runs through, each once, in order."""
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


def graph_module(
    model: nn.Module,
    graph: fx.Graph,
    constants: Mapping[str, Tensor],
    modules: Mapping[str, nn.Module] = MappingProxyType({}),
) -> fx.GraphModule:
    """A module that runs a graph with a model's layers and parameters, which it shares.

    Args:
        model: not changed.
        graph: names layers and parameters as the model does.
        constants: tensors that the graph has beside them; copied to where the model is.
        modules: that the graph calls beside the model's, or in place of those of the same name.
    """
    like = next(itertools.chain(model.parameters(), model.buffers()), torch.empty(0))
    held: dict[str, Any] = {}
    for node in graph.nodes:
        name = str(node.target)
        if node.op not in ("call_module", "get_attr") or name in held:
            continue
        if name in modules:
            held[name] = modules[name]
        elif name in constants:
            held[name] = constants[name].to(like.device, copy=True)
        else:
            held[name] = attrgetter(name)(model)
    # The exporter's tracer needs arguments that a pickled module does not have when it is traced anew.
    graph._tracer_cls = None
    # From a dictionary, because a model that is sequential runs whatever is registered on it.
    module = fx.GraphModule(held, graph, type(model).__name__)
    module.training = model.training
    return module


def unused_name(name: str, taken: Container[str]) -> str:
    """The name, with a number where it is taken."""
    candidates = itertools.chain([name], (f"{name}_{i}" for i in itertools.count(1)))
    return next(candidate for candidate in candidates if candidate not in taken)


def names_in(model: nn.Module) -> set[str]:
    """Names of all that a model holds."""
    modules = model.named_modules(remove_duplicate=False)
    tensors = itertools.chain(
        model.named_parameters(remove_duplicate=False), model.named_buffers(remove_duplicate=False)
    )
    return {name for name, _ in modules} | {name for name, _ in tensors}


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
        limits: that groups, branches and reasons are within, and that layers and cut points go by.
    """

    groups: tuple[Group, ...]
    frozen: dict[str, str]
    layers: tuple[str, ...]
    cut_points: tuple[CutPoint, ...]
    residuals: tuple[ResidualBranch, ...]
    trace: Trace = field(repr=False, compare=False)
    limits: Limits = field(default_factory=Limits)

    def group(self, name: str) -> Group:
        """The group of that name; `KeyError` if there is none."""
        for group in self.groups:
            if group.name == name:
                return group
        raise KeyError(name)


Keep = Mapping[str, Sequence[int]]
