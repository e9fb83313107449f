"""Settings of Autoplastic."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal, get_args

from autocompress.errors import SettingsError
from autocompress.methods.shared.settings import at_least_0

Rule = Literal["gradient", "published"]
RULES: tuple[Rule, ...] = get_args(Rule)


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
