"""Channel gates on coupled groups: one factor per unit, multiplied into the layers' own tensors.

A gated layer is the same module with its class swapped for a subclass, so that state keys stay, and
gating costs a product with the weights instead of one with the activations.
"""

from __future__ import annotations

from collections.abc import Hashable, Mapping
from dataclasses import dataclass
from functools import cache
from typing import Any, cast

import numpy as np
import torch
from torch import Tensor, nn

from autocompress.graph import Analysis


@dataclass
class GateSite:
    """A gated layer: which of its parameters are multiplied, and by the gates of which units.

    Args:
        layer: the module.
        dims: parameter attribute → the dimension along which it is gated.
        index: unit of each channel as a position in the vector of all units; the last position of
            that vector stands for "not gated"; `(channels,)`.
    """

    layer: nn.Module
    dims: Mapping[str, int]
    index: Tensor

    @property
    def exact_rms(self) -> bool:
        """Whether `channel_norms` is the RMS of the layer's output: true after batch norm."""
        return isinstance(self.layer, nn.modules.batchnorm._BatchNorm)


class _Gated:
    """Mixin: run the layer's own `forward` with gated parameters."""

    def forward(self, *args: Any, **kwargs: Any) -> Any:
        module: Any = self
        gate, own = module._gate, dict(module._parameters)
        for name, dim in module._gate_dims.items():
            module._parameters[name] = own[name] * _along(gate, own[name], dim)
        try:
            return super().forward(*args, **kwargs)  # type: ignore[misc]
        finally:
            module._parameters.update(own)


@cache
def _gated_class(cls: Any) -> type[nn.Module]:
    return type(f"Gated{cls.__name__}", (_Gated, cls), {"_ungated": cls})


def _along(vector: Tensor, tensor: Tensor, dim: int) -> Tensor:
    sizes = [1] * tensor.dim()
    sizes[dim] = -1
    return vector.view(sizes)


def insert_gates(model: nn.Module, analysis: Analysis) -> list[GateSite]:
    """Gate every layer that makes channels of a group, in place, all gates 1.

    A layer whose output goes straight to a batch norm of its group is left to that norm's gate.
    """
    offsets = np.cumsum([0, *(group.width for group in analysis.groups)])
    total = int(offsets[-1])
    found: dict[str, tuple[dict[str, int], np.ndarray]] = {}
    parameters = dict(model.named_parameters(remove_duplicate=False))
    normalised = {m.layer for g in analysis.groups for m in g.members if m.normalised}
    for group, offset in zip(analysis.groups, offsets, strict=False):
        for member in group.members:
            if member.role == "in" or member.tensor not in parameters:
                continue
            if member.layer in normalised:
                continue
            size = len(member.unit_of)
            dims, index = found.setdefault(member.layer, ({}, np.full(size, total)))
            dims[member.tensor.rpartition(".")[2]] = member.dim
            mine = member.unit_of >= 0
            index[mine] = member.unit_of[mine] + offset
    sites = []
    for name, (dims, index) in found.items():
        layer: Any = model.get_submodule(name)
        layer.__class__ = _gated_class(cast(Hashable, type(layer)))
        layer._gate_dims = dims
        layer._gate = torch.ones(len(index), device=next(iter(layer.parameters())).device)
        sites.append(GateSite(layer, dims, torch.from_numpy(index).to(layer._gate.device)))
    return sites


def set_gates(sites: list[GateSite], survival: Tensor) -> None:
    """Give each gated layer the factors of its channels; survival `(units + 1,)`, last entry 1."""
    for site in sites:
        layer: Any = site.layer
        layer._gate = survival[site.index]


def fold_gates(sites: list[GateSite]) -> None:
    """Multiply the gates into the parameters and give the layers their own classes back."""
    with torch.no_grad():
        for site in sites:
            layer: Any = site.layer
            for name, dim in site.dims.items():
                parameter = layer._parameters[name]
                parameter.mul_(_along(layer._gate, parameter, dim))
            layer.__class__ = layer._ungated
            del layer._gate, layer._gate_dims


def channel_norms(site: GateSite) -> Tensor:
    """√(Σ w²) of each channel's gated parameters, differentiable; `(channels,)`.

    After a batch norm this is √(γ² + β²), exactly the RMS of the channel's output over a batch.
    """
    total = torch.zeros(())
    for name, dim in site.dims.items():
        parameter: Any = site.layer._parameters[name]
        others = [d for d in range(parameter.dim()) if d != dim]
        squares = parameter.square()
        total = total + (squares.sum(others) if others else squares)
    return (total + 1e-12).sqrt()


def output_rms(model: nn.Module, sites: list[GateSite], inputs: Tensor) -> list[Tensor]:
    """RMS of each gated layer's ungated output per channel, over a batch; `(channels,)` each."""
    measured: dict[int, Tensor] = {}

    def record(position: int, channels: int) -> Any:
        def hook(module: nn.Module, args: Any, output: Tensor) -> None:
            last = output.dim() <= 2 or isinstance(module, nn.Linear)
            dim = output.dim() - 1 if last else 1
            if output.shape[dim] == channels:
                measured[position] = output.movedim(dim, 0).flatten(1).square().mean(1).sqrt()

        return hook

    saved: list[Tensor] = []
    handles = []
    for position, site in enumerate(sites):
        layer: Any = site.layer
        saved.append(layer._gate)
        layer._gate = torch.ones_like(layer._gate)
        handles.append(layer.register_forward_hook(record(position, len(site.index))))
    was_training = model.training
    try:
        with torch.no_grad():
            model.eval()(inputs)
    finally:
        model.train(was_training)
        for handle, site, gate in zip(handles, sites, saved, strict=True):
            handle.remove()
            site.layer._gate = gate
    return [measured.get(position, channel_norms(site).detach()) for position, site in enumerate(sites)]
