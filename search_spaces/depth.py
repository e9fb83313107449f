"""What may vary in depth pruning."""

from __future__ import annotations

import itertools
from collections import Counter
from dataclasses import dataclass
from typing import Any, cast

import optuna

import autocompress as ac

MOST_CUTS = 3
TRANSLATORS = ["identity", "linear", "pooled", "residual"]
Cuts = tuple[tuple[int, int], ...]


def suggest(trial: optuna.Trial, profile: ac.ModelProfile) -> object:
    """What goes, the translator in its place, and what is trained."""
    head = _head_width(trial, profile)
    blocks = _blocks(profile)
    choose = trial.suggest_categorical("depth.choose", ["blocks", "ends"]) if blocks else "ends"
    cuts = _dropped(trial, blocks) if choose == "blocks" else _free(trial, profile)
    return ac.Depth.Config(
        cuts=cuts,
        translator=cast(Any, trial.suggest_categorical("depth.translator", TRANSLATORS)),
        refine_steps=trial.suggest_int("depth.refine_steps", 0, 200, step=50),
        freeze="backbone" if head else "none",
        head_width=head,
    )


def move(profile: ac.ModelProfile, keep: float) -> dict[str, Any] | None:
    """As many blocks as hold the MACs that are to go, those first that cost most for each parameter."""
    blocks = _blocks(profile)
    if not blocks:
        return None
    gone = list(itertools.accumulate(block.macs for block in blocks))
    wanted = (1 - keep) * profile.cut_points[-1].macs
    count = min(range(len(gone)), key=lambda last: abs(gone[last] - wanted)) + 1
    return {
        "depth.choose": "blocks",
        "depth.drop": count,
        "depth.translator": "linear",
        "depth.refine_steps": 0,
        "depth.freeze": False,
    }


def _free(trial: optuna.Trial, profile: ac.ModelProfile) -> Cuts:
    """Some cuts, where each begins and how far it reaches."""
    last = len(profile.cut_points) - 1
    count = trial.suggest_int("depth.cuts", 1, min(MOST_CUTS, last))
    cuts: list[tuple[int, int]] = []
    for k in range(count):
        # Positions in the list of cut points: neighbouring values are neighbouring cuts.
        start = trial.suggest_int(f"depth.start{k}", 0, last - 1)
        reach = trial.suggest_int(f"depth.reach{k}", 1, max(1, last // 2))
        cuts.append((start, min(start + reach, last)))
    return _legal(_disjoint(sorted(cuts)), profile) or _first_legal(profile)


@dataclass(frozen=True)
class Block:
    """Layers between neighbouring cut points of one shape, in a run of such layers.

    Args:
        run: first and last cut point of the run.
        macs: of the layers.
        params: of the layers.
    """

    run: tuple[int, int]
    macs: int
    params: int

    @property
    def worth(self) -> float:
        """MACs that each of its parameters costs."""
        return self.macs / max(1, self.params)


def _blocks(profile: ac.ModelProfile) -> list[Block]:
    """Blocks that could go, those first that cost most MACs for each parameter; one of each run stays."""
    cuts, blocks, start = profile.cut_points, [], 0
    for end in range(1, len(cuts) + 1):
        if end < len(cuts) and cuts[end].shape == cuts[start].shape and end in cuts[start].partners:
            continue
        run, pairs = (start, end - 1), itertools.pairwise(cuts[start:end])
        inside = [Block(run, b.macs - a.macs, b.params - a.params) for a, b in pairs]
        blocks += sorted(inside, key=lambda block: block.worth)[1:]
        start = end
    return sorted(blocks, key=lambda block: -block.worth)


def _dropped(trial: optuna.Trial, blocks: list[Block]) -> Cuts:
    """Of each run the first or the last blocks; as with smaller variants of a model, all stages stay."""
    count = trial.suggest_int("depth.drop", 1, len(blocks))
    kept = trial.suggest_categorical("depth.kept", ["first", "last"])
    gone = Counter(block.run for block in blocks[:count])
    if kept == "first":
        return tuple(sorted((end - k, end) for (_, end), k in gone.items()))
    return tuple(sorted((start, start + k) for (start, _), k in gone.items()))


def _head_width(trial: optuna.Trial, profile: ac.ModelProfile) -> int:
    """A frozen backbone gets a new head, where outputs are classes and the old one may go; one that is
    trained keeps its own."""
    if len(profile.outputs) != 1 or not profile.new_head:
        return 0
    if not trial.suggest_categorical("depth.freeze", [False, True]):
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


def _legal(cuts: list[tuple[int, int]], profile: ac.ModelProfile) -> Cuts:
    return tuple((a, b) for a, b in cuts if b in profile.cut_points[a].partners)


def _first_legal(profile: ac.ModelProfile) -> Cuts:
    legal = [(a, cut.partners[0]) for a, cut in enumerate(profile.cut_points) if cut.partners]
    return tuple(legal[:1])
