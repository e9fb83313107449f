"""Settings of ALCN."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Literal

from autocompress.errors import SettingsError
from autocompress.methods.shared.settings import at_least_0

Cost = Literal["uniform", "macs", "params"]


def steepest(initial_ratio: float, min_ratio: float = 0.05) -> float:
    """The slope at which the first or last ρ, half of it away from the middle, would leave (min_ratio, 1)."""
    return 2 * min(initial_ratio - min_ratio, 1 - initial_ratio)


@dataclass(frozen=True)
class Config:
    """Settings of ALCN.

    Args:
        initial_ratio: ρ of every group before training, in (min_ratio, 1).
        ratios: ρ before training of single groups, by name as `inspect` shows it, in (min_ratio, 1); the
            others begin with `initial_ratio`.
        ratio_slope: ρ rises by this much from the first group to the last, all ρ staying in (min_ratio, 1).
        min_ratio: below which no ρ falls, so that no layer collapses.
        round_to: kept units are rounded to a multiple of this, for hardware that computes by so many.
        lambda_sparse: weight of mean(s), which drives ratios down.
        lambda_ratio: weight of (mean(s) − ρ)².
        reference: m is the (1 − ρ)-quantile of a group's scores, or their "median" as published.
        cost: how groups share λ_sparse: alike ("uniform") or by their MACs or parameters.
        budget: share that is to be left of the MACs, or parameters where `cost` is these, of the layers that
            groups run through: all ρ are moved together to where it is, before training and after each step,
            so that training only shares it out. None lets λ_sparse and λ_ratio decide, and so does a model
            whose groups have no such cost.
        gate_lr_scale: learning rate of ρ and α relative to the weights'.
        final_temperature: of the sigmoid at the end; 1 at the start.
        ramp: share of the training over which gates fade in from 1.
    """

    initial_ratio: float = 0.5
    ratios: Mapping[str, float] = field(default_factory=dict)
    ratio_slope: float = 0.0
    min_ratio: float = 0.05
    round_to: int = 1
    lambda_sparse: float = 1e-3
    lambda_ratio: float = 1e-2
    reference: Literal["quantile", "median"] = "quantile"
    cost: Cost = "uniform"
    budget: float | None = None
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
        for name, ratio in self.ratios.items():
            if not self.min_ratio < ratio < 1:
                raise SettingsError(
                    f"ratios must be in ({self.min_ratio}, 1) but got {ratio} for group {name!r}."
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
        if self.budget is not None and not 0 < self.budget < 1:
            raise SettingsError(f"budget must be in (0, 1) but got {self.budget}.")
        if not self.gate_lr_scale > 0:
            raise SettingsError(f"gate_lr_scale must be positive but got {self.gate_lr_scale}.")
        if not 0 < self.final_temperature <= 1:
            raise SettingsError(f"final_temperature must be in (0, 1] but got {self.final_temperature}.")
        if not 0 <= self.ramp < 1:
            raise SettingsError(f"ramp must be in [0, 1) but got {self.ramp}.")
