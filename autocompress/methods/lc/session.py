"""LC: training that alternates with exact compression, until the weights are what they are stored as.

Carreira-Perpiñán, arXiv 1707.01209: minimise L(w) subject to w = Δ(Θ) by an augmented Lagrangian.
"""

from __future__ import annotations

import copy
import math
from collections.abc import Mapping
from typing import ClassVar

import torch
from torch import Tensor, nn

from autocompress.errors import DivergedError, SettingsError, TrialError
from autocompress.graph import analyse, within
from autocompress.graph.costs import layer_macs
from autocompress.graph.weights import Weight, weights_of
from autocompress.methods.base import Finished, Method, Session, Stage
from autocompress.methods.lc.allocation import allocated
from autocompress.methods.lc.assignment import assignments, resolve, view_of
from autocompress.methods.lc.compression import DECODING_BYTES, Compression, stored_bytes
from autocompress.methods.lc.config import Config
from autocompress.methods.lc.scheme import Scheme, parts_of
from autocompress.methods.lc.straight_through import Hidden
from autocompress.methods.shared.replaceable import decodable, replaceable
from autocompress.surgery import Edit, Encode, Factorize
from autocompress.task import ModelProfile, Task
from autocompress.task.inputs import moved
from autocompress.task.optimizers import sgd_rate
from autocompress.weights.encoded import encode_weight
from autocompress.weights.encodings import Encoding, Factored, Quantized
from autocompress.weights.factored import TRANSPOSED, factorize_layer

_LEAST_C_STEPS = 8  # that a training is long enough for, where it has as many L steps; see `Config.spacing`


class Lc(Method):
    """Learning-compression: L steps train on L(w) + μ/2·‖w − Δ(Θ) − λ/μ‖², C steps solve for Θ."""

    Config: ClassVar[type[Config]] = Config
    stage: ClassVar[Stage] = Stage.STORAGE

    @classmethod
    def unsupported(cls, profile: ModelProfile) -> str | None:
        """Refuse a model that has vectors alone."""
        return None if profile.layers else "the model has no parameter of two dimensions"

    def start(self, model: nn.Module, task: Task) -> LcSession:
        """Compress the weights of each assignment directly, which gives the targets of the first L step.

        Raises:
            TrialError: the schemes do not fit the model's layers.
        """
        return LcSession(self.config, model, task)


class LcSession(Session):
    """The model and where its constraints stand.

    Attributes:
        compressions: of its layers.
        mu: μ of the present L step.
        limit: the greatest μ that training is stable at.
        replaceable: weights of layers that two others may stand for.
        spacing: optimiser steps from one C step to the next, where a training is long enough; each part of
            a sum takes as long as a scheme of its own.
        step: L steps that are over.
        taken: optimiser steps so far.
        solved: of these, those before the last C step.
    """

    def __init__(self, config: Config, model: nn.Module, task: Task) -> None:
        self.config, self.model = config, model
        example = task.example()
        analysis = within(analyse(model, example), task.limits_of(model))
        self.limits = analysis.limits
        every = weights_of(model, analysis, layer_macs(model, example))
        nearby = moved(example, next(model.parameters()).device)
        self.replaceable = frozenset(replaceable(model, list(every), nearby))
        others = [weight for weight in every if weight.name not in self.replaceable]
        allowed = self.replaceable.union(decodable(model, others, nearby))
        layers = [weight for weight in every if weight.name in allowed]
        self.mu, self.limit = config.mu0, _stable_mu(sgd_rate(task, model))
        self.step = self.taken = self.solved = 0
        views = resolve(assignments(config.schemes), layers, self.limits)
        with self.starting():
            views = allocated(views, model, task, self.limits)
        self.spacing = config.spacing * max(len(parts_of(scheme)) for _, scheme in views)
        with self.starting():
            self.compressions = [
                self._compress_directly(view, scheme, scale)
                for (view, scheme), scale in zip(views, self._scales(views), strict=True)
            ]
        for constraint in self.compressions if config.straight_through else ():
            if isinstance(constraint.encoding, Quantized):
                self._show(constraint, _vector(model, constraint.layers))

    def mu_of(self, constraint: Compression) -> float:
        """μ of one constraint."""
        return min(self.mu * constraint.scale, self.limit)

    def penalty(self) -> Tensor:
        """Sum μ/2·‖w − Δ(Θ)‖² over all constraints, with the μ of each; `()`."""
        pulls = [
            self.mu_of(constraint) / 2 * (weight.of(self.model) - target).square().sum()
            for constraint in self.compressions
            if constraint.hidden is None
            for weight, target in zip(constraint.layers, constraint.targets.values(), strict=True)
        ]
        return torch.stack(pulls).sum() if pulls else torch.zeros(())

    def after_step(self, progress: float) -> None:
        """A C step at the end of each L step, then the multipliers, then a larger μ."""
        self.taken += 1
        self._follow()
        done = int(progress * self.config.steps + 1e-9)
        least = min(self.spacing, self.taken / progress / _LEAST_C_STEPS)
        early = self.taken - self.solved < least and done < self.config.steps
        if done == self.step or early:
            return
        self.solved = self.taken
        for constraint in self.compressions:
            hidden = constraint.hidden
            x = _vector(self.model, constraint.layers) if hidden is None else hidden.numbers
            if not math.isfinite(float(x.sum())):
                raise DivergedError(f"the weights of {_named(constraint.layers)} became NaN or infinite.")
            constraint.solve(x, self.mu_of(constraint), self.config.multipliers and hidden is None)
            if hidden is not None:
                self._show(constraint, x)
        if done < self.config.steps:
            self.mu = self.config.mu0 * self.config.growth**done
        self.step = done
        for constraint in self.compressions:
            constraint.aim(self.mu_of(constraint))

    def after_epoch(self, progress: float) -> Mapping[str, float]:
        """How far the weights are from what they will be stored as, relative to their size, and what share
        of the bytes that takes."""
        log = {}
        for constraint in self.compressions:
            x = _vector(self.model, constraint.layers)
            distance = float((x - constraint.dense).norm() / x.norm().clamp_min(1e-12))
            log[f"distance/{constraint.layers[0].name}"] = distance
            encodings = constraint.encodings()
            log |= {
                f"ratio/{layer.name}": _share(layer, encodings[layer.name]) for layer in constraint.layers
            }
        return log

    def finish(self) -> Finished:
        """w = Δ(Θ), stored as Θ where that is smaller than w; a product as two layers where two can stand
        for one, which also saves multiplications."""
        dense = self.release()
        compact = copy.deepcopy(dense)
        edits: list[Edit] = []
        for constraint in self.compressions:
            encodings = constraint.encodings()
            for layer in constraint.layers:
                encoding = encodings[layer.name]
                if _share(layer, encoding) >= 1:
                    continue
                if isinstance(encoding, Factored) and layer.name in self.replaceable:
                    module = compact.get_submodule(layer.layer)
                    edit = Factorize(layer.layer, _scheme_of_layers(module, encoding), 1, encoding.rank)
                    pair = factorize_layer(module, edit.scheme, edit.slices, edit.rank)
                    compact.set_submodule(layer.layer, pair.train(module.training))
                    edits.append(edit)
                elif stored_bytes(encoding) + DECODING_BYTES < 4 * layer.params:
                    code = encode_weight(compact, encoding, layer.parameter)
                    edits.append(Encode(layer.layer, code.spec, layer.parameter.rpartition(".")[2]))
        return Finished(compact, tuple(edits), dense)

    def release(self) -> nn.Module:
        """The model with w = Δ(Θ), dense."""
        for constraint in self.compressions:
            self._write(constraint)
        return self.model

    @torch.no_grad()
    def _write(self, constraint: Compression) -> None:
        """w = Δ(Θ)."""
        parts = constraint.split(constraint.dense).values()
        for weight, part in zip(constraint.layers, parts, strict=True):
            weight.of(self.model).copy_(part)

    def _show(self, constraint: Compression, numbers: Tensor) -> None:
        """Let the model compute with what numbers are stored as."""
        assert isinstance(constraint.encoding, Quantized)
        self._write(constraint)
        shown = _vector(self.model, constraint.layers)
        constraint.hidden = Hidden(numbers, constraint.encoding, shown)

    def _follow(self) -> None:
        """Move what weights stand for by the last optimiser step, and round it again."""
        for constraint in self.compressions:
            hidden = constraint.hidden
            if hidden is not None:
                constraint.encoding = hidden.follow(_vector(self.model, constraint.layers))
                constraint.dense = constraint.encoding.dense()
                self._write(constraint)
                hidden.shown = _vector(self.model, constraint.layers)

    def _compress_directly(self, layers: tuple[Weight, ...], scheme: Scheme, scale: float) -> Compression:
        """A constraint with the nearest Δ(Θ) to the weights that training begins with."""
        x = _vector(self.model, layers)
        view = view_of(layers, float(x.abs().double().sum()), self.limits)
        try:
            encoding = scheme.solve(x, min(self.mu * scale, self.limit), view)
        except SettingsError as error:
            raise TrialError(f"{_named(layers)}: {error}") from error
        return Compression(layers, scheme, view, encoding, torch.zeros_like(x), scale)

    def _scales(self, views: list[tuple[tuple[Weight, ...], Scheme]]) -> list[float]:
        """Of each view's μ: (root mean square of its weights / that of all) to the power of `mu_exponent`.

        A penalty's α costs the same in every layer only if μ is the same, and zeros have no size to go by.
        """
        sizes = [sum(layer.params for layer in layers) for layers, _ in views]
        squares = [float(_vector(self.model, layers).double().square().mean()) for layers, _ in views]
        mean = sum(square * n for square, n in zip(squares, sizes, strict=True)) / sum(sizes)
        return [
            (square / mean) ** (self.config.mu_exponent / 2) if square and not scheme.penalised else 1.0
            for square, (_, scheme) in zip(squares, views, strict=True)
        ]


def _stable_mu(rate: float | None) -> float:
    """The greatest μ that the L step does not diverge at: SGD on μ/2·‖w − v‖² with Nesterov's momentum 0.9
    is stable up to lr·μ = 1.36, and a trial may double the task's rate; None is that of another optimiser."""
    return 0.5 / rate if rate else math.inf


def _named(layers: tuple[Weight, ...]) -> str:
    return ", ".join(layer.name for layer in layers)


def _vector(model: nn.Module, layers: tuple[Weight, ...]) -> Tensor:
    """The weights of layers as one vector in at least single precision, `(n,)`."""
    vector = torch.cat([layer.of(model).detach().reshape(-1) for layer in layers])
    return vector.to(torch.promote_types(vector.dtype, torch.float32))


def _scheme_of_layers(layer: nn.Module, encoding: Factored) -> int:
    """The folding of two layers for what a weight is a product by: a transposed convolution keeps its weight
    with inputs first, so that rows there are columns here."""
    scheme, kernel = encoding.folding.scheme, len(encoding.folding.shape) - 2
    return ((1 << kernel) - 1) ^ scheme if isinstance(layer, TRANSPOSED) else scheme


def _share(layer: Weight, encoding: Encoding) -> float:
    """Bytes of the stored encoding relative to those of the dense weight."""
    return stored_bytes(encoding) / (4 * layer.params)
