"""Which layer gets which rank: the exact minimax allocation of ALDS (arXiv 2107.11442, eq. 3).

For a threshold ε each layer takes the cheapest folding whose error is at most ε, or stays dense. The
total cost falls as ε rises, so the least ε that meets the budget is found by bisection.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

from autocompress.methods.alds.spectra import Measure, Spectrum

_STEPS = 60


@dataclass(frozen=True)
class Choice:
    """A layer's folding scheme, slices and rank, with its relative error and its cost."""

    scheme: int
    slices: int
    rank: int
    error: float
    cost: int


@dataclass(frozen=True)
class Option:
    """One folding of a layer: what a unit of rank costs, and the largest and the least rank allowed."""

    scheme: int
    slices: int
    spectrum: Spectrum
    unit_cost: int
    most: int
    least: int = 1


@dataclass(frozen=True)
class LayerOptions:
    """A layer that may be factorised: its name, what it costs dense, and its foldings."""

    name: str
    dense: int
    options: tuple[Option, ...]

    def cheapest(self, epsilon: float, measure: Measure) -> Choice | None:
        """The cheapest choice with an error of at most ε; None where dense is no dearer."""
        # What each folding costs at least; most of them are dearer than the best one costs.
        floors = [
            o.unit_cost * max(o.least, o.spectrum.rank_bounds(epsilon, measure)[0]) for o in self.options
        ]
        best: Choice | None = None
        for i in sorted(range(len(floors)), key=floors.__getitem__):
            option, limit = self.options[i], self.dense if best is None else best.cost
            # No rank from here on is cheaper than what there is.
            most = min(option.most, (limit - 1) // option.unit_cost)
            if most < option.least or floors[i] >= limit:
                continue
            rank = option.spectrum.least_rank(epsilon, measure, most)
            if rank is not None:
                rank = max(rank, option.least)
                error = option.spectrum.error(rank, measure)
                best = Choice(option.scheme, option.slices, rank, error, rank * option.unit_cost)
        return best


@dataclass(frozen=True)
class Allocation:
    """Choices by layer name, dense layers left out; the greatest error and the total cost."""

    choices: dict[str, Choice]
    error: float
    cost: int


def allocate_within(layers: Sequence[LayerOptions], measure: Measure, epsilon: float) -> Allocation:
    """The cheapest allocation in which no layer's error is above ε."""
    choices: dict[str, Choice] = {}
    cost = 0
    for layer in layers:
        choice = layer.cheapest(epsilon, measure)
        cost += layer.dense if choice is None else choice.cost
        if choice is not None:
            choices[layer.name] = choice
    return Allocation(choices, max((c.error for c in choices.values()), default=0.0), cost)


def allocate(layers: Sequence[LayerOptions], measure: Measure, budget: float) -> Allocation | None:
    """The allocation of least greatest error whose cost is at most `budget`; None where none is.

    Args:
        layers: all layers that may be factorised.
        measure: of the error.
        budget: for the cost of these layers together.
    """
    best = allocate_within(layers, measure, 0.0)
    if best.cost <= budget:
        return best
    best = allocate_within(layers, measure, math.inf)
    if best.cost > budget:
        return None
    low, high = 0.0, best.error
    for _ in range(_STEPS):
        middle = (low + high) / 2
        allocation = allocate_within(layers, measure, middle)
        if allocation.cost <= budget:
            best, high = allocation, min(middle, allocation.error)
        else:
            low = middle
        if high - low <= 1e-9 * high:
            break
    return best
