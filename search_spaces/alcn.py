"""What may vary in ALCN."""

from __future__ import annotations

from typing import Any, cast

import optuna

import autocompress as ac

from .allocation import Cost, allocation

# Channels that hardware computes at once: widths between cost the time of the next multiple, or more: in ONNX
# Runtime a small float network takes 1.15 of its time with 5, 11 and 22 channels in place of 16, 32 and 64,
# and 0.88 of it with 8, 16 and 24.
_AT_ONCE = 8


def move(profile: ac.ModelProfile, keep: float) -> dict[str, Any]:
    """The same ratio for all groups at first, held at a share of the MACs: most layers are read and made by
    one, so these go by its square.

    Where λ alone decides, how far a trial goes depends on how many steps it has: asked to keep 0.6 of the
    MACs, trials of small_cnn kept 0.63 after 100 steps and 0.22 after 312. Ratios by what each group would
    lose are left to the sampler: as guided moves they ended no better on two tasks, see the method's README.
    """
    config = ac.Alcn.Config(initial_ratio=min(max(keep**0.5, 0.1), 0.95), lambda_sparse=0.1, cost="macs")
    return {
        "alcn.initial_ratio": config.initial_ratio,
        "alcn.slope_share": 0.0,
        **({"alcn.by_sensitivity": False} if _probed(profile) else {}),
        "alcn.round_to": _AT_ONCE if profile.aims_at == "latency" else config.round_to,
        "alcn.lambda_sparse": config.lambda_sparse,
        "alcn.lambda_ratio": config.lambda_ratio,
        "alcn.cost": config.cost,
        "alcn.held": True,
    }


def suggest(trial: optuna.Trial, profile: ac.ModelProfile) -> object:
    """Initial ratios, both λ of the loss, how λ_sparse is shared out over groups, and rounding."""
    ratio, slope = trial.suggest_float("alcn.initial_ratio", 0.1, 0.95), 0.0
    cost = cast(Any, trial.suggest_categorical("alcn.cost", ["uniform", "macs", "params"]))
    ratios: dict[str, float] = {}
    if _probed(profile) and trial.suggest_categorical("alcn.by_sensitivity", [False, True]):
        ratios = _by_sensitivity(profile, ratio, "params" if cost == "params" else "macs")
    elif len(profile.groups) > 1:
        # A share of the steepest slope that is possible around this ratio: up to ±0.45 around a half.
        slope = ac.Alcn.steepest(ratio) * trial.suggest_float("alcn.slope_share", -0.5, 0.5)
    return ac.Alcn.Config(
        initial_ratio=ratio,
        ratios=ratios,
        ratio_slope=slope,
        round_to=trial.suggest_categorical("alcn.round_to", [1, _AT_ONCE, 16]),
        lambda_sparse=trial.suggest_float("alcn.lambda_sparse", 1e-3, 0.3, log=True),
        lambda_ratio=trial.suggest_float("alcn.lambda_ratio", 1e-3, 1.0, log=True),
        cost=cost,
        budget=ratio**2 if trial.suggest_categorical("alcn.held", [False, True]) else None,
    )


def _probed(profile: ac.ModelProfile) -> bool:
    """Whether it is known of several groups what each would lose."""
    known = bool(profile.cost_terms) and all(group.losses for group in profile.groups)
    return known and len(profile.groups) > 1


def _by_sensitivity(profile: ac.ModelProfile, ratio: float, cost: Cost) -> dict[str, float]:
    """Ratios that keep the square of this one of a cost, as if all had it, at the least predicted loss; none
    where that cannot be."""
    units = allocation(profile, ratio**2, cost) or {}
    least = ac.Alcn.Config().min_ratio
    # Half a unit less, as ALCN rounds up, and no ratio is 1.
    return {
        group.name: max((units[group.name] - 0.5) / group.width, least + 0.01)
        for group in profile.groups
        if units
    }
