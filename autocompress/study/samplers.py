"""Optuna's samplers by name."""

from __future__ import annotations

import copy
from collections.abc import Mapping
from typing import Any

import optuna

from autocompress.errors import SettingsError

SAMPLERS = ("auto", "tpe", "nsga2", "gp", "random")
# Trials that TPE learns from. It sorts and models all that it sees for each group of parameters: with 800
# trials that took most of the driver's time.
RECENT = 300


class RecentTPESampler(optuna.samplers.TPESampler):
    """TPE over the last trials alone, so that a proposal takes as long at the end of a search as before.

    A trial starts at a place along the front of its time: the older it is, the less it says of the front
    that there is now.
    """

    def sample_relative(
        self,
        study: optuna.Study,
        trial: optuna.trial.FrozenTrial,
        search_space: Mapping[str, optuna.distributions.BaseDistribution],
    ) -> dict[str, Any]:
        """Sample as TPE does, from a study that has no older trials."""
        recent = copy.copy(study)
        # The method by which Optuna's samplers read trials.
        recent._get_trials = lambda *args, **kwargs: study._get_trials(*args, **kwargs)[-RECENT:]  # type: ignore[method-assign]
        return super().sample_relative(recent, trial, dict(search_space))


def make_sampler(name: str, seed: int) -> optuna.samplers.BaseSampler:
    """The sampler of a name; "auto" is TPE over recent trials, joint over conditional parameters.

    Raises:
        SettingsError: the name is unknown.
    """
    if name in ("auto", "tpe"):
        return RecentTPESampler(multivariate=True, group=True, seed=seed)
    if name == "nsga2":
        return optuna.samplers.NSGAIISampler(seed=seed)
    if name == "gp":
        return optuna.samplers.GPSampler(seed=seed)
    if name == "random":
        return optuna.samplers.RandomSampler(seed=seed)
    raise SettingsError(f"sampler must be one of {', '.join(SAMPLERS)} but got {name!r}.")
