"""What a new trial may start from, and how those before it went.

Trials compound: a trial starts from the reference or from what an earlier one ended with, so that what was
trained is not thrown away.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

from autocompress.task import ModelProfile


@dataclass(frozen=True)
class Target:
    """What a search is to reach.

    Args:
        text: as it was given.
        on_cost: whether it bounds a cost, below which the score is to be best; else the cheapest model that
            holds it is wanted.
        cost: greatest cost over the reference's that it allows, infinity where it does not say.
    """

    text: str
    on_cost: bool = False
    cost: float = math.inf


@dataclass(frozen=True)
class Parent:
    """A model that a trial may start from: the reference, or a trial's whose weights are not codes yet.

    Args:
        number: of its trial; 0 is the reference.
        cost: over the reference's, in the search's first objective that is a cost.
        score: the search's first objective that is none; greater is better.
        profile: what search spaces may know of the model.
        parent: number of the trial that it started from itself, or where that one's model is gone the nearest
            that is there of those before it.
        holds: whether it satisfies the search's target, if there is one.
    """

    number: int
    cost: float
    score: float
    profile: ModelProfile
    parent: int = 0
    holds: bool = True


@dataclass(frozen=True)
class Running:
    """A trial that trains now.

    Args:
        parent: number of the trial that it started from.
        cost: over the reference's, that it aims at.
        params: what it was told to suggest; empty where the sampler proposed it.
    """

    parent: int
    cost: float
    params: Mapping[str, Any] = field(default_factory=dict)


@dataclass(frozen=True)
class Attempt:
    """A trial that ended.

    Args:
        number: of the trial.
        parent: number of the trial that it started from.
        methods: of its stages, in order; none where it only trained on.
        cost: over the reference's; None where the trial ended without a result.
        score: of its model; None where it ended without a result.
        feasible: whether it satisfies the constraints on what is no cost: one that is too costly may be
            compressed further.
        kept: whether it is, was or may yet be on the front.
        params: what was suggested.
        saved: −ln of what it left of its parent's cost; 0 where it ended without a result.
        lost: of its parent's score; 0 where it ended without a result.
        asked: −ln of what its method was told to keep of its parent's cost; 0 where the sampler proposed it.
        trained: whether it trained.
        holds: whether its model satisfies the search's target, if there is one.
        failed: whether it ended by an error, and not as it was stopped early.
        diverged: whether that was a loss or a metric that was no number any more.
    """

    number: int
    parent: int
    methods: tuple[str, ...]
    cost: float | None
    score: float | None
    feasible: bool
    kept: bool
    params: Mapping[str, Any]
    saved: float = 0.0
    lost: float = 0.0
    asked: float = 0.0
    trained: bool = True
    holds: bool = True
    failed: bool = False
    diverged: bool = False


@dataclass(frozen=True)
class Family:
    """The models that a trial may start from, and all trials that ended.

    Args:
        front: those that no other one beats in both score and cost, the costliest first; never empty.
        kept: all of them by number.
        attempts: trials that ended, in order.
        running: trials that train now.
        coding: numbers of those whose weights are turned into codes by a trial that runs now.
        left: trials that are left of the budget, the one to propose included.
        metric: that costs are of.
        bound: greatest cost over the reference's that constraints allow, infinity where they do not say.
        target: what the search is to reach; None where that is the whole front.
        beside: what the reference's file holds beside its tensors, over their bytes; 0 where costs are not of
            files.
        distill: whether trials may learn from a teacher.
        margin: by how much bounds let a score be less than the reference's, infinity where they do not say.
    """

    front: tuple[Parent, ...]
    kept: Mapping[int, Parent]
    attempts: tuple[Attempt, ...] = ()
    running: tuple[Running, ...] = ()
    coding: tuple[int, ...] = ()
    left: int = 1
    metric: str = "macs"
    bound: float = math.inf
    target: Target | None = None
    beside: float = 0.0
    distill: bool = True
    margin: float = math.inf

    def at(self, position: float) -> Parent:
        """The model at a position along the front, from 0, the costliest, to 1, the cheapest."""
        return self.front[round(position * (len(self.front) - 1))]

    def position(self, parent: Parent) -> float:
        """Where along the front a model of it is; `at` gives it again."""
        return self.front.index(parent) / max(1, len(self.front) - 1)

    def nearest(self, parent: Parent, suits: Callable[[Parent], bool]) -> Parent:
        """The model, or where it does not suit the nearest of those that it came from; at last the
        reference."""
        while parent.number != 0 and not suits(parent):
            parent = self.kept.get(parent.parent, self.kept[0])
        return parent

    @property
    def best(self) -> Parent:
        """The model with the greatest score, which others may learn from; of equal ones the cheapest."""
        return max(self.kept.values(), key=lambda parent: (parent.score, -parent.cost))
