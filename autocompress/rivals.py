"""What a candidate is up against: the points of a search, when the candidate's trial began."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from autocompress.measure import REPLICATES, Constraint, Objective
from autocompress.pareto import Floats, front_probability, is_non_dominated


@dataclass(frozen=True)
class Point:
    """A feasible trial: its metrics, and those over the resamples of the validation rows."""

    metrics: Mapping[str, float]
    replicates: Mapping[str, Sequence[float]]


@dataclass(frozen=True)
class Rivals:
    """The points that a candidate must pass to be kept.

    Args:
        objectives: of the search.
        constraints: of the search.
        reference: metrics of the reference.
        points: feasible trials that have checkpoints.
        least: probability of being on the front from which on a candidate is kept.
    """

    objectives: tuple[Objective, ...]
    constraints: tuple[Constraint, ...]
    reference: Mapping[str, float]
    points: tuple[Point, ...]
    least: float

    def shut_out(self, candidate: Point) -> bool:
        """Whether a candidate is out of bounds, or not on the front and unlikely to be were other rows drawn.

        Fronts only move on: who is shut out by the points of an earlier time is by those of a later one.
        """
        if any(c.violation(candidate.metrics, self.reference) > 0 for c in self.constraints):
            return True
        points = [*self.points, candidate]
        costs = costs_of(points, self.objectives)
        last = len(points) - 1
        if is_non_dominated(last, costs):
            return False
        return front_probability(last, costs, drawn_costs(points, self.objectives)) < self.least


def costs_of(points: Sequence[Point], objectives: Sequence[Objective]) -> Floats:
    """Objectives of points, all to be minimised; `(points, objectives)`."""
    costs = [[_sign(o) * point.metrics[o.metric] for o in objectives] for point in points]
    return np.reshape(np.asarray(costs, dtype=np.float64), (len(points), len(objectives)))


def drawn_costs(points: Sequence[Point], objectives: Sequence[Objective]) -> Floats:
    """The same over resamples of the validation rows, `(points, resamples, objectives)`; an objective that
    has no replicates is the same over all."""
    drawn = np.repeat(costs_of(points, objectives)[:, None], REPLICATES, axis=1)
    for position, point in enumerate(points):
        for column, objective in enumerate(objectives):
            values = point.replicates.get(objective.metric, [])
            if len(values) == REPLICATES:
                drawn[position, :, column] = np.asarray(values) * _sign(objective)
    return drawn


def _sign(objective: Objective) -> float:
    return -1.0 if objective.maximised else 1.0
