"""Which share of its units each channel group keeps, so that the model is predicted to lose least."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray
from scipy import sparse
from scipy.optimize import Bounds, LinearConstraint, milp

import autocompress as ac

Cost = Literal["macs", "params"]

# Levels of each group that are chosen from, and solutions this much worse than the best, are what keeps the
# programme of a network of 40 groups below a second.
_LEVELS, _GAP = 16, 0.01


def allocation(profile: ac.ModelProfile, keep: float, cost: Cost) -> Mapping[str, int] | None:
    """The units that each group keeps, so that this share of a cost is kept at the least predicted loss.

    A multiple-choice knapsack whose cost is a sum of products of two groups' shares, solved as a linear
    programme over whole numbers: for each group one of its levels is chosen, and for each two groups that a
    weight lies between one pair of levels, whose rows and columns must sum to those of the groups.

    Args:
        profile: of the model.
        keep: share of the cost that may be left, in (0, 1).
        cost: "macs" or "params".

    Returns:
        Units by group's name; None where the profile does not say what each group would lose, or where no
        choice leaves so little.
    """
    groups = profile.groups
    if not groups or not profile.cost_terms or not all(group.losses for group in groups):
        return None
    choices = [_widths(group) for group in groups]
    shares = [widths / group.width for widths, group in zip(choices, groups, strict=True)]
    program = _Program([_lost(group, widths) for group, widths in zip(groups, choices, strict=True)])
    uncut = 0.0
    for term in profile.cost_terms:
        amount = float(getattr(term, cost))
        uncut += amount
        program.add(term.groups, amount, shares)
    chosen = program.solve(keep * uncut)
    if chosen is None:
        return None
    return {
        group.name: int(widths[level]) for group, widths, level in zip(groups, choices, chosen, strict=True)
    }


def _widths(group: ac.GroupProfile) -> NDArray[np.int64]:
    """Widths to choose from, the narrowest that was tried, or must stay, and more: equal shares, rounded up,
    or each."""
    levels = min(group.width, _LEVELS)
    widths: NDArray[np.int64] = -(-group.width * np.arange(1, levels + 1) // levels)
    return widths[widths >= max(group.width_at(0), group.least)]


def _lost(group: ac.GroupProfile, widths: NDArray[np.int64]) -> NDArray[np.float64]:
    """What is predicted to be lost at these widths, on straight lines between those that were tried."""
    tried = [group.width_at(level) for level in range(len(group.losses))]
    return np.interp(widths, tried, group.losses)


class _Program:
    """The programme: variables are one for each level of each group, then one for each pair of levels."""

    def __init__(self, losses: list[NDArray[np.float64]]) -> None:
        self.losses = losses
        self.starts = np.cumsum([0, *map(len, losses)])
        self.size = int(self.starts[-1])
        self.pairs: dict[tuple[int, int], int] = {}
        self.costs: dict[int, NDArray[np.float64]] = {}
        self.fixed = 0.0

    def add(self, groups: tuple[int, ...], amount: float, shares: list[NDArray[np.float64]]) -> None:
        """Count a part of the cost, which shrinks with the product of some groups' shares."""
        if not groups:
            self.fixed += amount
        elif len(set(groups)) == 1:
            self._count(int(self.starts[groups[0]]), amount * shares[groups[0]] ** len(groups))
        else:
            first, second = sorted(set(groups))
            if (first, second) not in self.pairs:
                self.pairs[first, second] = self.size
                self.size += len(shares[first]) * len(shares[second])
            powers = [shares[group] ** groups.count(group) for group in (first, second)]
            self._count(self.pairs[first, second], amount * np.outer(*powers).ravel())

    def _count(self, start: int, amounts: NDArray[np.float64]) -> None:
        self.costs[start] = self.costs.get(start, 0.0) + amounts

    def solve(self, budget: float) -> list[int] | None:
        """The level of each group; None where no choice is within the budget."""
        count = len(self.losses)
        objective, cost = np.zeros(self.size), np.zeros(self.size)
        for start, amounts in self.costs.items():
            cost[start : start + len(amounts)] = amounts
        # Relative, because solvers' tolerances are absolute.
        largest = sum(float(losses.max()) for losses in self.losses) or 1.0
        objective[: self.starts[-1]] = np.concatenate(self.losses) / largest
        rows: list[NDArray[np.int64]] = []
        for start, end in zip(self.starts, self.starts[1:], strict=False):
            rows.append(np.stack([np.arange(start, end), np.ones(end - start, int)]))
        limits = [1.0] * count
        for (first, second), start in self.pairs.items():
            levels = np.arange(start, start + len(self.losses[first]) * len(self.losses[second]))
            square = levels.reshape(len(self.losses[first]), -1)
            for group, lines in ((first, square), (second, square.T)):
                for level, line in enumerate(lines):
                    own = self.starts[group] + level
                    rows.append(np.stack([np.append(line, own), np.append(np.ones(len(line), int), -1)]))
                    limits.append(0.0)
        places = np.concatenate([np.full(row.shape[1], number) for number, row in enumerate(rows)])
        columns, values = np.concatenate(rows, axis=1)
        equal: Any = sparse.csr_array((values, (places, columns)), shape=(len(rows), self.size))
        whole_numbers = np.zeros(self.size)
        whole_numbers[: self.starts[-1]] = 1
        # Of the scale of the budget, for the same reason.
        scale = max(budget, 1e-9)
        solution = milp(
            objective,
            integrality=whole_numbers,
            bounds=Bounds(0, 1),
            constraints=[
                LinearConstraint(equal, limits, limits),
                LinearConstraint(
                    sparse.csr_array(cost[None] / scale), -np.inf, (budget - self.fixed) / scale
                ),
            ],
            options={"mip_rel_gap": _GAP},
        )
        if solution.x is None:
            return None
        return [
            int(np.argmax(solution.x[start:end]))
            for start, end in zip(self.starts, self.starts[1:], strict=False)
        ]
