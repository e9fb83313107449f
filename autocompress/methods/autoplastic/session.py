"""Autoplastic: which residual blocks, channels and paths stay, by how stable they are or by gradient.

Korban, Youngs, Acton, *Autoplastic Neural Network*, 2025.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, ClassVar, Literal, get_args

import torch
from torch import Tensor, nn
from torch.utils.hooks import RemovableHandle

from autocompress.errors import SettingsError, TrialError
from autocompress.methods.autoplastic.install import add_attention, install
from autocompress.methods.autoplastic.learned_gates import Learned
from autocompress.methods.autoplastic.memory import Memory
from autocompress.methods.autoplastic.plasticity import Plasticity
from autocompress.methods.autoplastic.switches import Switches, Values
from autocompress.methods.base import Compressor, CompressorState, ParamGroup
from autocompress.methods.shared.settings import at_least_0
from autocompress.surgery.edits import Plan
from autocompress.task import ModelProfile, Task

Rule = Literal["gradient", "published"]
RULES: tuple[Rule, ...] = get_args(Rule)
_PREFIX = "autoplastic_"


@dataclass(frozen=True)
class Config:
    """Settings of Autoplastic.

    Args:
        rule: "gradient" learns P and C through the penalty λ_arch · cost; "published" moves them once an
            epoch by stability.
        stability: ‖ΔW‖_F as published ("absolute") or over ‖W̄‖_F ("relative").
        epsilon: stability below which a block or channel counts as unstable.
        eta: η_a, the largest step of a gate in an epoch of the published rule.
        p_init: P to start with.
        p_min: floor of P.
        c_init: C to start with.
        c_min: floor of C.
        c_max: ceiling of C.
        c_spread: how far C starts from c_init for each standard deviation by which a channel is read
            more strongly than others, in logits, for the "gradient" rule.
        alpha_init: α of mixing blocks to start with; None leaves each its own, and 0.9 where attention
            is added.
        add_attention: put an attention path beside each convolution of a residual branch.
        decay: of the moving average of the weights, each epoch.
        threshold: blocks and channels whose gate ends below it are removed.
        alpha_threshold: paths whose share ends below it are removed.
        lambda_arch: weight of the share of the cost that gates leave, for the "gradient" rule.
        gate_lr_scale: learning rate of P, C and α relative to the weights', for the "gradient" rule.
    """

    rule: Rule = "gradient"
    stability: Literal["relative", "absolute"] = "relative"
    epsilon: float = 0.85
    eta: float = 0.005
    p_init: float = 0.9
    p_min: float = 0.0
    c_init: float = 0.7
    c_min: float = 0.0
    c_max: float = 1.0
    c_spread: float = 1.0
    alpha_init: float | None = None
    add_attention: bool = False
    decay: float = 0.9
    threshold: float = 0.5
    alpha_threshold: float = 0.1
    lambda_arch: float = 1.0
    gate_lr_scale: float = 10.0

    def __post_init__(self) -> None:
        if self.rule not in RULES:
            raise SettingsError(f"rule must be 'gradient' or 'published' but got {self.rule!r}.")
        if self.stability not in ("relative", "absolute"):
            raise SettingsError(f"stability must be 'relative' or 'absolute' but got {self.stability!r}.")
        for name in (
            "epsilon", "p_init", "p_min", "c_init", "c_min", "c_max", "alpha_init", "decay", "threshold"
        ):  # fmt: skip
            if not 0 <= (getattr(self, name) or 0) <= 1:
                raise SettingsError(f"{name} must be in [0, 1] but got {getattr(self, name)}.")
        if not self.p_min <= self.p_init or self.p_min == 1:
            raise SettingsError(
                f"p_min must be at most p_init = {self.p_init} and below 1 but got {self.p_min}."
            )
        if not self.c_min <= self.c_init <= self.c_max or self.c_min == self.c_max:
            raise SettingsError(
                f"c_init must be from c_min = {self.c_min} to c_max = {self.c_max} but got {self.c_init}."
            )
        if self.rule == "gradient":
            self._check_logits()
        if not 0 <= self.alpha_threshold < 0.5:
            raise SettingsError(f"alpha_threshold must be in [0, 0.5) but got {self.alpha_threshold}.")
        for name in ("eta", "c_spread", "lambda_arch"):
            at_least_0(name, getattr(self, name))
        if not self.gate_lr_scale > 0:
            raise SettingsError(f"gate_lr_scale must be positive but got {self.gate_lr_scale}.")

    def _check_logits(self) -> None:
        """Gates that are learned as logits cannot start at either end of their range."""
        ranges = {"p_init": (self.p_min, 1.0), "c_init": (self.c_min, self.c_max), "alpha_init": (0.0, 1.0)}
        for name, (low, high) in ranges.items():
            value = getattr(self, name)
            if value is not None and not low < value < high:
                raise SettingsError(
                    f"{name} must be in ({low}, {high}) where rule = 'gradient', whose gates are learned as "
                    f"logits, but got {value}."
                )


@dataclass
class AutoplasticState(CompressorState):
    """The gated model, its gates, and what the published rule remembers of weights and gradients.

    Args:
        switches: the gates on the model.
        raw: P, C and α as they are stored: logits under the "gradient" rule, values under the published.
        memory: of weights and gradients; None but for the published rule.
        progress: share of the training that is done.
    """

    switches: Switches
    raw: Values
    memory: Memory | None
    progress: float = 0.0
    hook: RemovableHandle | None = field(default=None)


class _Refresh:
    """Forward pre-hook that hands out the gates; a class, because closures do not pickle."""

    def __init__(self, compressor: Autoplastic, state: AutoplasticState) -> None:
        self.compressor, self.state = compressor, state

    def __call__(self, module: nn.Module, args: Any) -> None:
        self.state.switches.turn(self.compressor.values(self.state))


class Autoplastic(Compressor[AutoplasticState]):
    """P on every residual branch, C on every unit of every coupled channel group, α on mixing blocks.

    Under the "gradient" rule the loss gains λ_arch · Σ cost·gate. In the first half of the training λ_arch
    fades in; in the second gates move to 0 or 1, whichever side of the threshold they are, so that what is
    trained becomes what is kept. Under the published rule P and C move once an epoch by how stable the
    weights are, and α is trained in unstable blocks alone.
    """

    Config: ClassVar[type[Config]] = Config
    level: ClassVar[int] = 1

    @classmethod
    def unsupported(cls, profile: ModelProfile) -> str | None:
        return None if profile.groups else "no channel group of the model can be removed"

    def attach(self, model: nn.Module, task: Task) -> AutoplasticState:
        config = self.config
        if config.add_attention:
            add_attention(model, task)
        switches = install(model, task)
        raw = switches.start(config.p_init, config.c_init, config.alpha_init)
        if config.rule == "gradient":
            _check_alphas(switches, raw.alpha)
        state = AutoplasticState(
            model=switches.model,
            switches=switches,
            raw=raw if config.rule == "published" else self._learned.logits(raw, switches.strength),
            memory=Memory.of(switches) if config.rule == "published" else None,
        )
        for name in switches.mixings:
            # Its own α is written back at the end.
            switches.gate(f"{name}.conv_share").weight.requires_grad_(False)
        for name in self._trained:
            gate = nn.Parameter(getattr(state.raw, name))
            state.model.register_parameter(_PREFIX + name, gate)
            state.raw = state.raw._replace(**{name: gate})
        state.hook = state.model.register_forward_pre_hook(_Refresh(self, state))
        return state

    @property
    def _plasticity(self) -> Plasticity:
        config = self.config
        names = ("decay", "epsilon", "eta", "p_min", "c_min", "c_max")
        return Plasticity(config.stability == "relative", *(getattr(config, name) for name in names))

    @property
    def _learned(self) -> Learned:
        config = self.config
        return Learned(config.p_min, config.c_min, config.c_max, config.c_spread)

    @property
    def _trained(self) -> tuple[str, ...]:
        """Gates that are parameters; the published rule moves P and C itself."""
        return Values._fields if self.config.rule == "gradient" else ("alpha",)

    def param_groups(self, state: AutoplasticState) -> list[ParamGroup]:
        gates = [gate for gate in state.raw if isinstance(gate, nn.Parameter)]
        own = {id(gate) for gate in gates}
        rest = [p for p in state.model.parameters() if p.requires_grad and id(p) not in own]
        # η_a = η_w / 20 as published.
        scale = self.config.gate_lr_scale if self.config.rule == "gradient" else 1 / 20
        return [ParamGroup(rest), ParamGroup(gates, scale, weight_decay=0.0)]

    def values(self, state: AutoplasticState) -> Values:
        """P, C and α as the model is run with them."""
        if state.memory is not None:
            p, c, alpha = state.raw
            return Values(p, c, torch.where(state.memory.open, alpha, alpha.detach()))
        soft, share = self._learned.gates(state.raw), 2 * state.progress - 1
        if share <= 0:
            return soft
        t, edge = self.config.threshold, self.config.alpha_threshold
        hard = state.switches.hardened(soft, t, edge, opened=True)
        return Values(*((1 - share) * a + share * b.detach() for a, b in zip(soft, hard, strict=True)))

    def final(self, state: AutoplasticState) -> Values:
        """Gates as they are carried out."""
        with torch.no_grad():
            t, edge = self.config.threshold, self.config.alpha_threshold
            return state.switches.hardened(self.values(state), t, edge)

    def penalty(self, state: AutoplasticState) -> Tensor:
        if self.config.rule == "published":
            return torch.zeros(())
        # Fading in: at first no block or channel has shown yet what it is worth.
        share = state.switches.cost(self.values(state))
        penalty: Tensor = self.config.lambda_arch * min(1.0, 2 * state.progress) * share
        return penalty

    def after_step(self, state: AutoplasticState, progress: float) -> None:
        state.progress = progress
        if state.memory is not None:
            state.memory.collect(state.model)
            state.memory.hold(state.raw.alpha)
        self._hand_out(state)

    def after_epoch(self, state: AutoplasticState, progress: float) -> Mapping[str, float]:
        """The paper's log line: L_eff, share of active channels, P, α, mean C, share of MACs pruned."""
        if state.memory is not None:
            state.raw = state.memory.epoch(state.raw, state.switches, self._plasticity)
            self._hand_out(state)
        kept = self.final(state)
        with torch.no_grad():
            values = self.values(state)
        return state.switches.line(values, kept)

    def _hand_out(self, state: AutoplasticState) -> None:
        """Give each gate its value without the graph of the last step, which it would hold."""
        with torch.no_grad():
            state.switches.turn(self.values(state))

    def plan(self, state: AutoplasticState) -> Plan:
        return state.switches.plan(self.final(state))

    def release(self, state: AutoplasticState) -> nn.Module:
        assert state.hook is not None
        state.hook.remove()
        final = self.final(state)
        for name in self._trained:
            delattr(state.model, _PREFIX + name)
        return state.switches.fold(final)


def _check_alphas(switches: Switches, alphas: Tensor) -> None:
    """Refuse a block's own α that no logit stands for; raises TrialError."""
    for name, alpha in zip(switches.mixings, alphas.tolist(), strict=True):
        if not 0 < alpha < 1:
            raise TrialError(
                f"α of mixing block {name!r} must be in (0, 1) where rule = 'gradient' but is {alpha}; "
                "give alpha_init, or rule = 'published'."
            )
