"""Gates on residual branches, and branches that are taken out of a model's graph."""

from __future__ import annotations

import copy
from collections.abc import Mapping

from torch import fx, nn

from autocompress.graph.bridging import erase_unused, holder_of
from autocompress.graph.rewriting import call_layers
from autocompress.graph.structure import Analysis, graph_module
from autocompress.graph.topology import ResidualBranch


def gate_branches(model: nn.Module, analysis: Analysis, gates: Mapping[str, nn.Module]) -> fx.GraphModule:
    """A graph module in which a gate stands between each branch and the addition it goes to.

    Args:
        model: whose layers and parameters the result shares.
        analysis: of this model.
        gates: name of a branch's addition node → module that takes and gives its tensor, registered as
            `gate_<node>`.
    """
    traced = analysis.trace.graph
    graph = copy.deepcopy(traced)
    call_layers(dict(zip(traced.nodes, list(graph.nodes), strict=True)), graph, model)
    nodes = {node.name: node for node in graph.nodes}
    holder = holder_of(model)
    for branch in analysis.residuals:
        if branch.node in gates:
            side, addition = nodes[branch.side], nodes[branch.node]
            with graph.inserting_before(addition):
                call = graph.call_module(gate_name(branch), (side,))
            addition.replace_input_with(side, call)
            holder.add_module(gate_name(branch), gates[branch.node])
    erase_unused(graph)
    return graph_module(holder, graph, analysis.trace.constants)


def gate_name(branch: ResidualBranch) -> str:
    """Name under which a branch's gate is registered."""
    return f"gate_{branch.node}"


def drop_branch(graph: fx.Graph, gate: str) -> None:
    """Let a gated branch's shortcut stand for the sum, in place; what made the branch goes."""
    call = next(node for node in graph.nodes if node.op == "call_module" and node.target == gate)
    addition = next(iter(call.users))
    shortcut = next(side for side in addition.all_input_nodes if side is not call)
    # What changes a tensor in place inside the branch goes with it.
    inside = _before(call) - _before(shortcut)
    addition.replace_all_uses_with(shortcut)
    graph.erase_node(addition)
    erase_unused(graph, inside)


def _before(node: fx.Node) -> set[fx.Node]:
    """A node and all that it is made from."""
    found: set[fx.Node] = set()
    waiting = [node]
    while waiting:
        one = waiting.pop()
        if one not in found:
            found.add(one)
            waiting += one.all_input_nodes
    return found
