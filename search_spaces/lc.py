"""What may vary in LC."""

from __future__ import annotations

from typing import Any

import optuna

import autocompress as ac

_BITS = (1.0, 6.0)
SCHEMES = ["codebook", "entropy", "prune", "codebook+prune", "ternary", "half", "rank_selection", "dense"]


def move(profile: ac.ModelProfile, keep: float) -> dict[str, Any]:
    """Codebooks of this share of a float's 32 bits on average; half precision where that is a half."""
    config = ac.Lc.Config()
    params: dict[str, Any] = {
        "lc.mu0": config.mu0,
        "lc.growth": config.growth,
        "lc.steps": config.steps,
        "lc.multipliers": config.multipliers,
        "lc.straight_through": config.straight_through,
    }
    if keep < 0.5:
        bits = min(max(32 * keep, _BITS[0]), _BITS[1])
        # What is not trained loses as little by codebooks, and these are found in a tenth of the time.
        return params | {"lc.mixed": True, "lc.bits": bits, "lc.budget": False}
    params["lc.mixed"] = False
    return params | {f"lc.{part}.scheme": "half" for part in range(1, min(3, len(profile.layers)) + 1)}


def suggest(trial: optuna.Trial, profile: ac.ModelProfile) -> object:
    """Codebooks, or whatever loses least, of some bits on average, or a scheme for each third of the layers,
    alone or jointly; the schedule of μ, or levels that are trained straight through."""
    schemes: dict[str | tuple[str, ...], Any] = {}
    if trial.suggest_categorical("lc.mixed", [True, False]):
        bits = trial.suggest_float("lc.bits", *_BITS)
        budget = trial.suggest_categorical("lc.budget", [False, True])
        schemes["*"] = ac.Budget(bits=bits) if budget else ac.MixedPrecision(bits=bits)
    else:
        parts = min(3, len(profile.layers))
        for part in range(1, parts + 1):
            scheme, joint = _scheme(trial, f"lc.{part}")
            if scheme is not None:
                # By place and not by name, because a method before this one may rename layers.
                place = f"{part}/{parts}"
                schemes[(place,) if joint else place] = scheme
    return ac.Lc.Config(
        schemes=schemes or {"*": ac.Codebook(k=256)},
        mu0=trial.suggest_float("lc.mu0", 1e-4, 1e-2, log=True),
        growth=trial.suggest_float("lc.growth", 1.05, 1.4),
        steps=trial.suggest_int("lc.steps", 10, 40, step=10),
        multipliers=trial.suggest_categorical("lc.multipliers", [True, False]),
        straight_through=trial.suggest_categorical("lc.straight_through", [False, True]),
    )


def _scheme(trial: optuna.Trial, name: str) -> tuple[Any, bool]:
    """The scheme of a third, None where it stays dense, and whether its layers share it."""
    kind = trial.suggest_categorical(f"{name}.scheme", SCHEMES)
    if kind == "dense":
        return None, False
    if kind == "rank_selection":
        return ac.RankSelection(alpha=trial.suggest_float(f"{name}.alpha", 1e-9, 1e-5, log=True)), False
    if kind == "half":
        return ac.HalfPrecision(), False
    joint = trial.suggest_categorical(f"{name}.joint", [False, True])
    if kind == "ternary":
        return ac.Ternary(), joint
    if kind == "entropy":
        return ac.EntropyCodebook(bits=trial.suggest_float(f"{name}.entropy", 0.1, 3.0, log=True)), joint
    codebook = prune = None
    if "codebook" in kind:
        codebook = ac.Codebook(k=trial.suggest_int(f"{name}.k", 2, 64, log=True))
    if "prune" in kind:
        prune = ac.PruneL0(keep=trial.suggest_float(f"{name}.keep", 0.01, 0.3, log=True))
    if codebook is not None and prune is not None:
        return codebook + prune, joint
    return codebook or prune, joint
