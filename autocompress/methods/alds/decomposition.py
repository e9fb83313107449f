"""Finds a model's low-rank allocation and cuts its layers to it."""

from __future__ import annotations

import copy
import math
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from autocompress.errors import TrialError
from autocompress.graph import analyse
from autocompress.graph.costs import count_params, layer_macs
from autocompress.graph.layers import WeightLayer, weight_layers
from autocompress.methods.alds.allocation import (
    Allocation,
    Choice,
    LayerOptions,
    Option,
    allocate,
    allocate_within,
)
from autocompress.methods.alds.config import Config
from autocompress.methods.alds.patches import layer_inputs, patch_moments
from autocompress.methods.alds.spectra import Spectrum, digest, project, spectrum
from autocompress.methods.shared.replaceable import replaceable
from autocompress.task import Task
from autocompress.task.inputs import Inputs, moved, take, tensors
from autocompress.weights.factored import folding_of
from autocompress.weights.folding import Folding, schemes_of

_MOST_ELEMENTS = 1 << 28  # of all layers' inputs, a gigabyte


@dataclass(frozen=True)
class Tail:
    """Singular vectors that a rank cuts off, `(n, rows, t)` and `(n, t, columns)`, and Σ_i σ_i."""

    folding: Folding
    left: Tensor
    right: Tensor
    total: float

    def share(self, weight: Tensor) -> Tensor:
        """Σ_{i > j} |u_iᵀ W v_i| over Σ_i σ_i, which is σ_i's share as long as the vectors are W's."""
        along = (self.left.mT @ self.folding.fold(weight)) * self.right
        ratio: Tensor = along.sum(-1).abs().sum() / self.total
        return ratio


class Decomposer:
    """A model whose layers can be cut to a low rank, and what that costs.

    Args:
        model: its weights are read anew at each allocation.
        task: whose data "data" measures on.
        settings: of ALDS.

    Attributes:
        inputs: the calibration inputs, `(B, ...)`.
    """

    def __init__(self, model: nn.Module, task: Task, settings: Config) -> None:
        self.model, self.settings = model, settings
        example = task.example()
        analysis = analyse(model, example)
        macs = layer_macs(model, example)
        every = weight_layers(model, analysis, macs)
        names = [layer.name for layer in every if layer.obstacle is None and layer.name]
        allowed = set(replaceable(model, names, moved(example, next(model.parameters()).device)))
        layers = [layer for layer in every if layer.name in allowed]
        self.layers = {layer.name: layer for layer in layers}
        total = macs[""] if settings.cost == "macs" else count_params(model)
        self.total = total
        self.fixed = total - sum(self._dense(layer) for layer in layers)
        self.inputs: Inputs = moved(
            task.calibration_rows(settings.calibration), next(model.parameters()).device
        )
        self._untrained = True
        self._received: dict[str, Tensor] = {}
        self._moments: dict[tuple[str, Folding], Tensor] = {}
        if settings.measure == "data":
            names = list(self.layers)
            two = layer_inputs(model, names, take(self.inputs, slice(2)))
            most = max(16, 2 * _MOST_ELEMENTS // max(1, sum(received.numel() for received in two.values())))
            self._received = layer_inputs(model, names, take(self.inputs, slice(most)))
        self._input_keys = {name: digest(received) for name, received in self._received.items()}

    def __deepcopy__(self, memo: dict[int, Any]) -> Decomposer:
        # Never changed, and up to gigabytes: a copy has the same ones.
        for tensor in (*tensors(self.inputs), *self._received.values(), *self._moments.values()):
            memo[id(tensor)] = tensor
        copied = object.__new__(type(self))
        memo[id(self)] = copied
        copied.__dict__.update(copy.deepcopy(self.__dict__, memo))
        return copied

    def allocate(self, keep: float) -> Allocation:
        """The allocation of the model's present weights, by ε or by the share that is kept.

        Raises:
            TrialError: no allocation is that small.
        """
        options = self.options()
        if self.settings.epsilon > 0:
            return allocate_within(options, self.settings.measure, self.settings.epsilon)
        allocation = allocate(options, self.settings.measure, keep * self.total - self.fixed)
        if allocation is None:
            least = allocate_within(options, self.settings.measure, math.inf).cost + self.fixed
            raise TrialError(
                f"keep must be at least {least / self.total:.3f} of the model's {self.settings.cost} "
                f"with these foldings but got {keep:.3f}."
            )
        return allocation

    def options(self) -> list[LayerOptions]:
        """All foldings of all layers with the spectra of their present weights."""
        options = []
        caps = self.settings.rank_caps
        for position, layer in enumerate(self.layers.values()):
            cap = caps[position * len(caps) // len(self.layers)]
            weight = self.model.get_submodule(layer.name).weight
            assert isinstance(weight, Tensor)
            key = digest(weight)
            foldings = [
                self._option(layer, scheme, slices, cap, key)
                for scheme in self._schemes(layer)
                for slices in self._slices(layer)
            ]
            options.append(LayerOptions(layer.name, self._dense(layer), tuple(foldings)))
        self._untrained = False
        return options

    def full_rank(self, name: str, choice: Choice) -> int:
        """The rank at which that folding would cut nothing off."""
        layer = self.layers[name]
        return Folding(layer.shape, choice.scheme, layer.groups, choice.slices).full_rank

    def project(self, name: str, choice: Choice) -> None:
        """Cut a layer's weight to a rank, in place."""
        layer: Any = self.model.get_submodule(name)
        folding = folding_of(layer, choice.scheme, choice.slices)
        with torch.no_grad():
            moments = self._moments_of(name, layer, folding)
            layer.weight.copy_(folding.unfold(project(folding.fold(layer.weight), choice.rank, moments)))

    def tail(self, name: str, choice: Choice) -> Tail:
        """What a rank would cut off a layer's present weight."""
        layer: Any = self.model.get_submodule(name)
        folding = folding_of(layer, choice.scheme, choice.slices)
        with torch.no_grad():
            matrices = folding.fold(layer.weight)
            u, s, vh = torch.linalg.svd(matrices.double(), full_matrices=False)
            left, right = u[:, :, choice.rank :].to(matrices), vh[:, choice.rank :].to(matrices)
            return Tail(folding, left, right, float(s.sum().clamp_min(1e-12)))

    def _option(self, layer: WeightLayer, scheme: int, slices: int, cap: float, key: str) -> Option:
        layer_spectrum = self._spectrum(layer.name, scheme, slices, key)
        full = layer_spectrum.values.shape[1]
        return Option(
            scheme, slices, layer_spectrum, self._unit_cost(layer, scheme, slices), max(1, int(cap * full))
        )

    def _spectrum(self, name: str, scheme: int, slices: int, key: str) -> Spectrum:
        layer: Any = self.model.get_submodule(name)
        folding = folding_of(layer, scheme, slices)
        moments = self._moments_of(name, layer, folding)
        # Equal weights may see other inputs.
        key = key if moments is None else key + self._input_keys[name]
        return spectrum(layer.weight, folding, self.settings.measure, moments, key, self._untrained)

    def _moments_of(self, name: str, layer: nn.Module, folding: Folding) -> Tensor | None:
        """Σ of a folding's inputs, for "data" alone; the inputs stay those of the first model."""
        if self.settings.measure != "data":
            return None
        if (name, folding) not in self._moments:
            self._moments[name, folding] = patch_moments(layer, self._received[name], folding)
        return self._moments[name, folding]

    def _schemes(self, layer: WeightLayer) -> tuple[int, ...]:
        return (0,) if self.settings.schemes == "first" else schemes_of(layer.shape)

    def _slices(self, layer: WeightLayer) -> list[int]:
        return [k for k in range(1, self.settings.max_slices + 1) if layer.shape[1] % k == 0]

    def _dense(self, layer: WeightLayer) -> int:
        return layer.macs if self.settings.cost == "macs" else layer.params

    def _unit_cost(self, layer: WeightLayer, scheme: int, slices: int) -> int:
        """Cost of one unit of rank in both factors."""
        folding = Folding(layer.shape, scheme, layer.groups, slices)
        channels = layer.shape[1] * layer.groups
        first = channels * math.prod(folding.column_kernel)
        second = layer.shape[0] * slices * math.prod(folding.row_kernel)
        if self.settings.cost == "params":
            return first + second
        # The first convolution strides in its own dimensions alone.
        sizes = zip(layer.inputs, layer.outputs, folding.in_rows, strict=False)
        between = math.prod(read / made if row else 1.0 for read, made, row in sizes)
        return round(layer.positions * (first * between + second))
