"""What a whole search came to: how its front grew, and what each method had to do with it."""

from __future__ import annotations

import math
import statistics
from collections import defaultdict
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from autocompress.measure import Objective
from autocompress.measure.subject import STATIC
from autocompress.pareto import hypervolume, non_dominated
from autocompress.report.records import TrialRecord


@dataclass(frozen=True)
class Growth:
    """The front after a trial.

    Args:
        number: of the trial; 0 is the reference.
        epochs: that all trials up to it were trained for.
        volume: hypervolume of the front, of the box between the best and the worst value of each objective
            among feasible trials.
        gain: what the trial added to it.
    """

    number: int
    epochs: int
    volume: float
    gain: float


def growth(records: Mapping[int, TrialRecord], objectives: Sequence[Objective]) -> list[Growth]:
    """How the hypervolume grew, trial by trial in the order in which they ended.

    Costs count by their logarithm, so that equal factors are equal steps.
    """
    ended = sorted((r for r in records.values() if r.ended is not None), key=lambda r: (r.ended, r.number))
    ended.sort(key=lambda r: r.number != 0)
    counted = [r for r in ended if r.metrics and r.feasible and r.state == "complete"]
    costs = _scaled([_costs(record, objectives) for record in counted])
    by_number = dict(zip((r.number for r in counted), costs, strict=True))
    grown: list[Growth] = []
    front: list[Sequence[float]] = []
    epochs, volume = 0, 0.0
    for record in ended:
        epochs += record.epochs
        gain = 0.0
        added = by_number.get(record.number)
        if added is not None and not any(all(a <= b for a, b in zip(p, added, strict=True)) for p in front):
            front = [*front, added]
            front = [front[position] for position in non_dominated(front)]
            gain = hypervolume(front, [1.0] * len(objectives)) - volume
            volume += gain
        grown.append(Growth(record.number, epochs, volume, gain))
    return grown


def _costs(record: TrialRecord, objectives: Sequence[Objective]) -> list[float]:
    values = []
    for objective in objectives:
        value = record.metrics[objective.metric]
        if objective.metric in STATIC:
            value = math.log(max(value, 1e-12))
        values.append(-value if objective.maximised else value)
    return values


def _scaled(costs: list[list[float]]) -> list[list[float]]:
    """Each objective from 0, the best, to 1, the worst."""
    if not costs:
        return []
    points = np.asarray(costs)
    low, high = points.min(0), points.max(0)
    scaled: list[list[float]] = ((points - low) / np.where(high > low, high - low, 1.0)).tolist()
    return scaled


@dataclass(frozen=True)
class Contribution:
    """What one method, or a sequence of them, did in a search.

    Args:
        label: of the method.
        trials: that ended.
        failed: of these.
        stopped: of these, early.
        epochs: that they were trained for.
        on_front: numbers of those on the front.
        share: of the final hypervolume, what its trials added.
        kept: median share of its parent's cost that a trial left; NaN where none has a result.
        change: median change of the first objective against the parent; NaN where none has a result.
    """

    label: str
    trials: int
    failed: int
    stopped: int
    epochs: int
    on_front: tuple[int, ...]
    share: float
    kept: float
    change: float


def contributions(
    records: Mapping[int, TrialRecord], grown: Iterable[Growth], cost: str, primary: str
) -> list[Contribution]:
    """What each method contributed, the one that added most first.

    Args:
        records: all trials.
        grown: of `growth`.
        cost: the metric that costs are compared in.
        primary: the first objective.
    """
    gains = {step.number: step.gain for step in grown}
    total = sum(gain for number, gain in gains.items() if number) or 1.0
    by_label: dict[str, list[TrialRecord]] = defaultdict(list)
    for record in records.values():
        if record.number and record.ended is not None and record.config:
            by_label[record.label].append(record)
    rows = [
        Contribution(
            label=label,
            trials=len(trials),
            failed=sum(r.state == "failed" for r in trials),
            stopped=sum(r.state == "stopped early" for r in trials),
            epochs=sum(r.epochs for r in trials),
            on_front=tuple(r.number for r in trials if r.standing == "on the front"),
            share=sum(gains.get(r.number, 0.0) for r in trials) / total,
            kept=_median(_of_parent(r, records, cost, ratio=True) for r in trials),
            change=_median(_of_parent(r, records, primary, ratio=False) for r in trials),
        )
        for label, trials in by_label.items()
    ]
    return sorted(rows, key=lambda row: -row.share)


def _of_parent(record: TrialRecord, records: Mapping[int, TrialRecord], metric: str, ratio: bool) -> float:
    parent = records.get(record.parent)
    if parent is None or record.state != "complete" or metric not in record.metrics.keys() & parent.metrics:
        return math.nan
    own, before = record.metrics[metric], parent.metrics[metric]
    if not ratio:
        return own - before
    return own / before if before else math.nan


def _median(values: Iterable[float]) -> float:
    known = [value for value in values if not math.isnan(value)]
    return statistics.median(known) if known else math.nan


def family_rows(front: Iterable[int], parents: Mapping[int, int]) -> dict[int, int]:
    """The row of each model of a front's family tree: a first child stands in its parent's row, others
    below.

    Args:
        front: numbers of its models.
        parents: number of a trial → of what it started from.

    Returns:
        Rows by number, of the front and all that it came from; the reference's is 0.
    """
    members = {0}
    for number in front:
        while number not in members:
            members.add(number)
            number = parents.get(number, 0)
    children: dict[int, list[int]] = defaultdict(list)
    for number in sorted(members - {0}):
        children[parents.get(number, 0)].append(number)
    rows, last = {0: 0}, 0
    waiting = [(child, position) for position, child in reversed(list(enumerate(children[0])))]
    while waiting:
        number, position = waiting.pop()
        if position:
            last += 1
        rows[number] = rows[parents.get(number, 0)] if not position else last
        waiting += [(child, place) for place, child in reversed(list(enumerate(children[number])))]
    return rows
