"""The whole search space of a trial: which methods, their own spaces, and how the epochs are used."""

from __future__ import annotations

import itertools
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from types import ModuleType
from typing import Any

import optuna

from autocompress import plugins
from autocompress.task import ModelProfile

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


def suggest(trial: optuna.Trial, profile: ModelProfile, spaces: Mapping[str, ModuleType]) -> Proposal:
    """One pipeline, chosen by name where there are several, and the training of the trial."""
    names = pipelines(spaces)
    name = names[0] if len(names) == 1 else trial.suggest_categorical("method", names)
    return Proposal(
        configs=tuple(
            config for part in name.split("+") for config in _several(spaces[part].suggest(trial, profile))
        ),
        compress_share=trial.suggest_float("compress_share", 0.3, 0.8),
        lr_scale=trial.suggest_float("lr_scale", 0.2, 2.0, log=True),
        distill_weight=trial.suggest_float("distill_weight", 0.3, 0.9),
        distill_temperature=trial.suggest_float("distill_temperature", 1.0, 6.0),
    )


def _several(found: Any) -> tuple[Any, ...]:
    """A space of the user's own may return several configurations, which follow each other."""
    return tuple(found) if isinstance(found, (tuple, list)) else (found,)


def pipelines(spaces: Mapping[str, ModuleType]) -> list[str]:
    """Each method alone, and each two that go from structure to storage, joined by "+".

    Depth before channels before ranks before how weights are stored. A space of the user's own stands
    alone; it may return longer sequences.
    """
    known = plugins.compressors()
    levels: dict[int, list[str]] = {}
    for name in sorted(spaces):
        if name in known:
            levels.setdefault(known[name].stage, []).append(name)
    choices = [["", *levels[level]] for level in sorted(levels)]
    products = [[name for name in parts if name] for parts in itertools.product(*choices)]
    joined = ["+".join(parts) for parts in products if len(parts) <= _MOST_METHODS]
    own = [name for name in sorted(spaces) if name not in known]
    return sorted(filter(None, joined), key=lambda name: (name.count("+"), name)) + own


def starts(profile: ModelProfile, spaces: Mapping[str, ModuleType], trials: int) -> list[dict[str, Any]]:
    """Parameters of the first half of all trials: every pipeline in turn, trained as usual.

    A sampler that finds something good early might never try the others. A space may define
    `starts(profile)`, values of its own to begin with; what it leaves open is drawn.
    """
    names = pipelines(spaces)
    found = []
    for turn in range(_MOST_ROUNDS):
        for name in names:
            params: dict[str, Any] = {"method": name} | _TRAINING
            for part in name.split("+"):
                own: Sequence[dict[str, Any]] = getattr(spaces[part], "starts", lambda _: [])(profile)
                params |= own[turn] if turn < len(own) else {}
            found.append(params)
    return found[: max(1, trials // 2)]
