"""Which checkpoints stay in a run folder, and what the folder takes of the disk.

"near" keeps those that are on the front, of those within noise of it the likeliest to be on it, those that
trials may start from, and what a model of these whose weights are codes was made of; what running trials
need or have stored stays until they end. "front" does the same while the search runs, and keeps the front
alone once it has come to its end. "all" keeps each.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping
from pathlib import Path

from autocompress.checkpoint.store import kept_trials, remove_checkpoint, trial_folder
from autocompress.engine.family import FamilyTree
from autocompress.result import LEAST_PROBABILITY
from autocompress.study import SearchStudy

# Of the models within noise of a front, which on few validation rows are nearly all.
_MOST_NEAR = 24


def remove_displaced(
    trials: Path, study: SearchStudy, tree: FamilyTree, reference: Mapping[str, float]
) -> None:
    """Remove the checkpoints of trials whose place better ones took.

    Args:
        trials: folder of the checkpoints.
        study: of the run.
        tree: of the run.
        reference: metrics of the reference.
    """
    there = {0, *kept_trials(trials)}
    front = {trial.number for trial in study.front(reference, there)}
    probabilities = study.front_probabilities(reference, there)
    likely = {number for number, probability in probabilities.items() if probability >= LEAST_PROBABILITY}
    near = sorted(likely - front, key=lambda number: (-probabilities[number], number))
    stay = front | {*near[:_MOST_NEAR]} | {parent.number for parent in tree.family((), (), 0).front}
    _remove(trials, study, there - stay - tree.made_of(stay) - study.needed())


def keep_front_alone(trials: Path, study: SearchStudy, reference: Mapping[str, float]) -> None:
    """Remove the checkpoints of all trials but those of the front.

    Args:
        trials: folder of the checkpoints.
        study: of the run.
        reference: metrics of the reference.
    """
    there = {0, *kept_trials(trials)}
    _remove(trials, study, there - {trial.number for trial in study.front(reference, there)})


def _remove(trials: Path, study: SearchStudy, numbers: Collection[int]) -> None:
    displaced = [number for number in numbers if number]
    if displaced:
        # First, for afterwards nothing tells that they were there.
        study.set_worth(dict.fromkeys(displaced, True))
    for number in displaced:
        remove_checkpoint(trial_folder(trials, number))
