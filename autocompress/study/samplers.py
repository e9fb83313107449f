"""Optuna's samplers by name."""

from __future__ import annotations

import copy
from collections.abc import Container, Mapping
from typing import Any

import optuna
from optuna.distributions import BaseDistribution
from optuna.trial import FrozenTrial, TrialState

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

    def infer_relative_search_space(
        self, study: optuna.Study, trial: FrozenTrial
    ) -> dict[str, BaseDistribution]:
        """Infer what TPE does, from a study that has no older trials."""
        return super().infer_relative_search_space(_with_recent_trials(study), trial)

    def sample_relative(
        self, study: optuna.Study, trial: FrozenTrial, search_space: Mapping[str, BaseDistribution]
    ) -> dict[str, Any]:
        """Sample as TPE does, from a study that has no older trials."""
        return super().sample_relative(_with_recent_trials(study), trial, dict(search_space))


def _with_recent_trials(study: optuna.Study) -> optuna.Study:
    """A study that shows the last of its trials as they are now: a proposal asks for them dozens of times,
    and the storage reads those that run from its database each time."""
    now = study._get_trials(deepcopy=False)

    def recent(
        deepcopy: bool = True, states: Container[TrialState] | None = None, use_cache: bool = False
    ) -> list[FrozenTrial]:
        return [trial for trial in now if states is None or trial.state in states][-RECENT:]

    shown = copy.copy(study)
    # The method by which Optuna's samplers read trials.
    shown._get_trials = recent  # type: ignore[method-assign]
    return shown


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
