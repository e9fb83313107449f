"""Gates on branches of a model's graph: put in, folded into the layers before them, taken out."""

from __future__ import annotations

import copy
from collections import Counter
from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import fx, nn

from autocompress.graph.branch_gate import BranchGate
from autocompress.graph.bridging import erase_unused
from autocompress.graph.corrections import operator_name
from autocompress.graph.rewriting import call_layers
from autocompress.graph.structure import Analysis, graph_module, names_in
from autocompress.graph.topology import ResidualBranch
from autocompress.graph.training_mode import CALLS

# What multiplies its inputs by a factor when its output is to be multiplied by it.
_PASSING = {
    "dropout", "feature_dropout", "view", "reshape", "flatten", "permute", "transpose", "contiguous",
    "unflatten", "unsqueeze", "squeeze", "clone", "slice", "roll", "_unsafe_view", "upsample_nearest2d",
    "upsample_bilinear2d", "avg_pool2d", "adaptive_avg_pool2d", "mean",
}  # fmt: skip
_SCALING = {"mul", "div"}
_SUMS = {"add"}
_LINEAR = (nn.Dropout, nn.Dropout1d, nn.Dropout2d, nn.Dropout3d, nn.Identity, BranchGate)
_AFFINE = (
    nn.Linear, nn.Conv1d, nn.Conv2d, nn.Conv3d, nn.BatchNorm1d, nn.BatchNorm2d, nn.BatchNorm3d,
    nn.LayerNorm, nn.GroupNorm,
)  # fmt: skip


def gate_names(model: nn.Module, branches: Sequence[ResidualBranch]) -> list[str]:
    """Names for the branches' gates that the model does not use yet."""
    taken, names = names_in(model), []
    for branch in branches:
        name = f"gate_{branch.node}"
        while name in taken:
            name += "_"
        names.append(name)
    return names


def gate_branches(
    model: nn.Module, analysis: Analysis, gates: Mapping[str, tuple[str, BranchGate]]
) -> fx.GraphModule:
    """A graph module in which a gate stands between each branch and the addition it goes to.

    Args:
        model: whose layers and parameters the result shares.
        analysis: of this model.
        gates: name of a branch's addition node → name and module of its gate.
    """
    traced = analysis.trace.graph
    graph = copy.deepcopy(traced)
    modules = call_layers(dict(zip(traced.nodes, list(graph.nodes), strict=True)), graph, model)
    nodes = {node.name: node for node in graph.nodes}
    for branch in analysis.residuals:
        if branch.node in gates:
            name, gate = gates[branch.node]
            side, addition = nodes[branch.side], nodes[branch.node]
            with graph.inserting_before(addition):
                call = graph.call_module(name, (side,))
            addition.replace_input_with(side, call)
            modules[name] = gate
    erase_unused(graph)
    return graph_module(model, graph, analysis.trace.constants, modules)


def gates_in(graph: fx.Graph, model: nn.Module) -> dict[str, fx.Node]:
    """Name of each gate that a graph calls → its call."""
    gates = {name for name, module in model.named_modules() if isinstance(module, BranchGate)}
    return {node.target: node for node in graph.nodes if node.op == "call_module" and node.target in gates}


def drop_branch(graph: fx.Graph, call: fx.Node) -> None:
    """Let the other side of the sum that a gated branch goes to stand for it, in place.

    What made the branch and nothing else uses goes.
    """
    addition = next(iter(call.users))
    other = next(side for side in addition.all_input_nodes if side is not call)
    # What changes a tensor in place inside the branch goes with it.
    inside = _before(call) - _before(other)
    addition.replace_all_uses_with(other)
    graph.erase_node(addition)
    erase_unused(graph, inside)


def fold_gate(graph: fx.Graph, call: fx.Node, model: nn.Module) -> bool:
    """Multiply a gate's factor into the layers before it and take the gate out of the graph.

    Returns:
        Whether that could be done: a gate behind a non-linearity, or behind layers that are called
        more than once or share their parameters, stays.
    """
    gate: Any = model.get_submodule(str(call.target))
    factor = float(gate.factor.detach())
    source = call.all_input_nodes[0]
    layers = [] if factor == 1 else _scalable(source, model, _uses(graph, model))
    if layers is None:
        return False
    with torch.no_grad():
        for layer in layers:
            for name in ("weight", "bias"):
                if getattr(layer, name, None) is not None:
                    getattr(layer, name).mul_(factor)
    call.replace_all_uses_with(source)
    graph.erase_node(call)
    return True


def _scalable(node: fx.Node, model: nn.Module, uses: Counter[int]) -> list[Any] | None:
    """Layers whose parameters, multiplied by a factor, multiply a node's tensor; None if there are none."""
    if len(node.users) != 1:
        return None
    if node.op == "call_module":
        module: Any = model.get_submodule(str(node.target))
        if isinstance(module, _AFFINE):
            own = list(module.parameters())
            alone = getattr(module, "weight", None) is not None and all(uses[id(p)] == 1 for p in own)
            return [module] if alone else None
        passes = isinstance(module, _LINEAR) or CALLS in node.meta
        return _scalable(node.all_input_nodes[0], model, uses) if passes else None
    name, tensor = operator_name(node), node.args[0] if node.args else None
    sources = [source for source in node.all_input_nodes if source.op != "get_attr"]
    # Besides the tensor a view has sizes for inputs.
    if isinstance(tensor, fx.Node) and (name in _PASSING or (name in _SCALING and sources == [tensor])):
        return _scalable(tensor, model, uses)
    if name in _SUMS and len(sources) == len(node.all_input_nodes) == 2:
        parts = [_scalable(source, model, uses) for source in sources]
        return None if None in parts else [layer for part in parts for layer in part or ()]
    return None


def _uses(graph: fx.Graph, model: nn.Module) -> Counter[int]:
    """How often a graph uses each parameter, by `id`: in calls of layers or by itself."""
    counts: Counter[int] = Counter()
    for node in graph.nodes:
        if node.op == "call_module":
            counts.update(id(p) for p in model.get_submodule(str(node.target)).parameters())
        elif node.op == "get_attr":
            owner, _, name = str(node.target).rpartition(".")
            counts[id(getattr(model.get_submodule(owner), name))] += 1
    return counts


def _before(node: fx.Node) -> set[fx.Node]:
    """A node and all that it is made from."""
    ancestors: set[fx.Node] = set()
    waiting = [node]
    while waiting:
        current = waiting.pop()
        if current not in ancestors:
            ancestors.add(current)
            waiting += current.all_input_nodes
    return ancestors
