"""Edits of residual branches and mixing blocks: gates put in, branches whose gate is shut taken out."""

from __future__ import annotations

import copy
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, ClassVar

from torch import fx, nn

from autocompress.errors import CheckpointError
from autocompress.graph import analyse
from autocompress.graph.branch_gate import BranchGate
from autocompress.graph.branches import drop_branch, gate_branches, gates_in
from autocompress.models.mixing import Mixing, PooledAttention
from autocompress.surgery.edits import Edit
from autocompress.task import Inputs


@dataclass(frozen=True)
class AddAttention(Edit):
    """Put an attention path beside convolutions: each becomes a mixing block.

    Args:
        layers: names of `nn.Conv2d` layers.
        alpha: share of the convolution to start with.
    """

    kind: ClassVar[str] = "add_attention"
    layers: tuple[str, ...]
    alpha: float

    def apply(self, model: nn.Module, example: Inputs) -> nn.Module:
        """Replace each convolution, in place, by a mixing block of it and a fresh attention path."""
        for name in self.layers:
            layer: Any = model.get_submodule(name)
            path = PooledAttention(layer.in_channels, layer.out_channels, layer.stride[0])
            model.set_submodule(name, Mixing(layer, path.to(layer.weight), self.alpha))
        return model


@dataclass(frozen=True)
class GateBranches(Edit):
    """Put a gate, open, between each residual branch and the addition that it goes to.

    Args:
        gates: graph node of the addition, and name of the gate.
    """

    kind: ClassVar[str] = "gate_branches"
    gates: tuple[tuple[str, str], ...]

    def apply(self, model: nn.Module, example: Inputs) -> nn.Module:
        """Trace the model and give its graph with the gates in it."""
        like = next(model.parameters())
        gates = {node: (name, BranchGate(1.0)) for node, name in self.gates}
        return gate_branches(model, analyse(model, example), gates).to(like.device)


@dataclass(frozen=True)
class DropBranches(Edit):
    """Take gated branches out; the other side of the sum that each goes to stands for it.

    Args:
        gates: names of their gates, which are shut.
    """

    kind: ClassVar[str] = "drop_branches"
    gates: tuple[str, ...]

    def apply(self, model: nn.Module, example: Inputs) -> nn.Module:
        """Give the graph without the branches of these gates.

        Raises:
            CheckpointError: the model is not a gated graph, or has no such gate.
        """
        return drop_branches(_graph_of(model), self.gates)


@dataclass(frozen=True)
class RemoveGates(Edit):
    """Take gates out of a model's graph whose factors are in the layers before them.

    Args:
        gates: their names.
    """

    kind: ClassVar[str] = "remove_gates"
    gates: tuple[str, ...]

    def apply(self, model: nn.Module, example: Inputs) -> nn.Module:
        """Take the gates out of the graph, in place.

        Raises:
            CheckpointError: the model is not a gated graph, or has no such gate.
        """
        gated = _graph_of(model)
        calls = gates_in(gated.graph, gated)
        for name in self.gates:
            if name not in calls:
                raise CheckpointError(f"gate must be one of the model's but got {name!r}.")
            calls[name].replace_all_uses_with(calls[name].all_input_nodes[0])
            gated.graph.erase_node(calls[name])
            gated.delete_submodule(name)
        gated.recompile()
        return gated


def drop_branches(model: fx.GraphModule, gates: Sequence[str]) -> fx.GraphModule:
    """The model without the branches of these gates, sharing its layers.

    Raises:
        CheckpointError: the model has no such gate.
    """
    graph = copy.deepcopy(model.graph)
    for name in gates:
        calls = gates_in(graph, model)
        # A gate inside a branch that is gone went with it.
        if name in calls:
            drop_branch(graph, calls[name])
        elif name not in gates_in(model.graph, model):
            raise CheckpointError(f"gate must be one of the model's but got {name!r}.")
    return fx.GraphModule(model, graph, type(model).__name__)


def _graph_of(model: nn.Module) -> fx.GraphModule:
    if not isinstance(model, fx.GraphModule):
        raise CheckpointError("edits of branches must follow the edit that gates them.")
    return model
