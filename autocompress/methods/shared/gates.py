"""Channel gates on coupled groups: one factor per unit, multiplied into the layers' own tensors.

A gated layer is the same module with its class swapped for a subclass, so that state keys stay, and
gating costs a product with the weights instead of one with the activations.
"""

from __future__ import annotations

import copy
from collections import defaultdict
from contextlib import nullcontext
from dataclasses import dataclass, field
from functools import cache
from typing import Any, cast

import torch
import torch.nn.functional as F
from torch import Tensor, fx, nn
from torch.overrides import TorchFunctionMode

from autocompress.graph import Analysis
from autocompress.graph.exporting import inference
from autocompress.graph.masking import kept_norm
from autocompress.methods.shared.unit_index import unit_index, unit_offsets
from autocompress.task.inputs import Inputs, call, device_of_inputs

_STATE = ("_gates", "_gates_seen", "_share")  # what a gated module has beside its own attributes


@dataclass
class GateSite:
    """A layer whose parameters are multiplied by the gates of units, while a module runs.

    Args:
        layer: the module that owns the parameters.
        name: of the layer in the model.
        gated: parameter attribute → (dimension along which it is gated, unit of each position as an
            index into the vector of all units, whose last entry stands for "not gated"; `(size,)`).
        statistics: the layer normalises over its channels, each of them counting as its gate says.
        scope: the module in whose `forward` the parameters are used: the layer, or one around it.
    """

    layer: nn.Module
    name: str
    gated: dict[str, tuple[int, Tensor]]
    statistics: bool
    scope: nn.Module = field(init=False)

    def __post_init__(self) -> None:
        self.scope = self.layer


class _Gated:
    """Mixin: run the module's own `forward` with gated parameters."""

    def forward(self, *args: Any, **kwargs: Any) -> Any:
        module: Any = self
        owners = {id(layer): layer for layer, _, _, _ in module._gates.values()}
        own = {key: dict(layer._parameters) for key, layer in owners.items()}
        for layer, name, dim, gate in module._gates.values():
            parameter = own[id(layer)][name]
            layer._parameters[name] = parameter * _along(gate, parameter, dim)
        recurrent = [layer for layer in owners.values() if isinstance(layer, nn.RNNBase)]
        lists = [layer._flat_weights for layer in recurrent]
        for layer in recurrent:
            # PyTorch's recurrent layers compute with a list of their weights.
            layer._flat_weights = [layer._parameters[name] for name in layer._flat_weights_names]
        module._gates_seen = True
        try:
            with nullcontext() if module._share is None else _Statistics(module._share):
                return super().forward(*args, **kwargs)  # type: ignore[misc]
        finally:
            for key, layer in owners.items():
                layer._parameters.update(own[key])
            for layer, weights in zip(recurrent, lists, strict=True):
                layer._flat_weights = weights


class _Statistics(TorchFunctionMode):
    """Normalises with each channel counting as much as its gate is open."""

    def __init__(self, share: Tensor) -> None:
        super().__init__()
        self.share = share

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        own = {F.layer_norm: _layer_norm, F.group_norm: _group_norm}.get(func)
        return own(self.share, *args, **kwargs) if own is not None else func(*args, **(kwargs or {}))


def _layer_norm(
    share: Tensor, input: Tensor, normalized_shape: Any, weight: Any, bias: Any, eps: float
) -> Tensor:
    return kept_norm(input, (share, weight, bias), eps, tuple(range(-len(normalized_shape), 0)))


def _group_norm(share: Tensor, input: Tensor, num_groups: int, weight: Any, bias: Any, eps: float) -> Tensor:
    tensors = tuple(None if t is None else _along(t, input, 1) for t in (share, weight, bias))
    return kept_norm(input, tensors, eps, tuple(range(1, input.dim())))


class _GatedGraph(_Gated):
    """Mixin of graph modules, whose own way of copying makes a new class and loses their gates."""

    def __deepcopy__(self, memo: dict[int, Any]) -> Any:
        module: Any = self
        gated = type(module)
        module.__class__ = gated._ungated
        try:
            copied = copy.deepcopy(module, memo)
        finally:
            module.__class__ = gated
        for name in _STATE:
            setattr(copied, name, copy.deepcopy(getattr(module, name), memo))
        copied.__class__ = _gated_class(type(copied))
        return copied


def _gated_class(cls: Any) -> type[nn.Module]:
    # Every graph module is the only one of its class: what is made of it is not worth keeping.
    return _made_class(_GatedGraph, cls) if issubclass(cls, fx.GraphModule) else _cached_class(cls)


@cache
def _cached_class(cls: Any) -> type[nn.Module]:
    return _made_class(_Gated, cls)


def _made_class(mixin: type, cls: Any) -> type[nn.Module]:
    return type(f"Gated{cls.__name__}", (mixin, cls), {"_ungated": cls})


def _along(vector: Any, tensor: Tensor, dim: int) -> Tensor:
    sizes = [1] * tensor.dim()
    sizes[dim] = -1
    viewed: Tensor = vector.view(sizes)
    return viewed


def insert_gates(model: nn.Module, analysis: Analysis, inputs: Inputs) -> list[GateSite]:
    """Gate every layer that makes channels of a group, in place, all gates 1.

    A layer whose output goes straight to a normalisation of its group is left to that one's gate.
    Where a layer's parameters are used by the code around it and not by its own `forward`, its gates
    act while that code runs.

    Args:
        model: changed in place.
        analysis: of it.
        inputs: run through it to see which layers are called.
    """
    sites = _find_sites(model, analysis)
    waiting = sites
    while waiting:
        for site in waiting:
            _swap_class(site.scope)
        set_gates(sites, torch.ones(unit_offsets(analysis)[-1] + 1, device=device_of_inputs(inputs)))
        with inference(model):
            call(model, inputs)
        waiting = [site for site in waiting if not cast(Any, site.scope)._gates_seen]
        remove_gates(waiting)
        for site in [s for s in waiting if s.scope is model]:
            sites.remove(site)
            waiting.remove(site)
        for site in waiting:
            names = [n for n, m in model.named_modules() if m is site.scope]
            site.scope = model.get_submodule(names[0].rpartition(".")[0])
    return sites


def _find_sites(model: nn.Module, analysis: Analysis) -> list[GateSite]:
    parameters = dict(model.named_parameters(remove_duplicate=False))
    names = defaultdict(list)
    for tensor, parameter in parameters.items():
        names[parameter].append(tensor)
    members = [m for group in analysis.groups for m in group.members]
    normalised = {m.layer for m in members if m.normalised}
    statistics = {m.layer for m in members if m.statistics}
    index = unit_index(
        analysis,
        lambda m: m.role != "in" and m.tensor in parameters and m.layer not in normalised,
        # A shared parameter is gated in every layer that has it.
        lambda m: [(name, m.dim) for name in names[parameters[m.tensor]]],
    )
    gated: dict[str, dict[str, tuple[int, Tensor]]] = defaultdict(dict)
    for (tensor, dim), units in index.items():
        owner, _, name = tensor.rpartition(".")
        gated[owner][name] = (dim, torch.from_numpy(units).to(parameters[tensor].device))
    return [
        GateSite(model.get_submodule(layer), layer, tensors, layer in statistics)
        for layer, tensors in gated.items()
    ]


def _swap_class(module: nn.Module) -> None:
    gated: Any = module
    if not hasattr(gated, "_gates"):
        gated.__class__ = _gated_class(type(gated))
    gated._gates, gated._gates_seen, gated._share = {}, False, None


def set_gates(sites: list[GateSite], survival: Tensor) -> None:
    """Give each gated layer the factors of its channels; survival `(units + 1,)`, last entry 1."""
    indices = [index for site in sites for _, index in site.gated.values()]
    if not indices:
        return
    # In one operation for all layers, as each of them takes a GPU about as long.
    factors = iter(
        torch.split(survival.index_select(0, torch.cat(indices)), [len(index) for index in indices])
    )
    for site in sites:
        scope: Any = site.scope
        for name, (dim, _) in site.gated.items():
            gate = next(factors)
            scope._gates[f"{site.name}.{name}"] = (site.layer, name, dim, gate)
            if name == "weight" and site.statistics and scope is site.layer:
                scope._share = _along(gate, site.layer.get_parameter(name), dim)


def detach_gates(sites: list[GateSite]) -> None:
    """Let go of the graph that the gates were computed with."""
    for site in sites:
        scope: Any = site.scope
        scope._gates = {k: (*rest, gate.detach()) for k, (*rest, gate) in scope._gates.items()}
        scope._share = None if scope._share is None else scope._share.detach()


def fold_gates(sites: list[GateSite]) -> None:
    """Multiply the gates into the parameters and give the layers their own classes back."""
    folded: set[Tensor] = set()
    with torch.no_grad():
        for scope in {id(site.scope): site.scope for site in sites}.values():
            for layer, name, dim, gate in cast(Any, scope)._gates.values():
                parameter = layer._parameters[name]
                if parameter not in folded:
                    parameter.mul_(_along(gate, parameter, dim))
                folded.add(parameter)
    remove_gates(sites)


def remove_gates(sites: list[GateSite]) -> None:
    """Give the modules their own classes back, parameters as they are."""
    for scope in {id(site.scope): site.scope for site in sites}.values():
        module: Any = scope
        module.__class__ = module._ungated
        for name in _STATE:
            delattr(module, name)
