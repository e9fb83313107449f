"""The family of a search: what its study and its checkpoints say of what a new trial may start from."""

from __future__ import annotations

import math
from collections.abc import Collection, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from autocompress import plugins
from autocompress.checkpoint import open_checkpoint
from autocompress.checkpoint.store import kept_trials, trial_folder
from autocompress.lineage import Attempt, Family, Parent, Running, Target
from autocompress.measure import STATIC, Constraint, Objective
from autocompress.methods.base import Stage
from autocompress.pareto import is_non_dominated
from autocompress.study import ASKED, DIVERGED, EXTRA, INTERRUPTED, TAKEN_OVER, SearchStudy
from autocompress.task import ModelProfile


class FamilyTree:
    """Follows a search's trials and says what the next one may start from.

    Args:
        study: where trials are recorded.
        trials: folder of the trials' checkpoints.
        objectives: of the search.
        constraints: of the search.
        reference: metrics of the reference.
        profile: of the reference.
        target: of the search.
        distill: whether trials may learn from a teacher.

    Attributes:
        quality: the constraints on what is no cost.
    """

    def __init__(
        self,
        study: SearchStudy,
        trials: Path,
        objectives: Sequence[Objective],
        constraints: Sequence[Constraint],
        reference: Mapping[str, float],
        profile: ModelProfile,
        target: Constraint | None = None,
        distill: bool = True,
    ) -> None:
        self.study, self.trials, self.reference, self.target = study, trials, reference, target
        self.distill = distill
        costs = [o for o in objectives if o.metric in STATIC]
        scores = [o for o in objectives if o.metric not in STATIC]
        cost = costs[0].metric if costs else "bytes"
        # What a file holds beside its tensors is no method's to shrink.
        self.cost_metric = "weight_bytes" if cost == "bytes" else cost
        self.beside = reference["bytes"] / reference["weight_bytes"] - 1 if cost == "bytes" else 0.0
        self.score_objective = scores[0] if scores else objectives[0]
        self.quality = tuple(c for c in constraints if not set(c.metrics) <= set(STATIC))
        bounds = [self._bound(c) for c in constraints if not c.at_least and c not in self.quality]
        self.bound = min(bounds, default=math.inf)
        metric = self.score_objective.metric
        limits = [c.bound(metric, reference) for c in self.quality if c.metrics == (metric,)]
        self.margin = min((abs(reference[metric] - limit) for limit in limits), default=math.inf)
        self.parents = {0: Parent(0, 1.0, self._score(reference), profile, holds=self._holds(reference))}
        self.attempts: dict[int, Attempt] = {}
        # Cost and score of each trial that has a result, and what it started from.
        self.measured = {0: (1.0, self._score(reference))}
        self.origins: dict[int, int] = {}

    def family(self, running: Sequence[Running], coding: Sequence[int], left: int) -> Family:
        """What the next trial may start from.

        Args:
            running: trials that train now.
            coding: numbers of the models that running trials turn into codes.
            left: trials that are left, the next one included.
        """
        self._update()
        there = {number: parent for number, parent in self.parents.items() if self._there(number)}
        kept = {n: replace(p, parent=self._nearest(p.parent, there)) for n, p in there.items()}
        return Family(
            _front(kept.values()),
            kept,
            tuple(self.attempts.values()),
            tuple(running),
            tuple(coding),
            left,
            self.cost_metric,
            self.bound,
            self._aimed_at(),
            self.beside,
            self.distill,
            self.margin,
        )

    def may_be_parent(self, number: int, methods: Collection[str], metrics: Mapping[str, float]) -> bool:
        """Whether a model would be on the front of those that trials start from."""
        if stored_as_codes(methods) or not self._good(metrics):
            return False
        candidate = [-self._score(metrics), self._cost(metrics)]
        others = [[-p.score, p.cost] for n, p in self.parents.items() if n != number and self._there(n)]
        return is_non_dominated(len(others), [*others, candidate])

    def made_of(self, numbers: Collection[int]) -> set[int]:
        """What those of some trials started from whose models are stored as codes."""
        self._update()
        coded = [n for n in numbers if n in self.attempts and stored_as_codes(self.attempts[n].methods)]
        return {self.attempts[number].parent for number in coded}

    def _nearest(self, number: int, there: Collection[int]) -> int:
        """A trial, or where its model is gone the nearest that it came from whose is there."""
        while number and number not in there:
            number = self.origins.get(number, 0)
        return number

    def _update(self) -> None:
        """Hear of the trials that ended since the last time."""
        kept, worth = kept_trials(self.trials), self.study.worth()
        for trial in self.study.ended():
            if trial.number == 0 or trial.number in self.origins or INTERRUPTED in trial.user_attrs:
                continue  # what was cut off runs again, and says nothing of what it was to do
            details = trial.user_attrs.get("details", {})
            config = details.get("config", {})
            methods = tuple(stage["method"] for stage in config.get("stages", ()))
            # What was stopped early measured a model that is not there.
            complete = trial.state.name == "COMPLETE"
            metrics: Mapping[str, float] | None = trial.user_attrs["metrics"] if complete else None
            parent, feasible = config.get("parent", 0), metrics is not None and self._good(metrics)
            cost = None if metrics is None else self._cost(metrics)
            score = None if metrics is None else self._score(metrics)
            saved = lost = 0.0
            self.origins[trial.number] = parent
            if cost is not None and score is not None:
                self.measured[trial.number] = cost, score
                if parent in self.measured:
                    cost_before, score_before = self.measured[parent]
                    saved = math.log(cost_before / max(cost, 1e-12))
                    lost = score_before - score
            is_kept = trial.number in kept
            if is_kept and feasible and metrics is not None and not stored_as_codes(methods):
                self._add(trial.number, metrics, parent)
            if config.get("taken_over") or TAKEN_OVER in trial.user_attrs:
                continue  # not a move of this search
            self.attempts[trial.number] = Attempt(
                trial.number,
                parent,
                methods,
                cost,
                score,
                feasible,
                worth.get(trial.number, is_kept),
                trial.params,
                saved,
                lost,
                trial.user_attrs.get(ASKED, 0.0),
                EXTRA not in trial.user_attrs,
                metrics is not None and self._holds(metrics),
                trial.state.name == "FAIL",
                DIVERGED in trial.user_attrs,
            )

    def _add(self, number: int, metrics: Mapping[str, float], parent: int) -> None:
        manifest = open_checkpoint(trial_folder(self.trials, number), verify=False).manifest
        if manifest["profile"] is None:
            return  # an own method's codes
        profile = ModelProfile.from_json(manifest["profile"])
        self.parents[number] = Parent(
            number, self._cost(metrics), self._score(metrics), profile, parent, self._holds(metrics)
        )

    def _good(self, metrics: Mapping[str, float]) -> bool:
        return all(c.violation(metrics, self.reference) <= 0 for c in self.quality)

    def _holds(self, metrics: Mapping[str, float]) -> bool:
        return self.target is None or self.target.violation(metrics, self.reference) <= 0

    def _aimed_at(self) -> Target | None:
        if self.target is None:
            return None
        on_cost = set(self.target.metrics) <= set(STATIC)
        return Target(self.target.text, on_cost, self._bound(self.target) if on_cost else math.inf)

    def _bound(self, constraint: Constraint) -> float:
        """The greatest cost that a constraint on costs allows, over the reference's; where one of several
        metrics must be small, any cost will do for one that is not asked about."""
        names = {self.cost_metric} | ({"bytes"} if self.cost_metric == "weight_bytes" else set())
        if not set(constraint.metrics) <= names:
            return math.inf
        # What a file holds beside its tensors is taken to stay as it is.
        beside = {"bytes": self.reference["bytes"] - self.reference["weight_bytes"]}
        return max(
            max(0.0, constraint.bound(m, self.reference) - beside.get(m, 0.0))
            / (self.reference[m] - beside.get(m, 0.0))
            for m in constraint.metrics
        )

    def _there(self, number: int) -> bool:
        return number == 0 or trial_folder(self.trials, number).is_dir()

    def _cost(self, metrics: Mapping[str, float]) -> float:
        return metrics[self.cost_metric] / self.reference[self.cost_metric]

    def _score(self, metrics: Mapping[str, float]) -> float:
        value = metrics[self.score_objective.metric]
        return value if self.score_objective.maximised else -value


def _front(parents: Collection[Parent]) -> tuple[Parent, ...]:
    """Models that no other one beats in both score and cost, the costliest first; of equal ones the first."""
    front: list[Parent] = []
    for parent in sorted(parents, key=lambda parent: (parent.cost, -parent.score, parent.number)):
        if not front or parent.score > front[-1].score:
            front.append(parent)
    return tuple(reversed(front))


def stored_as_codes(methods: Collection[str]) -> bool:
    """Whether one of these methods decides how weights are stored: what it ends with is not trained on."""
    known: Mapping[str, Any] = plugins.compressors()
    return any(known[method].stage is Stage.STORAGE for method in methods if method in known)
