"""ALDS: layer-wise low-rank decomposition with an exact allocation of ranks.

Liebenwein, Maalouf, Feldman, Rus, *Compressing Neural Networks: Towards Determining the Optimal
Layer-wise Decomposition*, NeurIPS 2021, arXiv 2107.11442.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, ClassVar, Literal

import torch
from torch import Tensor, nn

from autocompress.errors import SettingsError
from autocompress.methods.alds.allocation import Allocation, Choice
from autocompress.methods.alds.decomposition import Decomposer, Tail
from autocompress.methods.alds.refit import dense_outputs, refit
from autocompress.methods.alds.spectra import MEASURES, Measure
from autocompress.methods.base import Compressor, CompressorState
from autocompress.methods.shared.settings import at_least_0
from autocompress.surgery.edits import Factorize, Plan
from autocompress.task import ModelProfile, Task
from autocompress.weights.factored import factorize_layer, folding_of, recompose

Cost = Literal["macs", "params"]
Schemes = Literal["first", "all"]
__all__ = ["MEASURES", "Alds", "Config", "Cost", "Measure", "Schemes"]


@dataclass(frozen=True)
class Config:
    """Settings of ALDS.

    Args:
        keep: share of the whole model's cost that is left, in (0, 1).
        cost: in which cost is counted, "macs" or "params".
        epsilon: greatest relative error of any layer, in place of `keep`; 0 goes by `keep`.
        measure: of a layer's error: "slices" (the greatest over its slices, as published),
            "operator" (of the whole residual), "frobenius", or "data" (of its outputs on
            calibration inputs; exact with one slice and the first scheme, otherwise slices count as
            if their outputs were uncorrelated).
        max_slices: most parts that a layer's input channels are cut into. "operator" takes long
            with more than one, and gains little.
        schemes: "first" folds f × (c·k1·k2) alone, "all" every way.
        rank_caps: highest rank relative to full rank; spread over the layers from first to last.
        lambda_rank: weight of the penalty on what the allocated ranks would cut off; 0 decomposes
            before the training and trains the factors.
        cascade: budgets that lead to `keep` in equal factors, one after the other, while training.
        refit: second factors are fitted, by least squares, to what the dense layers make of the
            calibration inputs; where the model is decomposed before the training.
        calibration: training inputs that "data" measures on and factors are refitted on.
    """

    keep: float = 0.5
    cost: Cost = "macs"
    epsilon: float = 0.0
    measure: Measure = "slices"
    max_slices: int = 16
    schemes: Schemes = "all"
    rank_caps: tuple[float, ...] = (1.0,)
    lambda_rank: float = 0.0
    cascade: int = 1
    refit: bool = True
    calibration: int = 256

    def __post_init__(self) -> None:
        object.__setattr__(self, "rank_caps", tuple(self.rank_caps))
        if not 0 < self.keep < 1:
            raise SettingsError(f"keep must be in (0, 1) but got {self.keep}.")
        if self.cost not in ("macs", "params"):
            raise SettingsError(f"cost must be 'macs' or 'params' but got {self.cost!r}.")
        if not 0 <= self.epsilon < 1:
            raise SettingsError(f"epsilon must be in [0, 1) but got {self.epsilon}.")
        if self.measure not in MEASURES:
            raise SettingsError(f"measure must be one of {', '.join(MEASURES)} but got {self.measure!r}.")
        if self.schemes not in ("first", "all"):
            raise SettingsError(f"schemes must be 'first' or 'all' but got {self.schemes!r}.")
        if not self.rank_caps or not all(0 < cap <= 1 for cap in self.rank_caps):
            raise SettingsError(f"rank_caps must be in (0, 1] but got {self.rank_caps}.")
        if self.epsilon and self.cascade != 1:
            raise SettingsError(f"cascade must be 1 where epsilon is given but got {self.cascade}.")
        at_least_0("lambda_rank", self.lambda_rank)
        for name in ("max_slices", "cascade", "calibration"):
            if getattr(self, name) < 1:
                raise SettingsError(f"{name} must be at least 1 but got {getattr(self, name)}.")


@dataclass
class AldsState(CompressorState):
    """The model with factors in its layers' places, or dense with what its ranks would cut off."""

    decomposer: Decomposer
    allocation: Allocation
    dense: dict[str, nn.Module] = field(default_factory=dict)
    tails: dict[str, Tail] = field(default_factory=dict)
    steps_done: int = 0


class Alds(Compressor[AldsState]):
    """Layer-wise low rank: each layer's ranks, slices and folding chosen together for one budget.

    Loss added: λ_rank · mean_l Σ_{i > j_l} σ_i(W_l) / Σ_i σ_i(W_l), along singular vectors that are
    renewed each epoch.
    """

    Config: ClassVar[type[Config]] = Config
    level: ClassVar[int] = 2

    @classmethod
    def unsupported(cls, profile: ModelProfile) -> str | None:
        if any(layer.factorable and layer.name for layer in profile.layers):
            return None
        return "the model has no linear or convolution layer that two others can stand for"

    def attach(self, model: nn.Module, task: Task) -> AldsState:
        config = self.config
        decomposer = Decomposer(model, task, config)
        if config.cascade > 1:
            decomposer.allocate(config.keep)  # so that a budget that cannot be met is told now
        state = AldsState(model, decomposer, decomposer.allocate(self._keep(0)))
        if config.lambda_rank == 0 and config.cascade == 1:
            self._factorize(state)
        else:
            self._watch(state)
        return state

    def penalty(self, state: AldsState) -> Tensor:
        if not state.tails:
            return torch.zeros(())
        shares = [tail.share(_weight(state.model, name)) for name, tail in state.tails.items()]
        penalty: Tensor = self.config.lambda_rank * torch.stack(shares).mean()
        return penalty

    def after_step(self, state: AldsState, progress: float) -> None:
        """Each part of a cascade ends with the weights cut to its budget."""
        done = int(progress * self.config.cascade + 1e-9)
        if state.dense or done == state.steps_done or done >= self.config.cascade:
            return
        state.steps_done = done
        state.allocation = state.decomposer.allocate(self._keep(done - 1))
        for name, choice in state.allocation.choices.items():
            state.decomposer.project(name, choice)

    def after_epoch(self, state: AldsState, progress: float) -> Mapping[str, float]:
        if not state.dense and self.config.lambda_rank > 0:
            state.allocation = state.decomposer.allocate(self._keep(state.steps_done))
            self._watch(state)
        log = {"rank_error": state.allocation.error}
        for name, choice in state.allocation.choices.items():
            full = state.decomposer.full_rank(name, choice)
            log[f"ratio/{name}"] = choice.rank / full
        return log

    def plan(self, state: AldsState) -> Plan:
        if not state.dense:
            state.allocation = state.decomposer.allocate(self._keep(self.config.cascade - 1))
        return tuple(
            Factorize(name, choice.scheme, choice.slices, choice.rank)
            for name, choice in state.allocation.choices.items()
        )

    def release(self, state: AldsState) -> nn.Module:
        for name, choice in state.allocation.choices.items():
            if name in state.dense:
                self._put_back(state, name, choice)
            else:
                state.decomposer.project(name, choice)
        return state.model

    def _factorize(self, state: AldsState) -> None:
        """Factors in the layers' places, which are trained as such."""
        model, chosen = state.model, state.allocation.choices
        wanted = dense_outputs(model, list(chosen), state.decomposer.inputs) if self.config.refit else {}
        for name, choice in chosen.items():
            state.decomposer.project(name, choice)
            layer = state.dense[name] = model.get_submodule(name)
            model.set_submodule(name, factorize_layer(layer, choice.scheme, choice.slices, choice.rank))
        if wanted:
            refit(model, wanted, state.decomposer.inputs)

    def _put_back(self, state: AldsState, name: str, choice: Choice) -> None:
        layer: Any = state.dense[name]
        pair: Any = state.model.get_submodule(name)
        with torch.no_grad():
            weight = recompose(pair, folding_of(layer, choice.scheme, choice.slices))
            layer.weight = nn.Parameter(weight.contiguous(), requires_grad=layer.weight.requires_grad)
            if layer.bias is not None:
                layer.bias = pair[1].bias
        state.model.set_submodule(name, layer)

    def _keep(self, step: int) -> float:
        keep: float = self.config.keep ** (min(step + 1, self.config.cascade) / self.config.cascade)
        return keep

    def _watch(self, state: AldsState) -> None:
        if self.config.lambda_rank > 0:
            state.tails = {
                name: state.decomposer.tail(name, choice) for name, choice in state.allocation.choices.items()
            }


def _weight(model: nn.Module, name: str) -> Tensor:
    weight = model.get_submodule(name).weight
    assert isinstance(weight, Tensor)
    return weight
