"""Fronts and ε-nets against the papers' definitions, written out point by point."""

from __future__ import annotations

import math
import random

import numpy as np
import pytest

from autocompress.pareto import (
    domination_ranks,
    epsilon_net,
    front_probabilities,
    front_probability,
    hypervolume,
    is_non_dominated,
    non_dominated,
    preference,
)

Point = tuple[float, ...]


def beats(a: Point, b: Point) -> bool:
    return a != b and all(x <= y for x, y in zip(a, b, strict=True))


def peeled(points: list[Point]) -> list[list[int]]:
    """Non-dominated sorting: what nothing beats is a front; without it, again."""
    fronts, left = [], set(range(len(points)))
    while left:
        front = sorted(i for i in left if not any(beats(points[j], points[i]) for j in left))
        fronts.append(front)
        left -= set(front)
    return fronts


def farthest_first(points: list[Point]) -> list[int]:
    """Clarkson's greedy ε-net of points scaled to the unit cube, from the least first coordinate."""
    lows, highs = [min(c) for c in zip(*points, strict=True)], [max(c) for c in zip(*points, strict=True)]
    spans = [high - low or 1.0 for low, high in zip(lows, highs, strict=True)]
    unit = [tuple((x - low) / span for x, low, span in zip(p, lows, spans, strict=True)) for p in points]
    order = [min(range(len(points)), key=lambda i: (points[i][0], i))]
    while len(order) < len(points):
        left = [i for i in range(len(points)) if i not in order]
        gaps = {i: min(math.dist(unit[i], unit[chosen]) for chosen in order) for i in left}
        order.append(min(left, key=lambda i: (-gaps[i], i)))
    return order


def instances() -> list[list[Point]]:
    rng = random.Random(0)
    drawn = []
    for _ in range(200):
        objectives, count, scale = rng.randint(1, 3), rng.randint(1, 12), rng.choice([1.0, 1e6])
        # Nowhere a tie, or many of them, which are exact in floating point: spans are powers of two.
        draw = rng.choice([rng.random, lambda: 2.0 * rng.randrange(3)])
        drawn.append([tuple(scale * draw() for _ in range(objectives)) for _ in range(count)])
    return drawn


@pytest.fixture(scope="module")
def drawn() -> list[list[Point]]:
    return instances()


def test_each_point_is_on_the_front_that_peeling_finds(drawn: list[list[Point]]) -> None:
    for points in drawn:
        ranks = domination_ranks(points)
        assert [sorted(i for i in range(len(points)) if ranks[i] == r) for r in range(max(ranks) + 1)] == (
            peeled(points)
        )


def test_an_epsilon_net_starts_at_the_best_and_goes_to_the_farthest_point(drawn: list[list[Point]]) -> None:
    for points in drawn:
        assert epsilon_net(points) == farthest_first(points)


def test_points_are_preferred_by_front_then_by_the_net_of_their_front(drawn: list[list[Point]]) -> None:
    for points in drawn:
        expected = [front[i] for front in peeled(points) for i in farthest_first([points[j] for j in front])]
        assert preference(points) == expected


def test_the_units_of_an_objective_do_not_change_an_epsilon_net() -> None:
    points = [(0.0, 8.0), (1.0, 4.0), (2.0, 2.0), (4.0, 0.0)]
    assert epsilon_net([(x, 1024 * y) for x, y in points]) == epsilon_net(points) == [0, 3, 1, 2]


def test_a_single_objective_is_an_order() -> None:
    assert preference([(3.0,), (1.0,), (2.0,), (1.0,)]) == [1, 3, 2, 0]


def test_no_points_have_no_order() -> None:
    assert preference([]) == []


def test_one_point_is_judged_as_it_is_among_all(drawn: list[list[Point]]) -> None:
    rng = np.random.default_rng(0)
    for points in drawn:
        costs = np.asarray(points)
        tolerances = np.zeros_like(costs)
        tolerances[:, 0] = rng.choice([0.0, 0.5], len(points))
        resampled = costs[:, None] + rng.normal(0, 1, (len(points), 20, costs.shape[1]))
        front = non_dominated(costs, tolerances)
        shares = front_probabilities(costs, resampled, tolerances)
        for position in range(len(points)):
            assert is_non_dominated(position, costs, tolerances) == (position in front)
            assert front_probability(position, costs, resampled, tolerances) == shares[position]


def test_hypervolume_is_the_volume_that_is_dominated() -> None:
    assert hypervolume([[0.25], [0.5]], [1.0]) == 0.75
    # Two rectangles, less what both have in common; a point beyond the bound counts for nothing.
    assert hypervolume([[0.0, 0.5], [0.5, 0.0], [2.0, -1.0]], [1.0, 1.0]) == pytest.approx(0.5 + 0.5 - 0.25)
    assert hypervolume([[0.5, 0.5, 0.5], [0.5, 0.5, 0.75]], [1.0, 1.0, 1.0]) == pytest.approx(0.125)
    assert hypervolume(np.empty((0, 2)), [1.0, 1.0]) == 0.0


@pytest.mark.parametrize("objectives", [2, 3])
def test_hypervolume_is_that_of_many_drawn_points(objectives: int) -> None:
    rng = np.random.default_rng(objectives)
    costs = rng.random((6, objectives))
    drawn = rng.random((20_000, objectives))
    dominated = (drawn[:, None] >= costs).all(-1).any(-1).mean()
    assert hypervolume(costs, [1.0] * objectives) == pytest.approx(dominated, abs=0.02)
