"""Autoplastic: which residual blocks and channels stay, by how stable they are or by gradient.

Korban, Youngs, Acton, *Autoplastic Neural Network*, 2025.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, ClassVar, Literal

import torch
from torch import Tensor, nn

from autocompress.compressors._base import Compressor, CompressorState, ParamGroup
from autocompress.compressors._gates import (
    GateSite,
    detach_gates,
    fold_gates,
    insert_gates,
    set_gates,
    unit_offsets,
)
from autocompress.compressors._plasticity import Rule, averaged, channel_stability, stability
from autocompress.errors import SettingsError
from autocompress.graph import Analysis, ResidualBranch, analyse
from autocompress.graph.branches import gate_branches, gate_name
from autocompress.graph.costs import profile
from autocompress.plan import DropBranch, KeepChannels, Plan
from autocompress.task import ModelProfile, Task

_PREFIX = "autoplastic_"


@dataclass(frozen=True)
class Config:
    """Settings of Autoplastic.

    Args:
        rule: "gradient" learns P and C through the penalty λ_arch · cost; "published" moves them once an
            epoch by stability.
        stability: ‖ΔW‖_F as published ("absolute") or over ‖W‖_F ("relative").
        epsilon: stability below which a block or channel counts as unstable.
        eta: η_a, the largest step of a gate in an epoch of the published rule.
        p_init: P to start with.
        p_min: floor of P.
        c_init: C to start with.
        c_min: floor of C.
        c_max: ceiling of C.
        decay: of the moving average of the weights, each epoch.
        threshold: blocks and channels whose gate ends below it are removed.
        lambda_arch: weight of the share of the cost that gates leave, for the "gradient" rule.
        gate_lr_scale: learning rate of P and C relative to the weights'.
    """

    rule: Literal["gradient", "published"] = "gradient"
    stability: Literal["relative", "absolute"] = "relative"
    epsilon: float = 0.85
    eta: float = 0.005
    p_init: float = 0.9
    p_min: float = 0.0
    c_init: float = 0.9
    c_min: float = 0.0
    c_max: float = 1.0
    decay: float = 0.9
    threshold: float = 0.5
    lambda_arch: float = 0.1
    gate_lr_scale: float = 10.0

    def __post_init__(self) -> None:
        if self.rule not in ("gradient", "published"):
            raise SettingsError(f"rule must be 'gradient' or 'published' but got {self.rule!r}.")
        if self.stability not in ("relative", "absolute"):
            raise SettingsError(f"stability must be 'relative' or 'absolute' but got {self.stability!r}.")
        for name in ("epsilon", "p_init", "p_min", "c_init", "c_min", "c_max", "decay", "threshold"):
            if not 0 <= getattr(self, name) <= 1:
                raise SettingsError(f"{name} must be in [0, 1] but got {getattr(self, name)}.")
        for name in ("eta", "lambda_arch"):
            if not getattr(self, name) >= 0:
                raise SettingsError(f"{name} must be at least 0 but got {getattr(self, name)}.")
        if not self.gate_lr_scale > 0:
            raise SettingsError(f"gate_lr_scale must be positive but got {self.gate_lr_scale}.")


class Inclusion(nn.Module):
    """P of a residual branch; `(B, ...)` → `(B, ...)`."""

    value: Tensor

    def __init__(self, value: float) -> None:
        super().__init__()
        self.register_buffer("value", torch.tensor(value))
        self.live: Tensor | None = None

    def forward(self, x: Tensor) -> Tensor:
        return x * (self.value if self.live is None else self.live)


@dataclass
class AutoplasticState(CompressorState):
    """The gated model, its gates, and what the published rule remembers of weights and gradients.

    Args:
        analysis: of the gated model.
        branches: each with its gate.
        sites: where channels are gated.
        p: of each branch, `(L,)`: logits under the "gradient" rule, values under the published one.
        c: of each unit of all groups, `(U,)`, likewise.
        branch_cost: share of the model's MACs in each branch, `(L,)`.
        unit_cost: share of the model's MACs of each unit, `(U,)`.
        makers: of each group the weights whose rows make its units, with the unit of each row.
        averages: moving averages of the weights, by parameter name.
        gradients: accumulated gradient norm of each unit, `(U,)`.
    """

    analysis: Analysis
    branches: list[tuple[ResidualBranch, Inclusion]]
    sites: list[GateSite]
    p: Tensor
    c: Tensor
    branch_cost: Tensor
    unit_cost: Tensor
    makers: list[tuple[str, Tensor]]
    averages: dict[str, Tensor] = field(default_factory=dict)
    gradients: Tensor | None = None
    progress: float = 0.0
    hook: Any = None


class _Refresh:
    """Forward pre-hook that hands out the gates; a class, because closures do not pickle."""

    def __init__(self, compressor: Autoplastic, state: AutoplasticState) -> None:
        self.compressor, self.state = compressor, state

    def __call__(self, module: nn.Module, args: Any) -> None:
        self.compressor.refresh(self.state)


class Autoplastic(Compressor[AutoplasticState]):
    """P on every residual branch and C on every unit of every coupled channel group.

    Under the "gradient" rule the loss gains λ_arch · Σ cost·gate, gates being σ(logit/T) with T falling
    from 1 to 0.02, so that what is trained becomes what is kept. Under the published rule gates move
    once an epoch by how stable the weights are.
    """

    Config: ClassVar[type[Config]] = Config
    level: ClassVar[int] = 1

    @classmethod
    def unsupported(cls, profile: ModelProfile) -> str | None:
        return None if profile.groups else "no channel group of the model can be removed"

    def attach(self, model: nn.Module, task: Task) -> AutoplasticState:
        config, example = self.config, task.example()
        plain = analyse(model, example)
        device = next(model.parameters()).device
        branches = [(branch, Inclusion(config.p_init)) for branch in plain.residuals]
        gated = gate_branches(model, plain, {branch.node: gate for branch, gate in branches}).to(device)
        analysis = analyse(gated, example)
        calibration = task.example(64).to(device)
        strength = _strength(gated, analysis, calibration)
        costs = profile(gated, example, analysis)
        macs = layer_macs(model, example)
        total = max(costs.macs, 1)
        unit_cost = [g.macs / total / g.width for g in costs.groups for _ in range(g.width)]
        branch_cost = [sum(macs.get(n, 0) for n in branch.branch) / total for branch, _ in branches]
        sites = insert_gates(gated, analysis, calibration)
        state = AutoplasticState(
            model=gated,
            analysis=analysis,
            branches=branches,
            sites=sites,
            p=torch.full((len(branches),), config.p_init, device=device),
            c=torch.full((unit_offsets(analysis)[-1],), config.c_init, device=device),
            branch_cost=torch.tensor(branch_cost, device=device),
            unit_cost=torch.tensor(unit_cost, device=device),
            makers=_makers(gated, analysis, device),
        )
        if config.rule == "gradient":
            # Channels that are used little start lower, so that they are the first to go.
            state.p = nn.Parameter(torch.logit(state.p, eps=0.02))
            state.c = nn.Parameter(torch.logit(state.c, eps=0.02) + strength)
            gated.register_parameter(f"{_PREFIX}p", state.p)
            gated.register_parameter(f"{_PREFIX}c", state.c)
        state.gradients = torch.zeros_like(state.c, requires_grad=False)
        state.averages = {name: p.detach().clone() for name, p in gated.named_parameters()}
        state.hook = gated.register_forward_pre_hook(_Refresh(self, state))
        return state

    def param_groups(self, state: AutoplasticState) -> list[ParamGroup]:
        gates = [gate for gate in (state.p, state.c) if isinstance(gate, nn.Parameter)]
        own = {id(gate) for gate in gates}
        rest = [p for p in state.model.parameters() if p.requires_grad and id(p) not in own]
        groups = [ParamGroup(rest)]
        if gates:
            groups.append(ParamGroup(gates, self.config.gate_lr_scale, weight_decay=0.0))
        return groups

    def gates(self, state: AutoplasticState) -> tuple[Tensor, Tensor]:
        """P of each branch and C of each unit, as the model is run with them."""
        config = self.config
        if config.rule == "published":
            return state.p, state.c
        temperature = _LAST_TEMPERATURE**state.progress
        p = config.p_min + (1 - config.p_min) * torch.sigmoid(state.p / temperature)
        c = config.c_min + (config.c_max - config.c_min) * torch.sigmoid(state.c / temperature)
        return p, c

    def refresh(self, state: AutoplasticState) -> None:
        """Hand each branch and each layer its gates."""
        p, c = self.gates(state)
        for (_, gate), value in zip(state.branches, p, strict=True):
            gate.live = value
        set_gates(state.sites, torch.cat([c, c.new_ones(1)]))

    def penalty(self, state: AutoplasticState) -> Tensor:
        if self.config.rule == "published":
            return torch.zeros(())
        p, c = self.gates(state)
        cost: Tensor = (state.branch_cost * p).sum() + (state.unit_cost * c).sum()
        return self.config.lambda_arch * cost

    def after_step(self, state: AutoplasticState, progress: float) -> None:
        state.progress = progress
        detach_gates(state.sites)
        for _, gate in state.branches:
            gate.live = None if gate.live is None else gate.live.detach()
        if self.config.rule == "published":
            assert state.gradients is not None
            state.gradients += _unit_norms(state, lambda p: p.grad)

    def after_epoch(self, state: AutoplasticState, progress: float) -> Mapping[str, float]:
        if self.config.rule == "published":
            self._move(state)
        with torch.no_grad():
            p, c = self.gates(state)
            kept = (c >= self.config.threshold).float()
            return {
                "effective_layers": float(p.sum()),
                "active_channels": float(kept.mean()),
                "mean_p": float(p.mean()) if len(p) else 1.0,
                "mean_c": float(c.mean()),
                "pruned": float(1 - (state.unit_cost * kept).sum() / state.unit_cost.sum().clamp_min(1e-12)),
            }

    def _move(self, state: AutoplasticState) -> None:
        """One epoch of the published rule, then the moving averages."""
        config = self.config
        rule = Rule(config.epsilon, config.eta, config.p_min, config.c_min, config.c_max)
        relative = config.stability == "relative"
        weights = {name: p.detach() for name, p in state.model.named_parameters()}
        stable = []
        for branch, _ in state.branches:
            names = [f"{layer}.weight" for layer in branch.branch if f"{layer}.weight" in state.averages]
            now, then = (torch.cat([d[n].reshape(-1) for n in names]) for d in (weights, state.averages))
            stable.append(stability(now, then, relative))
        if stable:
            state.p = rule.inclusion(state.p, torch.stack(stable))
        assert state.gradients is not None
        s = state.c.new_ones(len(state.c))
        for name, units in state.makers:
            known = units < len(state.c)
            s[units[known]] = channel_stability(weights[name], state.averages[name], relative)[known]
        state.c = rule.connectivity(state.c, s, state.gradients)
        state.gradients = torch.zeros_like(state.gradients)
        state.averages = {n: averaged(w, state.averages[n], config.decay) for n, w in weights.items()}

    def plan(self, state: AutoplasticState) -> Plan:
        """Branches and units whose gates are below the threshold; a group keeps one unit at least."""
        with torch.no_grad():
            p, _ = self.gates(state)
        gone = [
            gate_name(branch)
            for (branch, _), value in zip(state.branches, p.tolist(), strict=True)
            if value < self.config.threshold
        ]
        edits: list[Any] = [DropBranch(gate) for gate in gone]
        kept = self._kept(state)
        if not gone:
            pairs = [(group, keep) for group, keep in zip(state.analysis.groups, kept, strict=True)]
            edits += [KeepChannels(g.name, k) for g, k in pairs if len(k) < g.width]
            return tuple(edits)
        return tuple(edits)
