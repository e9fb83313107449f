"""ALCN: learnable channel ratios, annealed to a hard selection that can be removed.

A. Jana, *Adaptive Layer Condensation Networks*, TechRxiv 2026,
10.36227/techrxiv.177162166.68955501.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, ClassVar, Literal

import torch
from torch import Tensor, nn
from torch.utils.hooks import RemovableHandle

from autocompress.errors import SettingsError, TrialError
from autocompress.graph import Analysis, analyse
from autocompress.graph.costs import profile
from autocompress.methods.alcn.survival import Gates, kept_units, spread_ratios
from autocompress.methods.base import Compressor, CompressorState, ParamGroup
from autocompress.methods.shared.gates import GateSite, detach_gates, fold_gates, insert_gates, set_gates
from autocompress.methods.shared.settings import at_least_0
from autocompress.methods.shared.strength import (
    Reader,
    find_readers,
    input_rms,
    maker_norms,
    reader_norms,
)
from autocompress.surgery.edits import KeepChannels, Plan
from autocompress.task import ModelProfile, Task

_PREFIX = "alcn_"
Cost = Literal["uniform", "macs", "params"]


def steepest(initial_ratio: float, min_ratio: float = 0.05) -> float:
    """The slope at which the first or last ρ, half of it away from the middle, would leave (min_ratio, 1)."""
    return 2 * min(initial_ratio - min_ratio, 1 - initial_ratio)


@dataclass(frozen=True)
class Config:
    """Settings of ALCN.

    Args:
        initial_ratio: ρ of every group before training, in (min_ratio, 1).
        ratio_slope: ρ rises by this much from the first group to the last, all ρ staying in (min_ratio, 1).
        min_ratio: below which no ρ falls, so that no layer collapses.
        round_to: kept units are rounded to a multiple of this, for hardware that computes by so many.
        lambda_sparse: weight of mean(s), which drives ratios down.
        lambda_ratio: weight of (mean(s) − ρ)².
        reference: m is the (1 − ρ)-quantile of a group's scores, or their "median" as published.
        cost: how groups share λ_sparse: alike ("uniform") or by their MACs or parameters.
        gate_lr_scale: learning rate of ρ and α relative to the weights'.
        final_temperature: of the sigmoid at the end; 1 at the start.
        ramp: share of the training over which gates fade in from 1.
    """

    initial_ratio: float = 0.5
    ratio_slope: float = 0.0
    min_ratio: float = 0.05
    round_to: int = 1
    lambda_sparse: float = 1e-3
    lambda_ratio: float = 1e-2
    reference: Literal["quantile", "median"] = "quantile"
    cost: Cost = "uniform"
    gate_lr_scale: float = 10.0
    final_temperature: float = 0.001
    ramp: float = 0.5

    def __post_init__(self) -> None:
        if not 0 <= self.min_ratio < 1:
            raise SettingsError(f"min_ratio must be in [0, 1) but got {self.min_ratio}.")
        if not self.min_ratio < self.initial_ratio < 1:
            raise SettingsError(
                f"initial_ratio must be in ({self.min_ratio}, 1) but got {self.initial_ratio}."
            )
        if self.round_to < 1:
            raise SettingsError(f"round_to must be at least 1 but got {self.round_to}.")
        room = steepest(self.initial_ratio, self.min_ratio)
        if not -room < self.ratio_slope < room:
            raise SettingsError(
                f"ratio_slope must leave each ratio in ({self.min_ratio}, 1), so be in ({-room:.4g}, "
                f"{room:.4g}) where initial_ratio = {self.initial_ratio}, but got {self.ratio_slope}."
            )
        for name in ("lambda_sparse", "lambda_ratio"):
            at_least_0(name, getattr(self, name))
        if self.reference not in ("quantile", "median"):
            raise SettingsError(f"reference must be 'quantile' or 'median' but got {self.reference!r}.")
        if self.cost not in ("uniform", "macs", "params"):
            raise SettingsError(f"cost must be 'uniform', 'macs' or 'params' but got {self.cost!r}.")
        if not self.gate_lr_scale > 0:
            raise SettingsError(f"gate_lr_scale must be positive but got {self.gate_lr_scale}.")
        if not 0 < self.final_temperature <= 1:
            raise SettingsError(f"final_temperature must be in (0, 1] but got {self.final_temperature}.")
        if not 0 <= self.ramp < 1:
            raise SettingsError(f"ramp must be in [0, 1) but got {self.ramp}.")


@dataclass
class AlcnState(CompressorState):
    """A gated model, its gates and what the last forward pass computed of them."""

    analysis: Analysis
    gates: Gates
    sites: list[GateSite]
    calibration: Tensor
    readers: list[Reader]
    input_rms: list[Tensor | None]
    maker_scale: Tensor
    weights: Tensor
    survival: list[Tensor]
    progress: float = 0.0
    calibrating: bool = False
    hook: RemovableHandle | None = None


class _Refresh:
    """Forward pre-hook that recomputes the gates; a class, because closures do not pickle."""

    def __init__(self, compressor: Alcn, state: AlcnState) -> None:
        self.compressor, self.state = compressor, state

    def __call__(self, module: nn.Module, args: Any) -> None:
        self.compressor.refresh(self.state)


class Alcn(Compressor[AlcnState]):
    """Adaptive Layer Condensation: learns which share of each coupled channel group survives.

    Loss added: λ_sparse · Σ_g w_g·mean(s_g) + λ_ratio · mean_g (mean(s_g) − ρ_g)². The score h of a
    channel is its RMS where it is read times the norm of the weights that read it, without gradient.
    """

    Config: ClassVar[type[Config]] = Config
    steepest = staticmethod(steepest)

    @classmethod
    def unsupported(cls, profile: ModelProfile) -> str | None:
        return None if profile.groups else "no channel group of the model can be removed"

    def attach(self, model: nn.Module, task: Task) -> AlcnState:
        analysis = analyse(model, task.example())
        if not analysis.groups:
            raise TrialError("no channel group of the model can be removed.")
        costs = profile(model, task.example(), analysis).groups
        shares = {"uniform": [1] * len(costs)}
        shares |= {"macs": [c.macs for c in costs], "params": [c.params for c in costs]}
        weights = torch.tensor(shares[self.config.cost], dtype=torch.float32)
        device, config = next(model.parameters()).device, self.config
        widths = [group.width for group in analysis.groups]
        ratios = spread_ratios(len(widths), config.initial_ratio, config.ratio_slope)
        gates = Gates(widths, ratios, config.min_ratio, config.round_to).to(device)
        calibration = task.example(64).to(device)
        sites = insert_gates(model, analysis, calibration)
        for name, parameter in gates.named_parameters():
            # Not as a sub-module, which a sequential model would try to run.
            model.register_parameter(_PREFIX + name, parameter)
        state = AlcnState(
            model=model,
            analysis=analysis,
            gates=gates,
            sites=sites,
            calibration=calibration,
            readers=find_readers(model, analysis),
            input_rms=[],
            maker_scale=torch.ones((), device=device),
            weights=(weights / weights.sum().clamp_min(1e-12)).to(device),
            survival=[],
        )
        self._calibrate(state)
        state.hook = model.register_forward_pre_hook(_Refresh(self, state))
        return state

    def param_groups(self, state: AlcnState) -> list[ParamGroup]:
        gates = list(state.gates.parameters())
        own = {id(p) for p in gates}
        rest = [p for p in state.model.parameters() if p.requires_grad and id(p) not in own]
        return [ParamGroup(rest), ParamGroup(gates, self.config.gate_lr_scale, weight_decay=0.0)]

    def refresh(self, state: AlcnState) -> None:
        """Recompute survival from the present parameters and hand each layer its gates."""
        if state.calibrating:
            return
        config = self.config
        temperature = config.final_temperature**state.progress
        state.survival = state.gates.survival(_scores(state), temperature, config.reference)
        faded = min(1.0, state.progress / config.ramp) if config.ramp else 1.0
        everything = torch.cat([*state.survival, state.weights.new_ones(1)])
        set_gates(state.sites, 1 - faded * (1 - everything))

    def penalty(self, state: AlcnState) -> Tensor:
        means = torch.stack([s.mean() for s in state.survival])
        sparse = (state.weights * means).sum()
        ratio = (means - state.gates.ratio).square().mean()
        penalty: Tensor = self.config.lambda_sparse * sparse + self.config.lambda_ratio * ratio
        return penalty

    def after_step(self, state: AlcnState, progress: float) -> None:
        state.progress = progress
        # What the last forward pass computed must not hold its graph beyond the step.
        state.survival = [s.detach() for s in state.survival]
        detach_gates(state.sites)

    def after_epoch(self, state: AlcnState, progress: float) -> Mapping[str, float]:
        if progress < self.config.ramp:
            # Later the gates are nearly hard, and ungated channels say nothing any more.
            self._calibrate(state)
        ratios = state.gates.ratio.tolist()
        named = zip(state.analysis.groups, ratios, strict=True)
        return {f"ratio/{group.name}": ratio for group, ratio in named}

    def plan(self, state: AlcnState) -> Plan:
        """The ⌈ρ·C⌉ units of highest survival of each group, or the nearest multiple of `round_to`."""
        with torch.no_grad():
            self.refresh(state)
        edits = []
        ratios = state.gates.ratio.tolist()
        for group, survival, ratio in zip(state.analysis.groups, state.survival, ratios, strict=True):
            count = kept_units(ratio, group.width, self.config.round_to)
            if count < group.width:
                keep = survival.topk(count).indices.sort().values
                edits.append(KeepChannels(group.name, tuple(keep.tolist())))
        return tuple(edits)

    def release(self, state: AlcnState) -> nn.Module:
        with torch.no_grad():
            self.refresh(state)
        fold_gates(state.sites)
        assert state.hook is not None
        state.hook.remove()
        for name, _ in state.gates.named_parameters():
            delattr(state.model, _PREFIX + name)
        return state.model

    def _calibrate(self, state: AlcnState) -> None:
        """Measure, ungated, how strong each channel is where it is read."""
        units = sum(state.gates.widths)
        state.calibrating = True
        set_gates(state.sites, state.weights.new_ones(units + 1))
        state.input_rms = input_rms(state.model, state.readers, state.calibration)
        state.calibrating = False
        with torch.no_grad():
            made = maker_norms(state.sites, units, state.weights)
            state.maker_scale = 1 / made.clamp_min(1e-6)


def _scores(state: AlcnState) -> Tensor:
    """h of all units, `(units,)`: how strongly a channel is made, times what its readers make of it.

    Measured at the last calibration, and followed since through the norms of the layers' weights.
    Without gradient: a gradient through h would pull channels towards the threshold m, where they
    gather half open, and removing them would then change what was trained.
    """
    units = sum(state.gates.widths)
    with torch.no_grad():
        made = maker_norms(state.sites, units, state.weights) * state.maker_scale
        return made * reader_norms(state.readers, state.input_rms, units, state.weights)
