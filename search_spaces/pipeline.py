"""The whole search space of a trial: which method, its own space, and how the epochs are used."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import optuna

from autocompress.task import ModelProfile

Space = Callable[[optuna.Trial, ModelProfile], Any]


@dataclass(frozen=True)
class Proposal:
    """A compressor's configuration and how a trial is trained."""

    configs: tuple[Any, ...]
    compress_share: float
    lr_scale: float


def suggest(trial: optuna.Trial, profile: ModelProfile, spaces: Mapping[str, Space]) -> Proposal:
    """One of the spaces, chosen by name where there are several, and the training of the trial."""
    names = sorted(spaces)
    name = names[0] if len(names) == 1 else trial.suggest_categorical("method", names)
    return Proposal(
        configs=(spaces[name](trial, profile),),
        compress_share=trial.suggest_float("compress_share", 0.3, 0.8),
        lr_scale=trial.suggest_float("lr_scale", 0.2, 2.0, log=True),
    )
