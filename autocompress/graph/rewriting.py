"""Channel surgery on the exported graph, for models whose code fixes sizes that must shrink.

Attention with a number of heads in its code, a channel shuffle, a split at a given position: their
sizes are constants in the exported graph, where what survives of each tensor says what they must be.
The layers of the model stay modules of their own, so that what comes out trains as before.
"""

from __future__ import annotations

import copy
from collections.abc import Mapping
from typing import Any

import numpy as np
import torch
from torch import Tensor, fx, nn

from autocompress.graph.branch_gate import BranchGate
from autocompress.graph.corrections import correct, operator_name
from autocompress.graph.removal import remove_channels
from autocompress.graph.structure import Analysis, Keep, graph_module, names_in, unused_name
from autocompress.graph.survival import Survival
from autocompress.graph.topology import layer_of
from autocompress.graph.tracing import shape_of
from autocompress.graph.training_mode import CALLS, STRENGTH, TrainingSwitch, node_arguments
from autocompress.weights.factored import transposed_linear


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
    modules = call_layers(copies, graph, smaller)
    for node in graph.nodes:
        # Shapes as they were traced are no longer true; which module a node is of still is.
        node.meta = {k: v for k, v in node.meta.items() if k in ("nn_module_stack", CALLS)}
    graph.lint()
    constants = {name: _left(name, tensor, survival) for name, tensor in analysis.trace.constants.items()}
    return graph_module(smaller, graph, constants, modules)


def _left(name: str, constant: Tensor, survival: Survival) -> Tensor:
    """What is left of a constant, as of an attention bias that the model's code keeps in evaluation."""
    for dim in range(constant.dim()):
        ids = survival.trace.axes.get((name, dim))
        if ids is not None:
            alive = survival.alive[survival.trace.roots[ids]]
            constant = constant.index_select(dim, torch.from_numpy(np.flatnonzero(alive)).to(constant.device))
    return constant


# Operators that are all that a module's forward does → the modules' classes.
_MODULES: dict[str, tuple[type[nn.Module], ...]] = {
    "linear": (nn.Linear,),
    "conv1d": (nn.Conv1d,),
    "conv2d": (nn.Conv2d,),
    "conv3d": (nn.Conv3d,),
    "batch_norm": (nn.BatchNorm1d, nn.BatchNorm2d, nn.BatchNorm3d, nn.SyncBatchNorm),
    "instance_norm": (nn.InstanceNorm1d, nn.InstanceNorm2d, nn.InstanceNorm3d),
    "layer_norm": (nn.LayerNorm,),
    "group_norm": (nn.GroupNorm,),
}
# Of these the module acts otherwise in training than in eval mode.
_SWITCHED = ("batch_norm", "instance_norm")
# Dimensions of a tensor → the batch norm that takes it.
_BATCH_NORMS = {2: nn.BatchNorm1d, 3: nn.BatchNorm1d, 4: nn.BatchNorm2d, 5: nn.BatchNorm3d}
_BATCH_NORM_TENSORS = ("weight", "bias", "running_mean", "running_var")


def call_layers(copies: Mapping[fx.Node, fx.Node], graph: fx.Graph, model: nn.Module) -> dict[str, nn.Module]:
    """Call a model's layers in a copy of its graph, where operators came from them, and make what else acts
    otherwise in training do so.

    Args:
        copies: traced node → its copy.
        graph: the copy.
        model: whose layers they are.

    Returns:
        Modules that the graph calls and the model has not, or has of another class, by their names.
    """
    switch = TrainingSwitch(graph, unused_name("training_mode", names_in(model)))
    norms: dict[str, nn.Module] = {}
    for old, new in copies.items():
        if old.op != "call_function" or _as_module(old, new, model):
            continue
        if STRENGTH in old.meta:
            norm = _plain_norm(old, model) if operator_name(old) == "batch_norm" else None
            if norm is None:
                switch.switch(new, old.meta[STRENGTH])
            else:
                owner = _owner(node_arguments(old)["running_mean"])
                norms.setdefault(owner, norm)
                _call(new, owner)
    for node in list(graph.nodes):
        if node.op == "get_attr" and not node.users:
            graph.erase_node(node)
    return norms | switch.modules()


def _as_module(old: fx.Node, new: fx.Node, model: nn.Module) -> bool:
    """Call the module that an operator came from, so that it trains as before; whether there is one."""
    name = operator_name(old)
    if CALLS in old.meta:
        _call(new, old.meta[CALLS])
        return True
    if name == "mul" and isinstance(model.get_submodule(layer_of(old)), BranchGate):
        _call(new, layer_of(old))
        return True
    if name == "addmm":
        return _as_transposed_linear(old, new, model)
    # A linear layer has no settings: whoever calls it, its module is as good.
    owner = _owner(old.args[1]) if name == "linear" else layer_of(old)
    if name not in _MODULES or not owner or (name in _SWITCHED and STRENGTH not in old.meta):
        return False
    module: Any = model.get_submodule(owner)
    same = any(type(module).forward is cls.forward for cls in _MODULES[name])
    if not same or getattr(module, "padding_mode", "zeros") != "zeros":
        return False
    tensors = [a for a in old.args[1:] if isinstance(a, fx.Node)]
    parameters = [p for p in (getattr(module, n, None) for n in ("weight", "bias")) if p is not None]
    buffers = [b for b in module.buffers(recurse=False) if b.dim()]
    if any(_owner(t) != owner for t in tensors) or len(tensors) != len(parameters) + len(buffers):
        return False
    _call(new, owner)
    return True


def _as_transposed_linear(old: fx.Node, new: fx.Node, model: nn.Module) -> bool:
    """Call the linear layer whose bias and weight, kept as `(inputs, outputs)`, a sum with a product has."""
    owner = _owner(old.args[0])
    module = model.get_submodule(owner)
    if not any(type(module).forward is kind.forward for kind in transposed_linear()):
        return False
    if old.kwargs or _owner(old.args[2]) != owner or len(list(module.parameters())) != 2:
        return False
    new.args = new.args[1:]
    _call(new, owner)
    return True


def _call(node: fx.Node, name: str) -> None:
    """Make a node a call of a module with the node's first argument."""
    node.op, node.target, node.args, node.kwargs = "call_module", name, (node.args[0],), {}


def _plain_norm(node: fx.Node, model: nn.Module) -> nn.Module | None:
    """A batch norm of PyTorch's class with all that the module of an operator's tensors holds.

    For modules that do more than to normalise, which the graph has as operators of their own; what else
    they hold stays under its names.

    Returns:
        None where the tensors are not a module's own, or go by other names than PyTorch's.
    """
    arguments = node_arguments(node)
    tensors = {name: arguments[name] for name in _BATCH_NORM_TENSORS if arguments[name] is not None}
    owner = _owner(arguments["running_mean"])
    named = all(isinstance(t, fx.Node) and t.target == f"{owner}.{name}" for name, t in tensors.items())
    cls = _BATCH_NORMS.get(len(shape_of(node)))
    if not owner or not named or cls is None:
        return None
    module: Any = model.get_submodule(owner)
    # A module without a momentum averages over all batches; in eval mode its operator does not say so.
    momentum = None if getattr(module, "momentum", 0.0) is None else arguments["momentum"]
    norm = cls(len(module.running_mean), arguments["eps"], momentum, affine=False)
    norm.affine = "weight" in tensors
    norm._parameters = {"weight": None, "bias": None} | module._parameters
    norm._buffers = {"num_batches_tracked": None} | module._buffers
    norm._modules = dict(module._modules)
    norm._non_persistent_buffers_set = set(module._non_persistent_buffers_set)
    norm.training = module.training
    return norm


def _owner(node: object) -> str:
    if not isinstance(node, fx.Node) or node.op != "get_attr":
        return ""
    return str(node.target).rpartition(".")[0]
