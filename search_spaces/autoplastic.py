"""What may vary in Autoplastic."""

from __future__ import annotations

import math
from statistics import NormalDist
from typing import Any

import optuna

import autocompress as ac


def move(profile: ac.ModelProfile, keep: float) -> dict[str, Any]:
    """Gates that start, by how strongly channels are read, with this share of them above the threshold: its
    square root in each group, as most layers are read and made by one."""
    start = 1 / (1 + math.exp(-NormalDist().inv_cdf(min(keep**0.5, 0.95))))
    mixing = {"autoplastic.alpha_init": 0.5} if profile.mixing_blocks else {}
    return {
        "autoplastic.rule": "gradient",
        "autoplastic.p_init": 0.98,
        "autoplastic.c_init": min(max(start, 0.3), 0.95),
        "autoplastic.c_spread": 1.0,
        "autoplastic.lambda_arch": 0.1,
        "autoplastic.gate_lr_scale": ac.Autoplastic.Config().gate_lr_scale,
        "autoplastic.threshold": 0.5,
        **mixing,
    }


def suggest(trial: optuna.Trial, profile: ac.ModelProfile) -> object:
    """The rule and its rates, where gates start, their floors, and below what they are removed."""
    rule: Any = trial.suggest_categorical("autoplastic.rule", ["gradient", "published"])
    alpha = trial.suggest_float("autoplastic.alpha_init", 0.1, 0.9) if profile.mixing_blocks else None
    own = _gradient(trial) if rule == "gradient" else _published(trial)
    threshold = trial.suggest_float("autoplastic.threshold", 0.3, 0.7)
    return ac.Autoplastic.Config(rule=rule, alpha_init=alpha, threshold=threshold, **own)


def _gradient(trial: optuna.Trial) -> dict[str, Any]:
    return {
        "p_init": trial.suggest_float("autoplastic.p_init", 0.6, 0.98),
        "c_init": trial.suggest_float("autoplastic.c_init", 0.3, 0.95),
        "c_spread": trial.suggest_float("autoplastic.c_spread", 0.0, 2.0),
        "lambda_arch": trial.suggest_float("autoplastic.lambda_arch", 0.03, 10.0, log=True),
        "gate_lr_scale": trial.suggest_float("autoplastic.gate_lr_scale", 3.0, 30.0, log=True),
    }


def _published(trial: optuna.Trial) -> dict[str, Any]:
    """Steps of up to 0.3 an epoch: with the published 0.005 no gate gets anywhere."""
    return {
        "stability": trial.suggest_categorical("autoplastic.stability", ["relative", "absolute"]),
        "epsilon": trial.suggest_float("autoplastic.epsilon", 0.5, 0.99),
        "eta": trial.suggest_float("autoplastic.eta", 0.005, 0.3, log=True),
        "p_init": trial.suggest_float("autoplastic.published_p_init", 0.5, 1.0),
        "p_min": trial.suggest_float("autoplastic.p_min", 0.0, 0.5),
        "c_init": trial.suggest_float("autoplastic.published_c_init", 0.5, 0.995),
        "c_min": trial.suggest_float("autoplastic.c_min", 0.0, 0.4),
    }
