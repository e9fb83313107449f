"""How strongly the units of coupled groups are made and read: norms of the layers' weights."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from autocompress.graph import Analysis
from autocompress.methods.shared.activations import watch_inputs
from autocompress.methods.shared.gates import GateSite
from autocompress.methods.shared.unit_index import unit_index
from autocompress.methods.shared.units import norms_along
from autocompress.task import Inputs
from autocompress.weights.factored import features_last, layer_kind


class MakerNorms:
    """Mean over a unit's gated layers of √(Σ w²) relative to the layer's mean; calling it gives `(units,)`.

    After a batch norm √(γ² + β²) is exactly the RMS of the channel over a batch. What does not change from
    step to step is computed once, and all layers together.

    Args:
        sites: the gated layers, whose present weights count.
        units: of all groups.
        like: gives device and precision.
    """

    def __init__(self, sites: Sequence[GateSite], units: int, like: Tensor) -> None:
        self.units, self.like = units, like
        self.gated = [(site.layer, name, dim) for site in sites for name, (dim, _) in site.gated.items()]
        # Each unit of each layer has a slot, in which the parameters of the layer meet.
        slots = [
            index + (units + 1) * position
            for position, site in enumerate(sites)
            for _, index in site.gated.values()
        ]
        empty = torch.empty(0, dtype=torch.int64, device=like.device)
        present, self.slots = torch.unique(torch.cat([empty, *slots]), return_inverse=True)
        self.site_of, self.unit_of = present // (units + 1), present % (units + 1)
        ones = like.new_ones(len(present))
        self.site_sizes = like.new_zeros(len(sites)).index_add(0, self.site_of, ones)
        self.makers = like.new_zeros(units + 1).index_add(0, self.unit_of, ones)

    def __call__(self) -> Tensor:
        """The norms of the present weights, `(units,)`."""
        squares = _norms(self.gated, self.like).square()
        norms = (self.like.new_zeros(len(self.unit_of)).index_add(0, self.slots, squares) + 1e-12).sqrt()
        relative = norms / _means(norms, self.site_of, self.site_sizes)
        total = self.like.new_zeros(self.units + 1).index_add(0, self.unit_of, relative)
        # Units that no gated layer makes score by their readers alone.
        return (total / self.makers.clamp_min(1)).masked_fill(self.makers == 0, 1.0)[: self.units]


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


def input_rms(model: nn.Module, readers: list[Reader], inputs: Inputs) -> list[Tensor | None]:
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
            for position in positions:
                inputs = len(readers[position].index)
                dims = [d for d in _channel_dims(readers[position]) if received.dim() >= 2]
                dim = next((d for d in dims if received.shape[d] == inputs), None)
                if dim is not None:
                    measured[position] = received.movedim(dim, 0).flatten(1).square().mean(1).sqrt()

        return watch

    watchers = {layer: watcher(layer, positions) for layer, positions in of_layer.items()}
    watch_inputs(model, inputs, watchers)
    return [measured.get(position) for position in range(len(readers))]


def _channel_dims(reader: Reader) -> tuple[int, ...]:
    """Where a layer's inputs may have the channels that a weight of it reads; none where these are no inputs
    of the layer but its own state."""
    if isinstance(reader.layer, (nn.RNNBase, nn.RNNCellBase)):
        reads_inputs = reader.weight.removesuffix("_reverse") in ("weight_ih", "weight_ih_l0")
        return (-1,) if reads_inputs else ()
    if layer_kind(reader.layer) is None:
        return 1, -1
    return (-1,) if features_last(reader.layer) else (1,)


class ReaderNorms:
    """√(Σ (RMS·‖w‖)²) over all that reads a unit, layers weighing alike; calling it gives `(units,)`.

    RMS(x_c)·‖W[:, c]‖ is the RMS of what input c adds to a layer's output.

    Args:
        readers: whose present weights count.
        rms: of each reader's inputs, from `input_rms`.
        units: of all groups.
        like: gives device and precision.
    """

    def __init__(
        self, readers: Sequence[Reader], rms: Sequence[Tensor | None], units: int, like: Tensor
    ) -> None:
        self.units, self.like = units, like
        self.weights = [(reader.layer, reader.weight, reader.dim) for reader in readers]
        sizes = torch.tensor([len(reader.index) for reader in readers], dtype=torch.int64)
        self.reader_of = torch.arange(len(readers)).repeat_interleave(sizes).to(like.device)
        self.reader_sizes = sizes.to(like)
        empty = torch.empty(0, dtype=torch.int64, device=like.device)
        self.unit_of = torch.cat([empty, *(reader.index for reader in readers)])
        known = [
            like.new_ones(len(reader.index)) if measured is None else measured.to(like)
            for reader, measured in zip(readers, rms, strict=True)
        ]
        self.rms = torch.cat([like.new_empty(0), *known])

    def __call__(self) -> Tensor:
        """The norms of the present weights, `(units,)`."""
        squares = (_norms(self.weights, self.like) * self.rms).square()
        relative = squares / _means(squares, self.reader_of, self.reader_sizes)
        total = self.like.new_zeros(self.units + 1).index_add(0, self.unit_of, relative)
        return (total + 1e-12).sqrt()[: self.units]


def _norms(weights: Sequence[tuple[nn.Module, str, int]], like: Tensor) -> Tensor:
    """√(Σ w²) along a dimension of each of some parameters, one after the other; `(sum of sizes,)`."""
    norms = [norms_along(layer.get_parameter(name), dim) for layer, name, dim in weights]
    return torch.cat([like.new_empty(0), *norms]).to(like)


def _means(values: Tensor, layer_of: Tensor, sizes: Tensor) -> Tensor:
    """The mean over each value's layer, in its place; `(values,)`."""
    means = torch.zeros_like(sizes).index_add(0, layer_of, values) / sizes
    return means.clamp_min(1e-12).index_select(0, layer_of)
