"""LC: training that alternates with exact compression, until the weights are what they are stored as.

Carreira-Perpiñán, arXiv 1707.01209: minimise L(w) subject to w = Δ(Θ) by an augmented Lagrangian.
"""

from __future__ import annotations

import math
import time
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, ClassVar

import torch
from torch import Tensor, nn

from autocompress.errors import DivergedError, SettingsError, TrialError
from autocompress.graph import analyse
from autocompress.graph.costs import layer_macs
from autocompress.graph.layers import WeightLayer, weight_layers
from autocompress.methods.alds.decomposition import replaceable
from autocompress.methods.base import Compressor, CompressorState
from autocompress.methods.lc.assignment import Assignment, Schemes, assignments, resolve, view_of
from autocompress.methods.lc.compression import Compression, stored_bytes
from autocompress.methods.lc.quantization import Codebook
from autocompress.methods.lc.scheme import Scheme
from autocompress.methods.shared.settings import at_least_0
from autocompress.surgery.edits import Factorize, Plan, StoreEncoded
from autocompress.task import ModelProfile, Recipe, Task
from autocompress.weights.decoders import carry
from autocompress.weights.encodings import Encoding, Factored

_LEAST_C_STEPS = 8  # that a training is long enough for, where it has as many L steps; see `Config.spacing`


@dataclass(frozen=True)
class Config:
    """Settings of LC.

    Args:
        schemes: scheme by layer: `{"fc1": Codebook(k=4), ("fc2", "fc3"): PruneL0(keep=0.05)}`. Keys are
            names, patterns ("layer1.*", "*"), classes ("Conv2d") or parts ("1/3", the first third);
            layers of a tuple are compressed jointly, those of one string each by itself.
        mu0: μ of the first L step.
        growth: factor on μ from one L step to the next; under SGD μ ends at 0.5 / lr, where that is stable.
        steps: L steps that the compressing epochs are divided into; a C step ends each.
        multipliers: an augmented Lagrangian; otherwise a quadratic penalty.
        mu_exponent: μ of a constraint is μ times this power of its weights' root mean square relative to
            that of all. 0 makes all alike; with 1 late layers, whose weights are few and large, settle
            before the early ones, which can still adapt. Penalties and rank selection share one μ.
        spacing: optimiser steps from one C step to the next at least, or an eighth of all where those are
            few; an L step that would end earlier goes on until then. On digits (132 steps, k = 2 plus 1 %,
            5 seeds) 16 end at an error of 2.6 ± 0.1 %, 1 at 4.6 ± 0.7, 4 at 3.8 ± 0.2, 40 at 2.9 ± 0.2.
    """

    schemes: Schemes = (Assignment(("*",), Codebook(k=4)),)
    mu0: float = 1e-3
    growth: float = 1.2
    steps: int = 30
    multipliers: bool = True
    mu_exponent: float = 1.0
    spacing: int = 16

    def __post_init__(self) -> None:
        object.__setattr__(self, "schemes", assignments(self.schemes))
        if not self.mu0 > 0:
            raise SettingsError(f"mu0 must be greater than 0 but got {self.mu0}.")
        if not self.growth >= 1:
            raise SettingsError(f"growth must be at least 1 but got {self.growth}.")
        if self.steps < 1:
            raise SettingsError(f"steps must be at least 1 but got {self.steps}.")
        at_least_0("mu_exponent", self.mu_exponent)
        if self.spacing < 1:
            raise SettingsError(f"spacing must be at least 1 but got {self.spacing}.")


@dataclass
class LcState(CompressorState):
    """The model and where its constraints stand.

    Args:
        compressions: of its layers.
        mu: μ of the present L step.
        limit: the greatest μ that training is stable at.
        replaceable: layers that two others may stand for.
        step: L steps that are over.
        taken: optimiser steps so far.
        solved: of these, those before the last C step.
    """

    compressions: list[Compression]
    mu: float
    limit: float
    replaceable: frozenset[str]
    step: int = 0
    taken: int = 0
    solved: int = 0

    def mu_of(self, one: Compression) -> float:
        """μ of one constraint."""
        return min(self.mu * one.scale, self.limit)


class Lc(Compressor[LcState]):
    """Learning-compression: L steps train on L(w) + μ/2·‖w − Δ(Θ) − λ/μ‖², C steps solve for Θ."""

    Config: ClassVar[type[Config]] = Config
    level: ClassVar[int] = 3

    @classmethod
    def unsupported(cls, profile: ModelProfile) -> str | None:
        named = any(layer.name for layer in profile.layers)
        return None if named else "the model has no linear or convolution layer inside of it"

    def attach(self, model: nn.Module, task: Task) -> LcState:
        shared = "its weight is shared with another layer"
        example = task.example()
        found = weight_layers(model, analyse(model, example), layer_macs(model, example))
        layers = [one for one in found if one.reason != shared and one.name]
        names = [one.name for one in layers if one.reason is None]
        near = example.to(next(model.parameters()).device)
        able = frozenset(replaceable(model, names, near))
        state = LcState(model, [], self.config.mu0, _stable_mu(task.recipe), able)
        views = resolve(self.config.schemes, layers)
        scales = self._scales(views, model)
        for (mine, scheme), scale in zip(views, scales, strict=True):
            x = _vector(model, mine)
            view = view_of(mine, float(x.abs().double().sum()))
            start = time.perf_counter()
            try:
                # Direct compression: the nearest Δ(Θ) to the reference.
                encoding = scheme.solve(x, min(state.mu * scale, state.limit), view)
            except SettingsError as error:
                raise TrialError(f"{_named(mine)}: {error}") from error
            state.attach_seconds += time.perf_counter() - start
            state.compressions.append(Compression(mine, scheme, view, encoding, torch.zeros_like(x), scale))
        return state

    def penalty(self, state: LcState) -> Tensor:
        pulls = [
            state.mu_of(one) / 2 * (_weight(state.model, name) - target).square().sum()
            for one in state.compressions
            for name, target in one.targets.items()
        ]
        return torch.stack(pulls).sum()

    def after_step(self, state: LcState, progress: float) -> None:
        """A C step at the end of each L step, then the multipliers, then a larger μ."""
        state.taken += 1
        done = int(progress * self.config.steps + 1e-9)
        least = min(self.config.spacing, state.taken / progress / _LEAST_C_STEPS)
        early = state.taken - state.solved < least and done < self.config.steps
        if done == state.step or early:
            return
        state.solved = state.taken
        for one in state.compressions:
            x = _vector(state.model, one.layers)
            if not bool(x.isfinite().all()):
                raise DivergedError(f"the weights of {_named(one.layers)} became NaN or infinite.")
            one.solve(x, state.mu_of(one), self.config.multipliers)
        if done < self.config.steps:
            state.mu = self.config.mu0 * self.config.growth**done
        state.step = done
        for one in state.compressions:
            one.aim(state.mu_of(one))

    def after_epoch(self, state: LcState, progress: float) -> Mapping[str, float]:
        """How far the weights are from what they will be stored as, relative to their size, and what share
        of the bytes that takes."""
        log = {}
        for one in state.compressions:
            x = _vector(state.model, one.layers)
            distance = float((x - one.dense).norm() / x.norm().clamp_min(1e-12))
            log[f"distance/{one.layers[0].name}"] = distance
            encodings = one.encodings()
            log |= {f"ratio/{layer.name}": _share(layer, encodings[layer.name]) for layer in one.layers}
        return log

    def plan(self, state: LcState) -> Plan:
        edits: list[Any] = []
        for one in state.compressions:
            encodings = one.encodings()
            for layer in one.layers:
                encoding = encodings[layer.name]
                if layer.name in state.replaceable and _factors(layer, encoding):
                    assert isinstance(encoding, Factored)
                    edits.append(Factorize(layer.name, encoding.folding.scheme, 1, encoding.rank))
                elif _share(layer, encoding) < 1:
                    edits.append(StoreEncoded(layer.name, one.scheme.kind))
        return tuple(edits)

    def release(self, state: LcState) -> nn.Module:
        """The model with w = Δ(Θ), whose layers carry the encodings of their weights."""
        for one in state.compressions:
            with torch.no_grad():
                for name, weight in one.split(one.dense).items():
                    _weight(state.model, name).copy_(weight)
            for name, encoding in one.encodings().items():
                carry(state.model.get_submodule(name), encoding)
        return state.model

    def _scales(self, views: list[tuple[tuple[WeightLayer, ...], Scheme]], model: nn.Module) -> list[float]:
        """Of each view's μ: (root mean square of its weights / that of all) to the power of `mu_exponent`.

        A penalty's α costs the same in every layer only if μ is the same, and zeros have no size to go by.
        """
        sizes = [sum(layer.params for layer in mine) for mine, _ in views]
        squares = [float(_vector(model, mine).double().square().mean()) for mine, _ in views]
        mean = sum(square * n for square, n in zip(squares, sizes, strict=True)) / sum(sizes)
        return [
            (square / mean) ** (self.config.mu_exponent / 2) if square and not scheme.penalised else 1.0
            for square, (_, scheme) in zip(squares, views, strict=True)
        ]


def _stable_mu(recipe: Recipe) -> float:
    """The greatest μ that the L step does not diverge at: SGD on μ/2·‖w − v‖² with Nesterov's momentum 0.9
    is stable up to lr·μ = 1.36, and a trial may double the recipe's rate."""
    return math.inf if recipe.optimizer != "sgd" else 0.5 / recipe.lr


def _named(layers: tuple[WeightLayer, ...]) -> str:
    return ", ".join(layer.name for layer in layers)


def _vector(model: nn.Module, layers: tuple[WeightLayer, ...]) -> Tensor:
    """The weights of layers as one vector in at least single precision, `(n,)`."""
    vector = torch.cat([_weight(model, layer.name).detach().reshape(-1) for layer in layers])
    return vector.to(torch.promote_types(vector.dtype, torch.float32))


def _weight(model: nn.Module, name: str) -> Tensor:
    weight = model.get_submodule(name).weight
    assert isinstance(weight, Tensor)
    return weight


def _factors(layer: WeightLayer, encoding: Encoding) -> bool:
    """Whether two layers stand for the product, which also saves multiplications."""
    return isinstance(encoding, Factored) and _share(layer, encoding) < 1


def _share(layer: WeightLayer, encoding: Encoding) -> float:
    """Bytes of the stored encoding relative to those of the dense weight."""
    return stored_bytes(encoding) / (4 * layer.params)
