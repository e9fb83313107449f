"""What may vary in depth pruning."""

from __future__ import annotations

from typing import cast

import optuna

from autocompress.compressors._translator import KINDS, Kind
from autocompress.compressors.depth import Config
from autocompress.task import ModelProfile

MOST_CUTS = 3


def suggest(trial: optuna.Trial, profile: ModelProfile) -> Config:
    """Number of cuts, where each begins and how far it reaches, the translator, what is trained."""
    last = len(profile.cut_points) - 1
    count = trial.suggest_int("depth.cuts", 1, min(MOST_CUTS, last))
    found: list[tuple[int, int]] = []
    for k in range(count):
        # Positions in the list of cut points: neighbouring values are neighbouring cuts.
        start = trial.suggest_int(f"depth.start{k}", 0, last - 1)
        reach = trial.suggest_int(f"depth.reach{k}", 1, max(1, last // 2))
        found.append((start, min(start + reach, last)))
    head = _head_width(trial, profile)
    return Config(
        cuts=_legal(_disjoint(sorted(found)), profile) or _first_legal(profile),
        translator=cast(Kind, trial.suggest_categorical("depth.translator", list(KINDS))),
        refine_steps=trial.suggest_int("depth.refine_steps", 0, 200, step=50),
        freeze="backbone" if head else "none",
        head_width=head,
    )


def _head_width(trial: optuna.Trial, profile: ModelProfile) -> int:
    """A frozen backbone gets a new head, where outputs are classes; one that is trained keeps its own."""
    if len(profile.outputs) != 1 or not trial.suggest_categorical("depth.freeze", [False, True]):
        return 0
    return trial.suggest_int("depth.head_width", 4, 256, log=True)


def _disjoint(cuts: list[tuple[int, int]]) -> list[tuple[int, int]]:
    """Cuts that overlap are one."""
    merged: list[tuple[int, int]] = []
    for start, end in cuts:
        if merged and start < merged[-1][1]:
            merged[-1] = (merged[-1][0], max(end, merged[-1][1]))
        else:
            merged.append((start, end))
    return merged


def _legal(cuts: list[tuple[int, int]], profile: ModelProfile) -> tuple[tuple[int, int], ...]:
    return tuple((a, b) for a, b in cuts if b in profile.cut_points[a].partners)


def _first_legal(profile: ModelProfile) -> tuple[tuple[int, int], ...]:
    found = [(a, cut.partners[0]) for a, cut in enumerate(profile.cut_points) if cut.partners]
    return tuple(found[:1])
