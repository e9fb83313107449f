"""Where trials go in a search that has a target, and when more of them would hardly help."""

from __future__ import annotations

import math
from dataclasses import dataclass

import autocompress as ac

# What the cheapest model that holds may cost over the costliest that failed, when both are as good as one.
NEAR = 0.9
# A search has had enough after so many trials in a row that did not help: with 95 % certainty fewer than 4 in
# 10 more would, as 0.6^6 is 0.05.
STALE = 6
# What is saved of the cost by a trial that helps, at least.
_HELP = 0.03
# What a trial that looks for a little less keeps of its parent's cost.
_LITTLE = 0.9
# What a trial that goes below a bound on cost aims at, of the bound: a method may fall short.
_INWARD = 0.95
# Of all trials, those in which a bound on cost is to be reached.
_REACHING = 1 / 3
# Neighbours that differ by less than this ratio are reached from each other in one trial.
_ONE_STEP = 0.8


@dataclass(frozen=True)
class Step:
    """What a trial starts from, and what it aims at.

    Args:
        parent: the model.
        cost: that is aimed at, over the reference's; None only trains the model on.
        tries: trials that did the same before.
    """

    parent: ac.Parent
    cost: float | None
    tries: int = 0


def step(family: ac.Family, most_tries: int) -> Step | None:
    """Where the next trial goes for the family's target; None where that is where it would go without one.

    Args:
        family: has a target.
        most_tries: how often the same is tried, in ways that differ.
    """
    assert family.target is not None
    choices = _below(family) if family.target.on_cost else _boundary(family)
    open_choices = [choice for choice in choices if choice.tries < most_tries]
    return min(open_choices, key=lambda choice: choice.tries, default=None)


def _boundary(family: ac.Family) -> list[Step]:
    """Steps to the cheapest model that holds a target: halfway, in logarithms, between the cheapest that does
    and the costliest below it that failed; once these are near, the latter is trained on, the former goes a
    little further, and is trained on. None as long as nothing failed: there it goes down."""
    holding = [parent for parent in family.front if parent.holds]
    if not holding:
        best = family.front[0]
        return _train(family, best) + _compress(family, best, _LITTLE * best.cost)
    cheapest = holding[-1]
    failed = costliest_failure(family, cheapest.cost)
    if not failed:
        return []
    if failed < NEAR * cheapest.cost:
        width = math.log(cheapest.cost / failed)
        # Trials that run side by side spread over the gap.
        for share in (0.5, 0.25, 0.75):
            cost = cheapest.cost * math.exp(-share * width)
            if not any(abs(math.log(cost / other.cost)) < width / 10 for other in family.running):
                return [Step(cheapest, cost)]
    misses = [p for p in family.front if not p.holds and _ONE_STEP * cheapest.cost <= p.cost < cheapest.cost]
    steps = _train(family, misses[0]) if misses else []
    return steps + _compress(family, cheapest, _LITTLE * cheapest.cost) + _train(family, cheapest)


def _below(family: ac.Family) -> list[Step]:
    """Steps to the best model below a bound on cost: to below it first, in smaller ones from where one
    failed; then the best there is trained on, and its neighbour above the bound comes down, in two steps
    where it is far, or is trained on."""
    assert family.target is not None
    holding = [parent for parent in family.front if parent.holds]
    cheapest = family.front[-1]
    if not holding:
        if math.isinf(family.target.cost):
            return []  # down, until one holds it
        bound = family.target.cost if family.target.cost < cheapest.cost else cheapest.cost
        trained = sum(attempt.trained for attempt in family.attempts)
        steps = max(1, math.floor(_REACHING * (trained + family.left)) - trained)
        lowest = min([cheapest.cost, *(other.cost for other in family.running)])
        cost = lowest * min(1.0, _INWARD * bound / lowest) ** (1 / steps)
        # What was too far for its score to stay within bounds is come to in smaller steps.
        failed = [
            a.cost
            for a in family.attempts
            if a.parent == cheapest.number and a.trained and a.cost is not None and not a.feasible
        ]
        if below := [other for other in failed if other < lowest]:
            cost = max(cost, math.sqrt(max(below) * lowest))
        tries = sum(a.parent == cheapest.number and a.trained for a in family.attempts)
        return [Step(cheapest, cost, tries)]
    best = holding[0]
    # A bound on what is no cost of the family's lies somewhere above what holds.
    bound = family.target.cost
    inside = max(_INWARD * bound, best.cost) if math.isfinite(bound) else best.cost
    above = [parent for parent in family.front if not parent.holds and parent.cost > best.cost]
    choices = _train(family, best)
    if above:
        far = inside < _ONE_STEP * above[-1].cost
        cost = math.sqrt(above[-1].cost * inside) if far else min(inside, _INWARD * above[-1].cost)
        choices += _compress(family, above[-1], cost) + _train(family, above[-1])
    return choices


def enough(family: ac.Family) -> str | None:
    """Why more trials would hardly help to reach the family's target; None where they may.

    Of the last `STALE` trials none helped: none lowered the cost of the cheapest model that holds by 3 %,
    where one that costs nearly as little failed; or none raised the score of the best one below a bound.
    """
    trained = [attempt for attempt in family.attempts if attempt.trained]
    if family.target is None or len(trained) <= STALE:
        return None
    since = trained[-STALE].number
    holding = [(n, cost, score) for n, cost, score, holds in _measured(family) if holds and n]
    before = [(cost, score) for n, cost, score in holding if n < since]
    if not before:
        return None
    if family.target.on_cost:
        helped = max(score for _, _, score in holding) > max(score for _, score in before)
    else:
        cheapest = min(cost for _, cost, _ in holding)
        near = costliest_failure(family, cheapest) >= NEAR * cheapest
        helped = not near or cheapest < (1 - _HELP) * min(cost for cost, _ in before)
    if helped:
        return None
    return f"none of the last {STALE} trials came closer to the target {family.target.text}"


def costliest_failure(family: ac.Family, below: float) -> float:
    """The cost of the costliest model that fails the target, of those that cost less than this; 0 if none."""
    failed = [cost for _, cost, _, holds in _measured(family) if not holds]
    return max((cost for cost in failed if cost < below), default=0.0)


def _measured(family: ac.Family) -> list[tuple[int, float, float, bool]]:
    """Number, cost and score of each model that was trained, or can be started from, and whether it holds the
    target; those are included that are not kept any more."""
    kept = [(p.number, p.cost, p.score, p.holds) for p in family.kept.values()]
    return kept + [
        (a.number, a.cost, a.score, a.holds and a.feasible)
        for a in family.attempts
        if a.trained and a.cost is not None and a.score is not None
    ]


def _train(family: ac.Family, parent: ac.Parent) -> list[Step]:
    """Train a model on; the reference has been trained."""
    own = [a for a in family.attempts if a.parent == parent.number and not a.methods]
    return [Step(parent, None, len(own))] if parent.number else []


def _compress(family: ac.Family, parent: ac.Parent, cost: float) -> list[Step]:
    own = [a for a in family.attempts if a.parent == parent.number and a.methods and a.trained]
    return [Step(parent, cost, len(own))]
