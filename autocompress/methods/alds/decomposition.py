"""Finds a model's low-rank allocation and cuts its layers to it."""

from __future__ import annotations

import copy
import math
from collections import OrderedDict
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from autocompress.errors import TrialError
from autocompress.graph import analyse, within
from autocompress.graph.costs import count_params, layer_macs
from autocompress.graph.weights import Weight, staying_weights, weights_of
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
from autocompress.methods.shared.replaceable import decodable, replaceable
from autocompress.task import Task
from autocompress.task.inputs import Inputs, moved, take, tensors
from autocompress.weights.factored import TRANSPOSED, layer_kind, outputs_first
from autocompress.weights.folding import Folding, schemes_of

_MOST_ELEMENTS = 1 << 28  # of all layers' inputs, a gigabyte
_MOST_BYTES = 1 << 30  # of all their moments that are kept


@dataclass(frozen=True)
class Tail:
    """Singular vectors that a rank cuts off, `(n, rows, t)` and `(n, t, columns)`, and Σ_i σ_i."""

    left: Tensor
    right: Tensor
    total: float

    def share(self, matrices: Tensor) -> Tensor:
        """Σ_{i > j} |u_iᵀ W v_i| over Σ_i σ_i, which is σ_i's share as long as the vectors are W's."""
        along = (self.left.mT @ matrices) * self.right
        ratio: Tensor = along.sum(-1).abs().sum() / self.total
        return ratio


class Decomposer:
    """A model whose weights can be cut to a low rank, and what that costs.

    Args:
        model: its weights are read anew at each allocation.
        task: whose data "data" measures on.
        settings: of ALDS.

    Attributes:
        inputs: the calibration inputs, `(B, ...)`.
        layers: weights that may be cut, by name.
        paired: names of those in whose layer's place two others can stand. Others are stored as a product,
            which saves numbers but no multiplications.
    """

    def __init__(self, model: nn.Module, task: Task, settings: Config) -> None:
        self.model, self.settings = model, settings
        example = task.example()
        analysis = within(analyse(model, example), task.limits_of(model))
        self.limits = analysis.limits
        macs = layer_macs(model, example)
        every = list(weights_of(model, analysis, macs))
        nearby = moved(example, next(model.parameters()).device)
        self.paired = frozenset(replaceable(model, every, nearby))
        others = [layer for layer in every if layer.name not in self.paired and layer.groups == 1]
        products = decodable(model, others, nearby) if settings.cost == "params" else []
        allowed = self.paired.union(products)
        layers = [layer for layer in every if layer.name in allowed and self._dense(layer)]
        self.layers = {layer.name: layer for layer in layers}
        total = macs[""] if settings.cost == "macs" else count_params(model)
        staying = staying_weights(model, analysis, macs)
        # What must stay does not count: the rest would pay for it.
        self.total = total - sum(map(self._dense, staying)) - sum(map(self._least, layers))
        self.fixed = self.total - sum(map(self._dense, layers))
        self.inputs: Inputs = moved(
            task.calibration_rows(settings.calibration), next(model.parameters()).device
        )
        self._untrained = True
        self._received: dict[str, Tensor] = {}
        self._moments: OrderedDict[tuple[str, Folding], Tensor] = OrderedDict()
        if settings.measure == "data":
            names = [layer.layer for layer in layers if self._measured_on_data(layer)]
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
                f"keep must be at least {least / self.total:.3f} of the {self.settings.cost} that may change "
                f"with these foldings but got {keep:.3f}."
            )
        return allocation

    def options(self) -> list[LayerOptions]:
        """All foldings of all layers with the spectra of their present weights."""
        options = []
        caps = self.settings.rank_caps
        for position, layer in enumerate(self.layers.values()):
            cap = caps[position * len(caps) // len(self.layers)]
            key = digest(self._weight(layer))
            foldings = [
                self._option(layer, scheme, slices, cap, key)
                for scheme in self._schemes(layer)
                for slices in self._slices(layer)
            ]
            options.append(LayerOptions(layer.name, self._dense(layer), tuple(foldings)))
        self._untrained = False
        return options

    def refitted(self, name: str) -> bool:
        """Whether its second factor can be fitted to outputs: one that reads what another layer makes."""
        return self._measured_on_data(self.layers[name]) and not self._is_transposed(self.layers[name])

    def full_rank(self, name: str, choice: Choice) -> int:
        """The rank at which that folding would cut nothing off."""
        return self.folding(name, choice).full_rank

    def folding(self, name: str, choice: Choice) -> Folding:
        """How a weight is folded that is cut so."""
        return self._folding(self.layers[name], choice.scheme, choice.slices)

    def matrices(self, name: str, choice: Choice) -> Tensor:
        """A weight folded as it is cut, `(groups · slices, rows, columns)`; gradients reach the weight."""
        return self.folding(name, choice).fold(self._weight(self.layers[name]))

    def project(self, name: str, choice: Choice) -> None:
        """Cut a weight to a rank, in place."""
        layer, folding = self.layers[name], self.folding(name, choice)
        weight = layer.of(self.model)
        with torch.no_grad():
            moments = self._moments_of(layer, folding)
            cut = folding.unfold(project(self.matrices(name, choice), choice.rank, moments))
            weight.copy_(self._turned(layer, cut).reshape(weight.shape))

    def tail(self, name: str, choice: Choice) -> Tail:
        """What a rank would cut off a weight as it is now."""
        with torch.no_grad():
            matrices = self.matrices(name, choice)
            u, s, vh = torch.linalg.svd(matrices.double(), full_matrices=False)
            left, right = u[:, :, choice.rank :].to(matrices), vh[:, choice.rank :].to(matrices)
            return Tail(left, right, float(s.sum().clamp_min(1e-12)))

    def _weight(self, layer: Weight) -> Tensor:
        """A weight as it is folded: outputs first where it is a layer's that two stand for."""
        return self._turned(layer, layer.of(self.model)).reshape(self._folding(layer, 0, 1).shape)

    def _turned(self, layer: Weight, weight: Tensor) -> Tensor:
        """A paired layer's weight as it is folded, or back as the layer keeps it; others as they are."""
        kind = layer_kind(self.model.get_submodule(layer.layer)) if layer.name in self.paired else None
        return weight if kind is None else outputs_first(kind, weight, layer.groups)

    def _folding(self, layer: Weight, scheme: int, slices: int) -> Folding:
        shape = layer.folded if layer.name in self.paired else layer.product_shape
        return Folding(shape, scheme, layer.groups, slices)

    def _option(self, layer: Weight, scheme: int, slices: int, cap: float, key: str) -> Option:
        layer_spectrum = self._spectrum(layer, self._folding(layer, scheme, slices), key)
        full = layer_spectrum.values.shape[1]
        least = self.limits.least_rank(layer.parameter, layer.shape, full)
        cost = self._unit_cost(layer, scheme, slices)
        return Option(scheme, slices, layer_spectrum, cost, max(1, int(cap * full)), least)

    def _spectrum(self, layer: Weight, folding: Folding, key: str) -> Spectrum:
        moments = self._moments_of(layer, folding)
        # Equal weights may see other inputs.
        key = key if moments is None else key + self._input_keys[layer.layer]
        weight = self._weight(layer)
        return spectrum(weight, folding, self.settings.measure, moments, key, self._untrained)

    def _measured_on_data(self, layer: Weight) -> bool:
        """Whether what a weight multiplies is known, and dense; others are measured by themselves."""
        return layer.name in self.paired and layer.kind != "Embedding"

    def _moments_of(self, layer: Weight, folding: Folding) -> Tensor | None:
        """Σ of a folding's inputs, for "data" alone; the inputs stay those of the first model."""
        if self.settings.measure != "data" or layer.layer not in self._received:
            return None
        key = layer.name, folding
        if key not in self._moments:
            module = self.model.get_submodule(layer.layer)
            self._moments[key] = patch_moments(module, self._received[layer.layer], folding)
            while len(self._moments) > 1 and sum(m.nbytes for m in self._moments.values()) > _MOST_BYTES:
                self._moments.popitem(last=False)  # it is computed again
        self._moments.move_to_end(key)
        return self._moments[key]

    def _schemes(self, layer: Weight) -> tuple[int, ...]:
        if self._is_transposed(layer):
            # All of the kernel in the second factor: the first one then multiplies what the layer is given.
            return ((1 << len(layer.folded) - 2) - 1,)
        shape = self._folding(layer, 0, 1).shape
        return (0,) if self.settings.schemes == "first" else schemes_of(shape)

    def _slices(self, layer: Weight) -> list[int]:
        if layer.name not in self.paired or layer.kind == "Embedding":
            return [1]
        return [k for k in range(1, self.settings.max_slices + 1) if layer.folded[1] % k == 0]

    def _is_transposed(self, layer: Weight) -> bool:
        return layer.name in self.paired and layer.kind in {kind.__name__ for kind in TRANSPOSED}

    def _dense(self, layer: Weight) -> int:
        return layer.macs if self.settings.cost == "macs" else layer.params

    def _least(self, layer: Weight) -> int:
        """What a layer costs with the least ranks that it must have; 0 where any will do."""
        if not self.limits.share(layer.layer):
            return 0
        full = self._folding(layer, 0, 1).full_rank
        ranks = self.limits.least_rank(layer.parameter, layer.shape, full)
        return min(self._dense(layer), ranks * self._unit_cost(layer, 0, 1))

    def _unit_cost(self, layer: Weight, scheme: int, slices: int) -> int:
        """Cost of one unit of rank in both factors."""
        folding = self._folding(layer, scheme, slices)
        channels = folding.shape[1] * layer.groups
        first = channels * math.prod(folding.column_kernel)
        second = folding.shape[0] * slices * math.prod(folding.row_kernel)
        if self.settings.cost == "params":
            return first + second
        # The first convolution strides in its own dimensions alone.
        grids = zip(layer.inputs, layer.outputs, folding.in_rows, strict=False)
        between = math.prod(read / made if row else 1.0 for read, made, row in grids)
        return round(layer.positions * (first * between + second))
