"""Optuna's samplers by name."""

from __future__ import annotations

import optuna

from autocompress.errors import SettingsError

SAMPLERS = ("auto", "tpe", "nsga2", "gp", "random")


def make_sampler(name: str, seed: int) -> optuna.samplers.BaseSampler:
    """The sampler of a name; "auto" is TPE, joint over conditional parameters.

    Raises:
        SettingsError: the name is unknown.
    """
    if name in ("auto", "tpe"):
        return optuna.samplers.TPESampler(multivariate=True, group=True, seed=seed)
    if name == "nsga2":
        return optuna.samplers.NSGAIISampler(seed=seed)
    if name == "gp":
        return optuna.samplers.GPSampler(seed=seed)
    if name == "random":
        return optuna.samplers.RandomSampler(seed=seed)
    raise SettingsError(f"sampler must be one of {', '.join(SAMPLERS)} but got {name!r}.")
