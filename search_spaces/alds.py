"""What may vary in ALDS."""

from __future__ import annotations

from typing import Any, cast

import optuna

import autocompress as ac

# The share that stands for none, so that a budget of it is still less than all.
_NOTHING = 1e-6
# Of what ranks of one would save, what a budget leaves at least beside them, as it is met in whole ranks.
_CLOSE = 0.02
MEASURES = ["slices", "operator", "frobenius", "data"]


def move(profile: ac.ModelProfile, keep: float) -> dict[str, Any] | None:
    """A budget of MACs that leaves this share, where the layers that ranks can shrink have so much; else of
    parameters, of which ranks shrink more."""
    budgets = {
        cost: 1 - (1 - keep) / _factorable_share(profile, cost)
        for cost in ("macs", "params")
        if 1 - keep < _most_saved(profile, cost)
    }
    cost = next((cost for cost, wanted in budgets.items() if wanted >= 0.2), None)
    if cost is None:
        return None
    caps = {f"alds.rank_cap{i}": 1.0 for i in range(min(3, len(profile.layers)))}
    return {
        "alds.cost": cost,
        "alds.measure": ac.Alds.Config().measure,
        "alds.max_slices": 1,
        "alds.limit": "budget",
        "alds.keep": min(budgets[cost], 0.9),
        "alds.schemes": "first",
        **caps,
        "alds.penalty": False,
        "alds.cascade": 1,
    }


def suggest(trial: optuna.Trial, profile: ac.ModelProfile) -> object:
    """Budget or error, its measure, foldings, rank caps, and whether ranks are trained down first."""
    blocks = min(3, len(profile.layers))
    cost: Any = trial.suggest_categorical("alds.cost", ["macs", "params"])
    if _factorable_share(profile, cost) == _NOTHING:
        cost = "params"
    measure: Any = trial.suggest_categorical("alds.measure", MEASURES)
    slices = trial.suggest_categorical("alds.max_slices", [1, 4, 16])
    # The budget is of what may change.
    staying = getattr(profile, f"staying_{cost}")
    least = 1 - _most_saved(profile, cost, staying)
    limit = _limit(trial, _factorable_share(profile, cost, staying), least)
    return ac.Alds.Config(
        **limit,
        cost=cost,
        measure=measure,
        # Slices lower the operator norm of the whole residual by 1 % and take a hundred times as long.
        max_slices=1 if measure == "operator" else slices,
        schemes=cast(Any, trial.suggest_categorical("alds.schemes", ["first", "all"])),
        # A cap of 1 forbids nothing; lower ones keep the layers of a block dense or small.
        rank_caps=tuple(trial.suggest_float(f"alds.rank_cap{i}", 0.25, 1.0) for i in range(blocks)),
        lambda_rank=_lambda_rank(trial),
        # Budgets can be halved; an error that is allowed is allowed at once.
        cascade=trial.suggest_int("alds.cascade", 1, 3) if "keep" in limit else 1,
    )


def _limit(trial: optuna.Trial, share: float, least: float) -> dict[str, Any]:
    """A budget, or the error that every layer may have; what ranks of one leave is the least budget."""
    if trial.suggest_categorical("alds.limit", ["budget", "error"]) == "error":
        return {"epsilon": trial.suggest_float("alds.epsilon", 0.1, 0.7)}
    # What is kept of what ranks can shrink; the rest of the model is kept anyway.
    keep = 1 - share * (1 - trial.suggest_float("alds.keep", 0.2, 0.9))
    return {"keep": min(max(keep, least + _CLOSE * (1 - least)), 1 - _NOTHING)}


def _factorable_share(profile: ac.ModelProfile, cost: str, without: int = 0) -> float:
    """Share of the model's cost, without some of it, that ranks can shrink, in (0, 1]; MACs of layers that
    two can stand for."""
    shrinking = sum(getattr(layer, cost) * (1 - layer.least) for layer in _shrinking(profile, cost))
    total: int = getattr(profile, cost) - without
    return min(1.0, shrinking / total) if shrinking and total else _NOTHING


def _shrinking(profile: ac.ModelProfile, cost: str) -> list[Any]:
    """Layers that ranks can shrink: of MACs those that two can stand for."""
    return [layer for layer in profile.layers if layer.factorable or (cost == "params" and layer.product)]


def _most_saved(profile: ac.ModelProfile, cost: str, without: int = 0) -> float:
    """Share of the model's cost, without some of it, that goes where all that ranks can shrink has the least
    it can: of small layers two factors of rank one cost half, or all."""
    layers = _shrinking(profile, cost)
    saved: float = sum(getattr(layer, cost) * (1 - max(layer.least, layer.rank_one)) for layer in layers)
    total: int = getattr(profile, cost) - without
    return saved / max(1, total)


def _lambda_rank(trial: optuna.Trial) -> float:
    if not trial.suggest_categorical("alds.penalty", [False, True]):
        return 0.0
    return trial.suggest_float("alds.lambda_rank", 1e-3, 1.0, log=True)
