"""Dominance, fronts and knees of points whose objectives are all minimised."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np


def dominates(a: Sequence[float], b: Sequence[float]) -> bool:
    """Whether `a` is nowhere worse than `b` and somewhere better; all minimised."""
    pairs = list(zip(a, b, strict=True))
    return all(x <= y for x, y in pairs) and any(x < y for x, y in pairs)


def non_dominated(costs: Sequence[Sequence[float]]) -> list[int]:
    """Indices of points that no other dominates; of equal points the first; all minimised."""
    keep: list[int] = []
    for i, point in enumerate(costs):
        beaten = any(dominates(other, point) for other in costs)
        repeated = any(list(costs[j]) == list(point) for j in keep)
        if not beaten and not repeated:
            keep.append(i)
    return keep


def knee(costs: np.ndarray) -> int:
    """Index of the point farthest below the line (plane) through the front's extremes.

    Each objective is scaled to [0, 1] over the front, so the extremes lie on Σ x = 1 and the
    distance below it is 1 − Σ x up to a factor. `(points, objectives)`.
    """
    low, high = costs.min(0), costs.max(0)
    span = np.where(high > low, high - low, 1.0)
    return int(((costs - low) / span).sum(1).argmin())
