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


def maker_norms(sites: list[GateSite], units: int) -> Tensor:
    """Mean over a unit's gated layers of √(Σ w²) relative to the layer's mean; `(units,)`.

    After a batch norm √(γ² + β²) is exactly the RMS of the channel over a batch.
    """
    device = sites[0].index.device
    total, count = torch.zeros(units + 1, device=device), torch.zeros(units + 1, device=device)
    for site in sites:
        squares = torch.zeros((), device=device)
        for name, dim in site.dims.items():
            squares = squares + _squares(site.layer._parameters[name], dim)
        norm = (squares + 1e-12).sqrt()
        total = total.index_add(0, site.index, norm / norm.detach().mean().clamp_min(1e-12))
        count = count.index_add(0, site.index, torch.ones_like(norm))
    return (total / count.clamp_min(1))[:units]


@dataclass
class Reader:
    """A layer that reads gated channels: its weight, and where its inputs' units stand.

    Args:
        layer: the module.
        weight: name of the parameter whose dimension `dim` runs over the inputs.
        dim: that dimension.
        index: unit of each input as a position in the vector of all units, the last one standing
            for "of no unit"; `(inputs,)`.
    """

    layer: nn.Module
    weight: str
    dim: int
    index: Tensor


def find_readers(model: nn.Module, analysis: Analysis) -> list[Reader]:
    """Every layer that reads channels of a group."""
    offsets = np.cumsum([0, *(group.width for group in analysis.groups)])
    total = int(offsets[-1])
    device = next(model.parameters()).device
    found: dict[tuple[str, int], np.ndarray] = {}
    for group, offset in zip(analysis.groups, offsets, strict=False):
        for member in group.members:
            if member.role == "in":
                index = found.setdefault((member.tensor, member.dim), np.full(len(member.unit_of), total))
                mine = member.unit_of >= 0
                index[mine] = member.unit_of[mine] + offset
    readers = []
    for (tensor, dim), index in found.items():
        layer, _, weight = tensor.rpartition(".")
        readers.append(Reader(model.get_submodule(layer), weight, dim, torch.from_numpy(index).to(device)))
    return readers


def input_rms(model: nn.Module, readers: list[Reader], inputs: Tensor) -> list[Tensor | None]:
    """RMS of each reader's inputs over a batch, in eval mode; `(inputs,)` each.

    None where a layer's inputs do not line up with its weight (a grouped convolution, or a weight
    that is used by a function).
    """
    measured: dict[int, Tensor] = {}

    def record(position: int, size: int) -> Any:
        def hook(module: nn.Module, args: tuple[Tensor, ...]) -> None:
            dim = -1 if isinstance(module, nn.Linear) else 1
            if args and args[0].dim() >= 2 and args[0].shape[dim] == size:
                measured[position] = args[0].movedim(dim, 0).flatten(1).square().mean(1).sqrt()

        return hook

    handles = [
        reader.layer.register_forward_pre_hook(record(position, len(reader.index)))
        for position, reader in enumerate(readers)
    ]
    was_training = model.training
    try:
        with torch.no_grad():
            model.eval()(inputs)
    finally:
        model.train(was_training)
        for handle in handles:
            handle.remove()
    return [measured.get(position) for position in range(len(readers))]


def reader_norms(readers: list[Reader], rms: list[Tensor | None], units: int) -> Tensor:
    """√(Σ (RMS·‖w‖)²) over all that reads a unit, layers weighing alike; `(units,)`.

    RMS(x_c)·‖W[:, c]‖ is the RMS of what input c adds to a layer's output.
    """
    device = readers[0].index.device
    total = torch.zeros(units + 1, device=device)
    for reader, measured in zip(readers, rms, strict=True):
        squares = _squares(reader.layer._parameters[reader.weight], reader.dim)
        if measured is not None:
            squares = squares * measured.square()
        total = total.index_add(0, reader.index, squares / squares.detach().mean().clamp_min(1e-12))
    return (total + 1e-12).sqrt()[:units]


def _squares(parameter: Any, dim: int) -> Tensor:
    """Σ w² over all dimensions but one; `(size,)`."""
    others = [d for d in range(parameter.dim()) if d != dim]
    squares: Tensor = parameter.square()
    return squares.sum(others) if others else squares
