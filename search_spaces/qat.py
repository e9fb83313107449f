"""What may vary in quantisation-aware fine-tuning."""

from __future__ import annotations

from typing import Any

import optuna

import autocompress as ac


def move(profile: ac.ModelProfile, keep: float) -> dict[str, Any]:
    """The defaults: it costs what it did, and loses less by int8, whatever share is asked for."""
    config = ac.Qat.Config()
    return {
        "qat.activations": config.activations,
        "qat.start": config.start,
        "qat.freeze": config.freeze,
    }


def suggest(trial: optuna.Trial, profile: ac.ModelProfile) -> object:
    """Whether activations are rounded too, from when on, and until when their ranges are followed."""
    if not trial.suggest_categorical("qat.activations", [True, False]):
        return ac.Qat.Config(activations=False)
    return ac.Qat.Config(
        start=trial.suggest_float("qat.start", 0.0, 0.5),
        freeze=trial.suggest_float("qat.freeze", 0.5, 1.0),
    )
