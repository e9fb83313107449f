"""Dominance, fronts and knees of points whose objectives are all minimised."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from numpy.typing import ArrayLike, NDArray

Floats = NDArray[np.float64]


def dominates(a: Sequence[float], b: Sequence[float]) -> bool:
    """Whether `a` is nowhere worse than `b` and somewhere better; all minimised."""
    pairs = list(zip(a, b, strict=True))
    return all(x <= y for x, y in pairs) and any(x < y for x, y in pairs)


def non_dominated(costs: ArrayLike, tolerances: ArrayLike | None = None) -> list[int]:
    """Indices of points that no other dominates; of equal points the first.

    Args:
        costs: `(points, objectives)`.
        tolerances: differences of a pair up to the greater of both are ties, `(points, objectives)`; none
            where every difference counts. As long as one objective alone has any, dominance has no cycles.
    """
    points = np.asarray(costs, dtype=np.float64)
    if not points.size:
        return []
    kept: list[int] = []
    for index in np.flatnonzero(~_dominated(points, _given(tolerances, points))):
        if not any(np.array_equal(points[index], points[earlier]) for earlier in kept):
            kept.append(int(index))
    return kept


def is_non_dominated(position: int, costs: ArrayLike, tolerances: ArrayLike | None = None) -> bool:
    """Whether a point is among `non_dominated`, in time that grows with the number of points.

    Args:
        position: of the point.
        costs: `(points, objectives)`.
        tolerances: as for `non_dominated`.
    """
    points = np.asarray(costs, dtype=np.float64)
    equal_before = (points[:position] == points[position]).all(-1).any()
    return not (equal_before or _dominated(points, _given(tolerances, points), [position])[0])


def front_probabilities(
    costs: ArrayLike, replicates: ArrayLike, tolerances: ArrayLike | None = None
) -> Floats:
    """How often each point is on the front when all are measured on other rows, `(points,)`.

    Args:
        costs: as measured, `(points, objectives)`.
        replicates: as measured on each resample of the rows, the same for all points,
            `(points, resamples, objectives)`.
        tolerances: as for `non_dominated`.
    """
    points, drawn = np.asarray(costs, dtype=np.float64), np.asarray(replicates, dtype=np.float64)
    share: Floats = 1 - _dominated(np.moveaxis(drawn, 1, 0), _given(tolerances, points)).mean(0)
    return share


def front_probability(
    position: int, costs: ArrayLike, replicates: ArrayLike, tolerances: ArrayLike | None = None
) -> float:
    """The same of one point, in time that grows with the number of points, not with its square.

    Args:
        position: of the point.
        costs: as measured, `(points, objectives)`.
        replicates: as for `front_probabilities`.
        tolerances: as for `non_dominated`.
    """
    points, drawn = np.asarray(costs, dtype=np.float64), np.asarray(replicates, dtype=np.float64)
    dominated = _dominated(np.moveaxis(drawn, 1, 0), _given(tolerances, points), [position])
    return float(1 - dominated[:, 0].mean())


def _given(tolerances: ArrayLike | None, points: Floats) -> Floats:
    return np.zeros_like(points) if tolerances is None else np.asarray(tolerances, dtype=np.float64)


def _dominated(points: Floats, tolerances: Floats, judged: Sequence[int] | None = None) -> NDArray[np.bool_]:
    """Whether some other point dominates each that is judged, or all; `(..., points, objectives)` →
    `(..., judged)`."""
    positions = range(points.shape[-2]) if judged is None else judged
    dominated = np.zeros((*points.shape[:-2], len(positions)), dtype=bool)
    for place, position in enumerate(positions):
        most = np.maximum(tolerances, tolerances[position])
        point = points[..., position, None, :]
        better = (points < point - most).any(-1) & (points <= point + most).all(-1)
        dominated[..., place] = better.any(-1)
    return dominated


def domination_ranks(costs: ArrayLike) -> NDArray[np.int64]:
    """The front that each point is on: 0 where no other dominates it, and so on without those before.

    Non-dominated sorting of Deb et al., *NSGA-II*, 10.1109/4235.996017; equal points are on the same front.

    Args:
        costs: `(points, objectives)`.

    Returns:
        `(points,)`.
    """
    points = np.asarray(costs, dtype=np.float64)
    no_worse = np.ones((len(points), len(points)), dtype=bool)
    for values in points.T:
        no_worse &= values[:, None] <= values
    dominating = no_worse & ~no_worse.T
    left = dominating.sum(0)
    ranks = np.full(len(points), -1, dtype=np.int64)
    rank = 0
    while (ranks < 0).any():
        front = (left == 0) & (ranks < 0)
        ranks[front] = rank
        left -= dominating[front].sum(0)
        rank += 1
    return ranks


def epsilon_net(costs: ArrayLike) -> list[int]:
    """Points in an order whose every beginning is spread well: the best of the first objective, then always
    the point farthest from those before it; the first of several.

    Clarkson, *Nearest-neighbor searching and metric space dimensions*, 2006, by which Salinas et al., *A
    multi-objective perspective on jointly tuning hardware and hyperparameters*, arXiv 2106.05680, order a
    front. Each objective is scaled to [0, 1] over the points, as their units differ.

    Args:
        costs: `(points, objectives)`, at least one point.

    Returns:
        Indices of the points.
    """
    points = np.asarray(costs, dtype=np.float64)
    low, high = points.min(0), points.max(0)
    scaled = (points - low) / np.where(high > low, high - low, 1.0)
    order = [int(points[:, 0].argmin())]
    distances = np.full(len(points), np.inf)
    while len(order) < len(points):
        distances = np.minimum(distances, np.linalg.norm(scaled - scaled[order[-1]], axis=1))
        distances[order[-1]] = -1.0
        order.append(int(distances.argmax()))
    return order


def hypervolume(costs: ArrayLike, bound: ArrayLike) -> float:
    """The volume that points dominate below a bound, in slices along the last objective; all minimised.

    Args:
        costs: `(points, objectives)`.
        bound: beyond which a point counts for nothing, `(objectives,)`.
    """
    points, most = np.asarray(costs, dtype=np.float64), np.asarray(bound, dtype=np.float64)
    points = points[(points < most).all(-1)] if points.size else points
    if not len(points):
        return 0.0
    if len(most) == 1:
        return float(most[0] - points.min())
    if len(most) == 2:
        points = points[points[:, 0].argsort()]
        widths = np.diff(points[:, 0], append=most[0])
        return float(widths @ (most[1] - np.minimum.accumulate(points[:, 1])))
    points = points[points[:, -1].argsort()]
    starts = points[:, -1]
    depths = np.diff(starts, append=most[-1])
    slices = (hypervolume(points[: i + 1, :-1], most[:-1]) * depth for i, depth in enumerate(depths) if depth)
    return float(sum(slices))


def preference(costs: ArrayLike) -> list[int]:
    """Indices of points, the best first: front by front, and each in the order of its ε-net."""
    points = np.asarray(costs, dtype=np.float64)
    ranks = domination_ranks(points)
    order: list[int] = []
    for rank in range(int(ranks.max(initial=-1)) + 1):
        front = np.flatnonzero(ranks == rank)
        order += front[epsilon_net(points[front])].tolist()
    return order


def knee(costs: np.ndarray) -> int:
    """Index of the point farthest below the line (plane) through the front's extremes.

    Each objective is scaled to [0, 1] over the front, so the extremes lie on Σ x = 1 and the
    distance below it is 1 − Σ x up to a factor. `(points, objectives)`.
    """
    low, high = costs.min(0), costs.max(0)
    span = np.where(high > low, high - low, 1.0)
    return int(((costs - low) / span).sum(1).argmin())
