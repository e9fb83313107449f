"""How strongly the units of coupled groups are made and read: norms of the layers' weights."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from autocompress.graph import Analysis
from autocompress.methods.shared.activations import watch_inputs
from autocompress.methods.shared.gates import GateSite
from autocompress.methods.shared.unit_index import unit_index


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
    device = next(model.parameters()).device
    readers = []
    for (tensor, dim), units in unit_index(analysis, lambda member: member.role == "in").items():
        layer, _, weight = tensor.rpartition(".")
        readers.append(Reader(model.get_submodule(layer), weight, dim, torch.from_numpy(units).to(device)))
    return readers


def input_rms(model: nn.Module, readers: list[Reader], inputs: Tensor) -> list[Tensor | None]:
    """RMS of each reader's inputs over a batch, in eval mode; `(inputs,)` each.

    None where a layer's inputs do not line up with its weight (a grouped convolution, or a weight
    that is used by a function).
    """
    measured: dict[int, Tensor] = {}
    of_layer: dict[nn.Module, list[int]] = {}
    for position, reader in enumerate(readers):
        of_layer.setdefault(reader.layer, []).append(position)

    def watcher(layer: nn.Module, positions: list[int]) -> Callable[[Tensor], None]:
        def watch(received: Tensor) -> None:
            dim = -1 if isinstance(layer, nn.Linear) else 1
            for position in positions:
                if received.dim() >= 2 and received.shape[dim] == len(readers[position].index):
                    measured[position] = received.movedim(dim, 0).flatten(1).square().mean(1).sqrt()

        return watch

    watchers = {layer: watcher(layer, positions) for layer, positions in of_layer.items()}
    watch_inputs(model, inputs, watchers)
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
