"""Channel surgery on the exported graph, for models whose code fixes sizes that must shrink.

Attention with a number of heads in its code, a channel shuffle, a split at a given position: their
sizes are constants in the exported graph, where what survives of each tensor says what they must be.
The layers of the model stay modules of their own, so that what comes out trains as before.
"""

from __future__ import annotations

import copy
from collections.abc import Mapping
from typing import Any

from torch import fx, nn

from autocompress.graph.branch_gate import BranchGate
from autocompress.graph.corrections import correct, operator_name
from autocompress.graph.removal import remove_channels
from autocompress.graph.structure import Analysis, Keep, graph_module
from autocompress.graph.survival import Survival
from autocompress.graph.topology import layer_of


def rewrite_channels(model: nn.Module, analysis: Analysis, keep: Keep) -> nn.Module:
    """A graph module of `model` without the units that are not kept, its constants corrected.

    Args:
        model: not changed.
        analysis: of this model.
        keep: group name → units that stay; groups not named stay whole.

    Raises:
        TrialError: a constant cannot be corrected.
    """
    smaller = remove_channels(model, analysis, keep)
    traced = analysis.trace.graph
    graph = copy.deepcopy(traced)
    survival = Survival(analysis.trace, keep)
    copies = dict(zip(traced.nodes, list(graph.nodes), strict=True))
    for old, new in copies.items():
        if old.op == "call_function":
            correct(old, new, survival)
    call_layers(copies, graph, smaller)
    for node in graph.nodes:
        # Shapes as they were traced are no longer true; which module a node is of still is.
        node.meta = {k: v for k, v in node.meta.items() if k == "nn_module_stack"}
    graph.lint()
    return graph_module(smaller, graph, analysis.trace.constants)


# Operators that are all that a module's forward does → the modules' classes.
_MODULES: dict[str, tuple[type[nn.Module], ...]] = {
    "linear": (nn.Linear,),
    "conv1d": (nn.Conv1d,),
    "conv2d": (nn.Conv2d,),
    "conv3d": (nn.Conv3d,),
    "batch_norm": (nn.BatchNorm1d, nn.BatchNorm2d, nn.BatchNorm3d),
    "layer_norm": (nn.LayerNorm,),
    "group_norm": (nn.GroupNorm,),
    "dropout": (nn.Dropout,),
    "feature_dropout": (nn.Dropout1d, nn.Dropout2d, nn.Dropout3d),
}


def call_layers(copies: Mapping[fx.Node, fx.Node], graph: fx.Graph, model: nn.Module) -> None:
    """Call a model's layers in a copy of its graph, where operators came from them.

    Args:
        copies: traced node → its copy.
        graph: the copy.
        model: whose layers they are.
    """
    for old, new in copies.items():
        if old.op == "call_function":
            _as_module(old, new, model)
    for node in list(graph.nodes):
        if node.op == "get_attr" and not node.users:
            graph.erase_node(node)


def _as_module(old: fx.Node, new: fx.Node, model: nn.Module) -> None:
    """Call the module that an operator came from, so that it trains as before."""
    name = operator_name(old)
    if name == "mul" and isinstance(model.get_submodule(layer_of(old)), BranchGate):
        new.op, new.target, new.args, new.kwargs = "call_module", layer_of(old), (new.args[0],), {}
        return
    # A linear layer has no settings: whoever calls it, its module is as good.
    owner = _owner(old.args[1]) if name == "linear" else layer_of(old)
    if name not in _MODULES or not owner:
        return
    module: Any = model.get_submodule(owner)
    same = any(type(module).forward is cls.forward for cls in _MODULES[name])
    if not same or getattr(module, "padding_mode", "zeros") != "zeros":
        return
    tensors = [a for a in old.args[1:] if isinstance(a, fx.Node)]
    parameters = [p for p in (getattr(module, n, None) for n in ("weight", "bias")) if p is not None]
    buffers = [b for b in module.buffers(recurse=False) if b.dim()]
    if any(_owner(t) != owner for t in tensors) or len(tensors) != len(parameters) + len(buffers):
        return
    new.op, new.target, new.args, new.kwargs = "call_module", owner, (new.args[0],), {}


def _owner(node: object) -> str:
    if not isinstance(node, fx.Node) or node.op != "get_attr":
        return ""
    return str(node.target).rpartition(".")[0]
