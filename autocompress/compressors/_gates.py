"""Channel gates on coupled groups: one factor per unit, multiplied into the layers' own tensors.

A gated layer is the same module with its class swapped for a subclass, so that state keys stay, and
gating costs a product with the weights instead of one with the activations.
"""

from __future__ import annotations

from collections.abc import Hashable
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
        gated: parameter attribute → (dimension along which it is gated, unit of each position as an
            index into the vector of all units, whose last entry stands for "not gated"; `(size,)`).
    """

    layer: nn.Module
    gated: dict[str, tuple[int, Tensor]]


class _Gated:
    """Mixin: run the layer's own `forward` with gated parameters."""

    def forward(self, *args: Any, **kwargs: Any) -> Any:
        module: Any = self
        own = dict(module._parameters)
        for name, (dim, gate) in module._gates.items():
            module._parameters[name] = own[name] * _along(gate, own[name], dim)
        module._gates_seen = True
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


def unit_offsets(analysis: Analysis) -> list[int]:
    """Where each group's units begin in the vector of all units; the last entry is its length."""
    return [0, *np.cumsum([group.width for group in analysis.groups]).tolist()]


def insert_gates(model: nn.Module, analysis: Analysis) -> list[GateSite]:
    """Gate every layer that makes channels of a group, in place, all gates 1.

    A layer whose output goes straight to a batch norm of its group is left to that norm's gate.
    """
    offsets = unit_offsets(analysis)
    found: dict[str, dict[str, tuple[int, np.ndarray]]] = {}
    parameters = dict(model.named_parameters(remove_duplicate=False))
    normalised = {m.layer for g in analysis.groups for m in g.members if m.normalised}
    for group, offset in zip(analysis.groups, offsets, strict=False):
        for member in group.members:
            if member.role == "in" or member.tensor not in parameters or member.layer in normalised:
                continue
            name = member.tensor.rpartition(".")[2]
            empty = np.full(len(member.unit_of), offsets[-1])
            _, index = found.setdefault(member.layer, {}).setdefault(name, (member.dim, empty))
            mine = member.unit_of >= 0
            index[mine] = member.unit_of[mine] + offset
    sites = []
    for layer_name, gated in found.items():
        layer: Any = model.get_submodule(layer_name)
        device = next(layer.parameters()).device
        layer.__class__ = _gated_class(cast(Hashable, type(layer)))
        layer._gates, layer._gates_seen = {}, False
        indexed = {n: (dim, torch.from_numpy(index).to(device)) for n, (dim, index) in gated.items()}
        sites.append(GateSite(layer, indexed))
    return sites


def set_gates(sites: list[GateSite], survival: Tensor) -> None:
    """Give each gated layer the factors of its channels; survival `(units + 1,)`, last entry 1."""
    for site in sites:
        layer: Any = site.layer
        layer._gates = {name: (dim, survival[index]) for name, (dim, index) in site.gated.items()}


def detach_gates(sites: list[GateSite]) -> None:
    """Let go of the graph that the gates were computed with."""
    for site in sites:
        layer: Any = site.layer
        layer._gates = {name: (dim, gate.detach()) for name, (dim, gate) in layer._gates.items()}


def fold_gates(sites: list[GateSite]) -> None:
    """Multiply the gates into the parameters and give the layers their own classes back."""
    with torch.no_grad():
        for site in sites:
            layer: Any = site.layer
            for name, (dim, gate) in layer._gates.items():
                layer._parameters[name].mul_(_along(gate, layer._parameters[name], dim))
    remove_gates(sites)


def remove_gates(sites: list[GateSite]) -> None:
    """Give the layers their own classes back, parameters as they are."""
    for site in sites:
        layer: Any = site.layer
        layer.__class__ = layer._ungated
        del layer._gates, layer._gates_seen


def drop_unused_gates(sites: list[GateSite]) -> list[GateSite]:
    """The sites whose layers the last forward pass called; the others are ungated.

    A layer whose weight is used by a function, not by its own `forward`, never sees its gates.
    """
    used: list[GateSite] = []
    for site in sites:
        layer: Any = site.layer
        if layer._gates_seen:
            used.append(site)
        else:
            remove_gates([site])
    return used


def maker_norms(sites: list[GateSite], units: int, like: Tensor) -> Tensor:
    """Mean over a unit's gated layers of √(Σ w²) relative to the layer's mean; `(units,)`.

    After a batch norm √(γ² + β²) is exactly the RMS of the channel over a batch.
    """
    total, count = like.new_zeros(units + 1), like.new_zeros(units + 1)
    for site in sites:
        squares, present = like.new_zeros(units + 1), like.new_zeros(units + 1)
        for name, (dim, index) in site.gated.items():
            own = _squares(site.layer._parameters[name], dim).to(like.dtype)
            squares = squares.index_add(0, index, own)
            present[index] = 1.0
        norm = (squares + 1e-12).sqrt() * present
        total = total + norm / (norm.sum() / present.sum()).clamp_min(1e-12)
        count = count + present
    # Units that no gated layer makes score by their readers alone.
    return torch.where(count > 0, total / count.clamp_min(1), 1.0)[:units]


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
    offsets = unit_offsets(analysis)
    total = offsets[-1]
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


def reader_norms(readers: list[Reader], rms: list[Tensor | None], units: int, like: Tensor) -> Tensor:
    """√(Σ (RMS·‖w‖)²) over all that reads a unit, layers weighing alike; `(units,)`.

    RMS(x_c)·‖W[:, c]‖ is the RMS of what input c adds to a layer's output.
    """
    total = like.new_zeros(units + 1)
    for reader, measured in zip(readers, rms, strict=True):
        squares = _squares(reader.layer._parameters[reader.weight], reader.dim).to(like.dtype)
        if measured is not None:
            squares = squares * measured.square().to(like.dtype)
        total = total.index_add(0, reader.index, squares / squares.mean().clamp_min(1e-12))
    return (total + 1e-12).sqrt()[:units]


def _squares(parameter: Any, dim: int) -> Tensor:
    """Σ w² over all dimensions but one; `(size,)`."""
    others = [d for d in range(parameter.dim()) if d != dim]
    squares: Tensor = parameter.square()
    return squares.sum(others) if others else squares
