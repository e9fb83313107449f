"""What may vary in ALCN."""

from __future__ import annotations

from typing import cast

import optuna

from autocompress.compressors.alcn import Config, Cost
from autocompress.task import ModelProfile


def suggest(trial: optuna.Trial, profile: ModelProfile) -> Config:
    """Initial ratios, both λ of the loss, how λ_sparse is shared out over groups, and rounding."""
    slope = 0.0
    if len(profile.groups) > 1:
        slope = trial.suggest_float("alcn.ratio_slope", -0.4, 0.4)
    return Config(
        initial_ratio=trial.suggest_float("alcn.initial_ratio", 0.1, 0.95),
        ratio_slope=slope,
        # Hardware computes 8 or 16 channels at once: widths between cost the time of the next multiple.
        round_to=trial.suggest_categorical("alcn.round_to", [1, 8, 16]),
        lambda_sparse=trial.suggest_float("alcn.lambda_sparse", 1e-3, 0.3, log=True),
        lambda_ratio=trial.suggest_float("alcn.lambda_ratio", 1e-3, 1.0, log=True),
        cost=cast(Cost, trial.suggest_categorical("alcn.cost", ["uniform", "macs", "params"])),
    )
