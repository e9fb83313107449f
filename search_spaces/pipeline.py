"""The whole search space of a trial: which methods, their own spaces, and how the epochs are used."""

from __future__ import annotations

import itertools
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import optuna

import autocompress as ac

_MOST_METHODS = 2  # of one trial: with more, a search of some dozen trials tries each once
_MOST_ROUNDS = 4  # of first trials
# How first trials are trained; later ones vary it.
_TRAINING = {"lr_scale": 1.0, "distill_weight": 0.7, "distill_temperature": 4.0}


@dataclass(frozen=True)
class Proposal:
    """The compressors' configurations, in order, and how a trial is trained."""

    configs: tuple[Any, ...]
    compress_share: float
    lr_scale: float
    distill_weight: float
    distill_temperature: float


def suggest(trial: optuna.Trial, profile: ac.ModelProfile, spaces: Mapping[str, ac.SearchSpace]) -> Proposal:
    """One pipeline, chosen by name where there are several, and the training of the trial."""
    methods = pipelines(spaces)
    names = list(methods)
    name = names[0] if len(names) == 1 else trial.suggest_categorical("method", names)
    return Proposal(
        configs=tuple(
            config for part in methods[name] for config in _several(spaces[part].suggest(trial, profile))
        ),
        compress_share=trial.suggest_float("compress_share", 0.3, 0.8),
        lr_scale=trial.suggest_float("lr_scale", 0.2, 2.0, log=True),
        distill_weight=trial.suggest_float("distill_weight", 0.3, 0.9),
        distill_temperature=trial.suggest_float("distill_temperature", 1.0, 6.0),
    )


def _several(configs: Any) -> tuple[Any, ...]:
    """A space of the user's own may return several configurations, which follow each other."""
    return tuple(configs) if isinstance(configs, (tuple, list)) else (configs,)


def pipelines(spaces: Mapping[str, ac.SearchSpace]) -> dict[str, tuple[str, ...]]:
    """Name → spaces in order: each method alone, and each two that go from structure to storage.

    Depth before channels before ranks before how weights are stored. A space of the user's own stands
    alone; it may return longer sequences.
    """
    levels: dict[int, list[str]] = {}
    for name in sorted(spaces):
        level = spaces[name].level
        if level is not None:
            levels.setdefault(level, []).append(name)
    choices = [["", *levels[level]] for level in sorted(levels)]
    products = [tuple(filter(None, parts)) for parts in itertools.product(*choices)]
    joined = {"+".join(parts): parts for parts in products if 0 < len(parts) <= _MOST_METHODS}
    own = {name: (name,) for name in sorted(spaces) if spaces[name].level is None}
    return {name: joined[name] for name in sorted(joined, key=lambda name: (len(joined[name]), name))} | own


def starts(
    profile: ac.ModelProfile, spaces: Mapping[str, ac.SearchSpace], trials: int
) -> list[dict[str, Any]]:
    """Parameters of the first half of all trials: every pipeline in turn, trained as usual.

    A sampler that finds something good early might never try the others. A space may say in
    `starts(profile)` with which values of its own to begin; what it leaves open is drawn.
    """
    first_trials = []
    for turn in range(_MOST_ROUNDS):
        for name, parts in pipelines(spaces).items():
            params: dict[str, Any] = {"method": name} | _TRAINING
            for part in parts:
                own = spaces[part].starts(profile)
                params |= own[turn] if turn < len(own) else {}
            first_trials.append(params)
    return first_trials[: max(1, trials // 2)]
