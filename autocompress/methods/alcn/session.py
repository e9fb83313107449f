"""ALCN: learnable channel ratios, annealed to a hard selection that can be removed.

A. Jana, *Adaptive Layer Condensation Networks*, TechRxiv 2026,
10.36227/techrxiv.177162166.68955501.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, ClassVar

import torch
from torch import Tensor, nn

from autocompress.errors import TrialError
from autocompress.graph import analyse, within
from autocompress.graph.costs import cost_terms, group_profiles, layer_macs
from autocompress.methods.alcn.budget import Budget
from autocompress.methods.alcn.config import Config, steepest
from autocompress.methods.alcn.survival import Gates, kept_units, spread_ratios
from autocompress.methods.base import Finished, Method, ParamGroup, Session
from autocompress.methods.shared.gates import detach_gates, fold_gates, insert_gates, set_gates
from autocompress.methods.shared.strength import MakerNorms, ReaderNorms, find_readers, input_rms
from autocompress.surgery import keep_units
from autocompress.task import ModelProfile, Task
from autocompress.task.inputs import moved

_PREFIX = "alcn_"


class Alcn(Method):
    """Adaptive Layer Condensation: learns which share of each coupled channel group survives.

    Loss added: λ_sparse · Σ_g w_g·mean(s_g) + λ_ratio · mean_g (mean(s_g) − ρ_g)². The score h of a
    channel is its RMS where it is read times the norm of the weights that read it, without gradient.
    """

    Config: ClassVar[type[Config]] = Config
    steepest = staticmethod(steepest)

    @classmethod
    def unsupported(cls, profile: ModelProfile) -> str | None:
        """Refuse a model without a channel group."""
        return None if profile.groups else "no channel group of the model can be removed"

    def start(self, model: nn.Module, task: Task) -> AlcnSession:
        """Put gates on the model's channels and measure what each is worth.

        Raises:
            TrialError: no channel group of the model can be removed.
        """
        return AlcnSession(self.config, model, task)


def _ratios(names: list[str], config: Config) -> Tensor:
    """ρ of each group before training; double, `(groups,)`.

    Raises:
        TrialError: a ratio is given for a group that the model does not have.
    """
    unknown = sorted(set(config.ratios) - set(names))
    if unknown:
        raise TrialError(
            f"ratios must name channel groups of the model but got {', '.join(map(repr, unknown))} "
            f"(it has {', '.join(map(repr, names))})."
        )
    ratios = spread_ratios(len(names), config.initial_ratio, config.ratio_slope)
    for position, name in enumerate(names):
        ratios[position] = config.ratios.get(name, ratios[position])
    return ratios


class _Refresh:
    """Forward pre-hook that recomputes the gates; a class, because closures do not pickle."""

    def __init__(self, session: AlcnSession) -> None:
        self.session = session

    def __call__(self, module: nn.Module, args: Any) -> None:
        self.session.refresh()


class AlcnSession(Session):
    """A gated model, its gates and what the last forward pass computed of them."""

    def __init__(self, config: Config, model: nn.Module, task: Task) -> None:
        self.config, self.model = config, model
        self.example = task.example()
        self.analysis = within(analyse(model, self.example), task.limits_of(model))
        if not self.analysis.groups:
            raise TrialError("no channel group of the model can be removed.")
        device = next(model.parameters()).device
        macs = layer_macs(model, self.example)
        costs = group_profiles(model, self.analysis, macs)
        shares = {"uniform": [1] * len(costs)}
        shares |= {"macs": [c.macs for c in costs], "params": [c.params for c in costs]}
        weights = torch.tensor(shares[config.cost], dtype=torch.float32)
        self.weights = (weights / weights.sum().clamp_min(1e-12)).to(device)
        groups = self.analysis.groups
        widths, least = [group.width for group in groups], [group.least for group in groups]
        ratios = _ratios([group.name for group in groups], config)
        self.gates = Gates(widths, ratios.to(device), config.min_ratio, config.round_to, least)
        self.budget: Budget | None = None
        if config.budget is not None:
            of_params = config.cost == "params"
            terms = cost_terms(model, self.analysis, macs)
            amounts = [term.params if of_params else term.macs for term in terms]
            if any(n for term, n in zip(terms, amounts, strict=True) if term.groups):
                self.budget = Budget(terms, amounts, config.budget, self.gates)
        self.calibration = moved(task.example(64), device)
        self.sites = insert_gates(model, self.analysis, self.calibration)
        for name, parameter in self.gates.named_parameters():
            # Not as a sub-module, which a sequential model would try to run.
            model.register_parameter(_PREFIX + name, parameter)
        self.readers = find_readers(model, self.analysis)
        self.maker_norms = MakerNorms(self.sites, sum(widths), self.weights)
        self.survival = self.weights.new_ones(sum(widths))
        self.progress, self.calibrating = 0.0, False
        with self.starting():
            self._calibrate()
        self.hook = model.register_forward_pre_hook(_Refresh(self))

    def param_groups(self) -> list[ParamGroup]:
        """Give the gates a learning rate of their own, without weight decay."""
        gates = list(self.gates.parameters())
        own = {id(p) for p in gates}
        rest = [p for p in self.model.parameters() if p.requires_grad and id(p) not in own]
        return [ParamGroup(rest), ParamGroup(gates, self.config.gate_lr_scale, weight_decay=0.0)]

    def refresh(self) -> None:
        """Recompute survival from the present parameters and hand each layer its gates."""
        if self.calibrating:
            return
        config = self.config
        temperature = config.final_temperature**self.progress
        self.survival = self.gates.survival(self._scores(), temperature, config.reference)
        faded = min(1.0, self.progress / config.ramp) if config.ramp else 1.0
        everything = torch.cat([self.survival, self.weights.new_ones(1)])
        set_gates(self.sites, 1 - faded * (1 - everything))

    def penalty(self) -> Tensor:
        """Charge λ_sparse for survival by cost, and λ_ratio for its distance from the ratios; `()`."""
        means = self.gates.means(self.survival)
        sparse = (self.weights * means).sum()
        ratio = (means - self.gates.ratio).square().mean()
        penalty: Tensor = self.config.lambda_sparse * sparse + self.config.lambda_ratio * ratio
        return penalty

    def after_step(self, progress: float) -> None:
        """Note the progress, which cools the gates, and let go of the step's graph."""
        self.progress = progress
        if self.budget is not None:
            self.budget.hold()
        # What the last forward pass computed must not hold its graph beyond the step.
        self.survival = self.survival.detach()
        detach_gates(self.sites)

    def after_epoch(self, progress: float) -> Mapping[str, float]:
        """Calibrate anew while the gates are still soft; log the ratio of each group and the mean survival of
        its units."""
        if progress < self.config.ramp:
            # Later the gates are nearly hard, and ungated channels say nothing any more.
            self._calibrate()
        names = [group.name for group in self.analysis.groups]
        logged = {"ratio": self.gates.ratio, "survival": self.gates.means(self.survival)}
        return {
            f"{what}/{name}": value
            for what, values in logged.items()
            for name, value in zip(names, values.tolist(), strict=True)
        }

    def keep(self) -> dict[str, list[int]]:
        """The ⌈ρ·C⌉ units of highest survival of each group, or the nearest multiple of `round_to` that is
        enough."""
        with torch.no_grad():
            self.refresh()
        keep = {}
        parts = torch.split(self.survival, self.gates.widths)
        for group, survival, ratio in zip(self.analysis.groups, parts, self.gates.ratio, strict=True):
            count = int(kept_units(ratio, group.width, self.config.round_to, group.least))
            keep[group.name] = survival.topk(count).indices.sort().values.tolist()
        return keep

    def finish(self) -> Finished:
        """Cut the channels whose gates are shut from the model without gates."""
        keep = self.keep()
        plain = self.release()
        device = next(plain.parameters()).device
        cut = keep_units(plain.eval(), self.analysis, keep, moved(self.example, device))
        return Finished(cut.model, cut.edits, cut.masked)

    def release(self) -> nn.Module:
        """The trained model with its gates multiplied into its layers, its classes its own again."""
        with torch.no_grad():
            self.refresh()
        fold_gates(self.sites)
        self.hook.remove()
        for name, _ in self.gates.named_parameters():
            delattr(self.model, _PREFIX + name)
        return self.model

    def _calibrate(self) -> None:
        """Measure, ungated, how strong each channel is where it is read."""
        units = sum(self.gates.widths)
        self.calibrating = True
        set_gates(self.sites, self.weights.new_ones(units + 1))
        self.input_rms = input_rms(self.model, self.readers, self.calibration)
        self.calibrating = False
        self.reader_norms = ReaderNorms(self.readers, self.input_rms, units, self.weights)
        self.maker_scale = 1 / self.maker_norms().clamp_min(1e-6)

    def _scores(self) -> Tensor:
        """h of all units, `(units,)`: how strongly a channel is made, times what its readers make of it.

        Measured at the last calibration, and followed since through the norms of the layers' weights.
        Without gradient: a gradient through h would pull channels towards the threshold m, where they
        gather half open, and removing them would then change what was trained.
        """
        return self.maker_norms() * self.maker_scale * self.reader_norms()
