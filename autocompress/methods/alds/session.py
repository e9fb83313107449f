"""ALDS: layer-wise low-rank decomposition with an exact allocation of ranks.

Liebenwein, Maalouf, Feldman, Rus, *Compressing Neural Networks: Towards Determining the Optimal
Layer-wise Decomposition*, NeurIPS 2021, arXiv 2107.11442.
"""

from __future__ import annotations

import copy
from collections.abc import Mapping
from typing import ClassVar

import torch
from torch import Tensor, nn

from autocompress.methods.alds.config import Config
from autocompress.methods.alds.decomposition import Decomposer, Tail
from autocompress.methods.alds.refit import dense_outputs, refit
from autocompress.methods.base import Finished, Method, Session, Stage
from autocompress.surgery import Edit, Encode, Factorize
from autocompress.task import ModelProfile, Task
from autocompress.weights.encoded import encode_weight
from autocompress.weights.encodings import Factored
from autocompress.weights.factored import factor_matrices, factorize_layer


class Alds(Method):
    """Layer-wise low rank: each layer's ranks, slices and folding chosen together for one budget.

    Loss added: λ_rank · mean_l Σ_{i > j_l} σ_i(W_l) / Σ_i σ_i(W_l), along singular vectors that are
    renewed each epoch.
    """

    Config: ClassVar[type[Config]] = Config
    stage: ClassVar[Stage] = Stage.RANKS

    @classmethod
    def unsupported(cls, profile: ModelProfile) -> str | None:
        """Refuse a model without a weight that can be factorised."""
        if any(layer.factorable or layer.product for layer in profile.layers):
            return None
        return "the model has no parameter that is a matrix"

    def start(self, model: nn.Module, task: Task) -> AldsSession:
        """Choose the first ranks from the weights as they are, and watch what these would cut off.

        Raises:
            TrialError: no allocation of ranks is small enough.
        """
        return AldsSession(self.config, model, task)


class AldsSession(Session):
    """The model with factors in its layers' places, or dense with what its ranks would cut off.

    Attributes:
        allocation: the ranks as they are chosen now.
        factorized: whether factors stand in the layers' places.
        edits: that put them there.
        tails: layer → what its rank would cut off, which the penalty is on.
        steps_done: parts of a cascade that are over.
    """

    def __init__(self, config: Config, model: nn.Module, task: Task) -> None:
        self.config, self.model = config, model
        self.decomposer = Decomposer(model, task, config)
        with self.starting():
            if config.cascade > 1:
                self.decomposer.allocate(config.keep)  # so that a budget that cannot be met is told now
            self.allocation = self.decomposer.allocate(self._keep(0))
        self.factorized = config.lambda_rank == 0 and config.cascade == 1
        self.edits: tuple[Edit, ...] = ()
        self.tails: dict[str, Tail] = {}
        self.steps_done = 0
        with self.starting():
            if self.factorized:
                self.edits = self._factorize_and_refit()
            else:
                self._watch()

    def penalty(self) -> Tensor:
        """Charge λ_rank for the mean share of singular values that ranks would cut off; `()`, 0 once cut."""
        if not self.tails:
            return torch.zeros(())
        matrices, choices = self.decomposer.matrices, self.allocation.choices
        shares = [tail.share(matrices(name, choices[name])) for name, tail in self.tails.items()]
        penalty: Tensor = self.config.lambda_rank * torch.stack(shares).mean()
        return penalty

    def after_step(self, progress: float) -> None:
        """Each part of a cascade ends with the weights cut to its budget."""
        done = int(progress * self.config.cascade + 1e-9)
        if self.factorized or done == self.steps_done or done >= self.config.cascade:
            return
        self.steps_done = done
        self.allocation = self.decomposer.allocate(self._keep(done - 1))
        self._project()
        self._choose_anew()

    def after_epoch(self, progress: float) -> Mapping[str, float]:
        """Choose ranks anew while weights are dense; log the error and the share of each layer's rank."""
        if not self.factorized:
            self._choose_anew()
        log = {"rank_error": self.allocation.error}
        for name, choice in self.allocation.choices.items():
            full = self.decomposer.full_rank(name, choice)
            log[f"ratio/{name}"] = choice.rank / full
        return log

    def finish(self) -> Finished:
        """The factors as they were trained; or, of a model that was trained dense, of its weights cut to
        their ranks."""
        if self.factorized:
            return Finished(self.model, self.edits, self.model)
        self.allocation = self.decomposer.allocate(self._keep(self.config.cascade - 1))
        self._project()
        compact = copy.deepcopy(self.model)
        return Finished(compact, self._factorize(compact), self.model)

    def _factorize_and_refit(self) -> tuple[Edit, ...]:
        """Put factors in the places of weights; where they are refitted, to what the dense ones make."""
        chosen = [name for name in self.allocation.choices if self.decomposer.refitted(name)]
        chosen = chosen if self.config.refit else []
        wanted = dense_outputs(self.model, chosen, self.decomposer.inputs) if chosen else {}
        self._project()
        edits = self._factorize(self.model)
        if wanted:
            refit(self.model, wanted, self.decomposer.inputs)
        return edits

    def _project(self) -> None:
        """Cut the weights to the allocated ranks, in place."""
        for name, choice in self.allocation.choices.items():
            self.decomposer.project(name, choice)

    def _factorize(self, model: nn.Module) -> tuple[Edit, ...]:
        """Put factors in the places of a model's weights, which have these ranks; the edits that do."""
        edits: list[Edit] = []
        for name, choice in self.allocation.choices.items():
            weight, folding = self.decomposer.layers[name], self.decomposer.folding(name, choice)
            if name in self.decomposer.paired:
                layer = model.get_submodule(weight.layer)
                pair = factorize_layer(layer, choice.scheme, choice.slices, choice.rank)
                model.set_submodule(weight.layer, pair.train(layer.training))
                edits.append(Factorize(weight.layer, choice.scheme, choice.slices, choice.rank))
            else:
                matrix = folding.fold(weight.of(model).detach().reshape(folding.shape))
                product = Factored(*factor_matrices(matrix, choice.rank), folding)
                code = encode_weight(model, product, weight.parameter)
                edits.append(Encode(weight.layer, code.spec, weight.parameter.rpartition(".")[2]))
        return tuple(edits)

    def _keep(self, step: int) -> float:
        keep: float = self.config.keep ** (min(step + 1, self.config.cascade) / self.config.cascade)
        return keep

    def _choose_anew(self) -> None:
        """Choose ranks within the present budget for the weights as they are now, where those are watched."""
        if self.config.lambda_rank > 0:
            self.allocation = self.decomposer.allocate(self._keep(self.steps_done))
            self._watch()

    def _watch(self) -> None:
        if self.config.lambda_rank > 0:
            self.tails = {
                name: self.decomposer.tail(name, choice) for name, choice in self.allocation.choices.items()
            }
