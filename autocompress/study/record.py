"""The Optuna study, the only record of trials: sampler, storage, constraints, resume."""

from __future__ import annotations

import json
import logging
import uuid
import warnings
from collections.abc import Collection, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import optuna
from numpy.typing import NDArray
from optuna.artifacts import FileSystemArtifactStore
from optuna.trial import FrozenTrial, Trial, TrialState

from autocompress.errors import SettingsError
from autocompress.measure import Constraint, Objective
from autocompress.pareto import (
    front_probabilities,
    front_probability,
    is_non_dominated,
    non_dominated,
)
from autocompress.rivals import Point, Rivals, costs_of, drawn_costs
from autocompress.study.samplers import make_sampler
from autocompress.study.sole_writer import SoleWriter
from autocompress.study.storage import open_storage, opening
from autocompress.trial import TrialConfig

INTERRUPTED = "interrupted"
# What a trial was proposed to do, also of one that fails or still runs.
CONFIG = "config"
ASKED, EXTRA, DIVERGED = "asked", "extra", "diverged"
# How often a trial that was cut off by no fault of its own has run, itself included; and at most.
_RUNS, _MOST_RUNS = "runs", 3
_RUNGS = "rungs"
# Of a trial that was taken over: where from, and which trial's model it is of that run.
WARM_START, TAKEN_OVER = "warm_start", "taken_over"
_ARTIFACTS = "dashboard:artifacts"  # prefix of what optuna-dashboard keeps of a trial at its study

optuna.logging.set_verbosity(optuna.logging.WARNING)
# Joint sampling of conditional parameters and metric names are what Optuna calls experimental.
warnings.filterwarnings("ignore", category=optuna.exceptions.ExperimentalWarning)
logging.getLogger("alembic").setLevel(logging.WARNING)


class SearchStudy:
    """Asks for and records trials. Trial 0 is the reference; the others are proposals.

    Args:
        storage: an Optuna storage URL.
        name: of the study in that storage.
        objectives: what is optimised.
        constraints: what makes a trial feasible.
        artifacts: folder of the pictures that optuna-dashboard shows.
        sampler: name of the sampler.
        seed: of the sampler; the number of recorded trials is added, so that a resumed search does
            not repeat its random start.
        create: make the study where there is none.
        sole_writer: whether nothing else writes to the study meanwhile; of the database is then read what was
            written since alone.

    Raises:
        SettingsError: the storage cannot be opened, lacks the study, or holds other objectives under
            this name.
    """

    def __init__(
        self,
        storage: str,
        name: str,
        objectives: Sequence[Objective],
        constraints: Sequence[Constraint] = (),
        artifacts: Path | None = None,
        sampler: str = "auto",
        seed: int = 0,
        create: bool = True,
        sole_writer: bool = False,
    ) -> None:
        self.objectives, self.constraints = tuple(objectives), tuple(constraints)
        directions: list[Any] = [o.direction for o in objectives]
        self._in_transaction = False
        self._database = open_storage(storage, create)
        with opening(storage):
            if create:
                self.study = optuna.create_study(
                    storage=self._database, study_name=name, directions=directions, load_if_exists=True
                )
            else:
                self.study = optuna.load_study(storage=self._database, study_name=name)
        if sole_writer:
            self.study = optuna.Study(name, SoleWriter(self.study._storage))
        stored = [d.name.lower() for d in self.study.directions]
        if stored != directions:
            raise SettingsError(f"objectives must be the study's {stored} but are {directions}.")
        if not self.study.trials:
            self.study.set_metric_names([o.metric for o in objectives])
        self.study.sampler = make_sampler(sampler, seed + len(self.study.trials))
        self.artifacts = None if artifacts is None else FileSystemArtifactStore(artifacts)
        self.live: dict[int, Trial] = {}

    @contextmanager
    def transaction(self) -> Iterator[None]:
        """Write what is written inside in one transaction, and sync it to the disk once.

        Optuna commits each parameter, attribute and state by itself, some thirty a trial, and each waits for
        the disk. What was written before an exception stands, as it would without.
        """
        if self._in_transaction:
            yield
            return
        sessions = self._database.scoped_session
        with self._database.engine.connect() as connection:
            connection.begin()
            sessions.remove()
            # Sessions whose connection is in a transaction join it, and leave it to be committed.
            sessions.configure(bind=connection)
            self._in_transaction = True
            try:
                yield
            finally:
                self._in_transaction = False
                sessions.remove()
                sessions.configure(bind=self._database.engine)
                connection.commit()

    def _trials(self, *states: TrialState) -> list[FrozenTrial]:
        """Trials in one of these states, or all where none is given, by number."""
        return self.study.get_trials(deepcopy=False, states=states or None)

    def _set_attribute_of_study(self, name: str, value: Any) -> None:
        with self.transaction():
            self.study.set_user_attr(name, value)

    def add_reference(self, metrics: Mapping[str, float], attributes: Mapping[str, Any]) -> None:
        """Record the reference as trial 0, where it is not recorded yet."""
        if self.study.trials:
            return
        violations = {c.text: c.violation(metrics, metrics) for c in self.constraints}
        reference = optuna.trial.create_trial(
            values=[metrics[o.metric] for o in self.objectives],
            user_attrs=self._attributes(metrics, attributes, violations),
            constraints=violations,
        )
        # In one step, so that no crash can leave a trial 0 without values.
        with self.transaction():
            self.study.add_trial(reference)

    def _attributes(
        self,
        metrics: Mapping[str, float],
        attributes: Mapping[str, Any],
        violations: Mapping[str, float],
    ) -> dict[str, Any]:
        """What is recorded of a trial beside its values."""
        feasible = all(violation <= 0 for violation in violations.values())
        return {"metrics": dict(metrics), "details": dict(attributes), "feasible": feasible}

    def close_leftovers(self) -> int:
        """Close trials of a driver that died; how many of them are to run again."""
        left = self._trials(TrialState.RUNNING)
        again = [trial for trial in left if _may_run_again(trial)]
        with self.transaction():
            for trial in left:
                self._fail(trial.number, trial._trial_id, "the driver died", interrupted=trial in again)
            for trial in again:
                self._enqueue(trial, counted=True)
        return len(again)

    def may_run_again(self, number: int) -> bool:
        """Whether a running trial did not run too often, where it is cut off by no fault of its own."""
        return _may_run_again(self.live[number])

    def is_extra(self, number: int) -> bool:
        """Whether a running trial is beside the budget."""
        return EXTRA in self.live[number].user_attrs

    def take_over(
        self,
        run: str,
        models: Collection[int],
        moves: Mapping[int, Mapping[str, Any]],
        asked: Mapping[int, float],
    ) -> None:
        """Let trials that take another run's over wait to be asked for, where none did before.

        Args:
            run: where from.
            models: numbers of its trials whose models are to be measured, beside the budget.
            moves: number of its trial → what is to be suggested again.
            asked: number of its trial → what `ask` was told.
        """
        if any(WARM_START in trial.user_attrs for trial in self._trials()):
            return
        with self.transaction():
            for number in models:
                origin = {WARM_START: _origin(run, number), TAKEN_OVER: number}
                self.study.enqueue_trial({}, user_attrs={**origin, EXTRA: True})
            for number, params in moves.items():
                told = {ASKED: asked[number]} if number in asked else {}
                self.study.enqueue_trial(dict(params), user_attrs={WARM_START: _origin(run, number), **told})

    def waiting(self, *, extra: bool = False) -> bool:
        """Whether trials wait to be run, or to be run again; those beside the budget alone, if so asked."""
        waiting = self._trials(TrialState.WAITING)
        return bool(waiting) and (not extra or all(EXTRA in trial.user_attrs for trial in waiting))

    def ask(self, params: Mapping[str, Any] | None = None, asked: float = 0.0, extra: bool = False) -> Trial:
        """A new trial to propose for.

        Args:
            params: what is to be suggested; the sampler draws what they leave open, or all.
            asked: −ln of the share of its parent's cost that they tell a method to keep.
            extra: whether the trial is beside the budget, because it does not train.
        """
        with self.transaction():
            if params is not None:
                attributes = {ASKED: asked} | ({EXTRA: True} if extra else {})
                self.study.enqueue_trial(dict(params), user_attrs=attributes)
            trial = self.study.ask()
        self.live[trial.number] = trial
        return trial

    def complete(
        self,
        number: int,
        metrics: Mapping[str, float],
        reference: Mapping[str, float],
        attributes: Mapping[str, Any],
    ) -> bool:
        """Record a finished trial; whether it satisfies every constraint."""
        trial = self.live[number]
        violations = {c.text: c.violation(metrics, reference) for c in self.constraints}
        recorded = self._attributes(metrics, attributes, violations)
        with self.transaction():
            for text, violation in violations.items():
                trial.set_constraint(text, violation)
            for name, value in recorded.items():
                trial.set_user_attr(name, value)
            self.study.tell(trial, [metrics[o.metric] for o in self.objectives])
        del self.live[number]
        return bool(recorded["feasible"])

    def has_picture(self, number: int) -> bool:
        """Whether optuna-dashboard shows a picture with a trial."""
        return self._picture_key(number) in self.study._storage.get_study_system_attrs(self.study._study_id)

    def add_picture(self, number: int, picture: Path) -> None:
        """Let optuna-dashboard show a PNG file with a finished trial.

        Attributes of finished trials are final, and `optuna.artifacts` writes no others; the dashboard looks
        for the artifacts of a trial among the attributes of its study as well.
        """
        if self.artifacts is None:
            return
        key = self._picture_key(number)
        artifact = key.rpartition(":")[2]
        described = {
            "artifact_id": artifact,
            "filename": picture.name,
            "mimetype": "image/png",
            "encoding": None,
        }
        with picture.open("rb") as content:
            self.artifacts.write(artifact, content)
        self.study._storage.set_study_system_attr(self.study._study_id, key, json.dumps(described))

    def _picture_key(self, number: int) -> str:
        # One name for a trial's picture, whichever process draws it.
        artifact = uuid.uuid5(uuid.NAMESPACE_OID, f"{self.study.study_name}/{number}")
        return f"{_ARTIFACTS}:{self._trials()[number]._trial_id}:{artifact}"

    def fail(
        self,
        number: int,
        reason: str,
        traceback: str = "",
        *,
        interrupted: bool = False,
        again: bool = False,
        diverged: bool = False,
    ) -> None:
        """Record a failed trial.

        Args:
            number: of the trial.
            reason: why, in a line.
            traceback: where.
            interrupted: whether the search was ended; it is enqueued again.
            again: whether it is to run again by itself, which is counted.
            diverged: whether a loss or a metric was no number any more.
        """
        trial = self.live.pop(number)
        with self.transaction():
            if traceback:
                trial.set_user_attr("traceback", traceback)
            if diverged:
                trial.set_user_attr(DIVERGED, True)
            self._fail(number, trial._trial_id, reason, interrupted=interrupted or again)
            if interrupted or again:
                self._enqueue(self.study.trials[number], counted=again)

    def record_rung(self, number: int, epoch: int, metrics: Mapping[str, float]) -> None:
        """Record what a running trial's model is worth after an epoch, if it ended there.

        At the trial's attributes, because Optuna takes no intermediate values of several objectives.
        """
        trial = self.live[number]
        rungs = trial.user_attrs.get(_RUNGS, {})
        with self.transaction():
            trial.set_user_attr(_RUNGS, {**rungs, str(epoch): dict(metrics)})

    def record_config(self, number: int, config: TrialConfig) -> None:
        """Record what a running trial is to do, for who watches it and where it fails."""
        with self.transaction():
            self.live[number].set_user_attr(CONFIG, config.to_json())

    @staticmethod
    def last_rung(trial: FrozenTrial) -> int:
        """The last epoch after which something was recorded of a trial; 0 where nothing was."""
        return max(map(int, trial.user_attrs.get(_RUNGS, {})), default=0)

    def rung(self, epoch: int) -> dict[int, Mapping[str, float]]:
        """What was recorded after an epoch, by trial number, of all trials but those that run again."""
        return {
            trial.number: trial.user_attrs[_RUNGS][str(epoch)]
            for trial in self._trials()
            if str(epoch) in trial.user_attrs.get(_RUNGS, {}) and INTERRUPTED not in trial.user_attrs
        }

    def prune(
        self,
        number: int,
        reason: str,
        metrics: Mapping[str, float] | None = None,
        attributes: Mapping[str, Any] | None = None,
        *,
        extra: bool = False,
    ) -> None:
        """Record a trial that was stopped early; an extra one did not run, and is beside the budget.

        Args:
            number: of the trial.
            reason: why, in a line.
            metrics: of the model that it would have ended with; None where it did not run.
            attributes: what else is known of it.
            extra: whether it did not run.
        """
        trial = self.live.pop(number)
        with self.transaction():
            trial.set_user_attr("reason", reason)
            if metrics is not None:
                trial.set_user_attr("metrics", dict(metrics))
                trial.set_user_attr("details", dict(attributes or {}))
            if extra:
                trial.set_user_attr(EXTRA, True)
            self.study.tell(number, state=TrialState.PRUNED)

    def finished(self) -> int:
        """Proposed trials that ended and were not interrupted, without those that are beside the budget."""
        return sum(1 for t in self.ended() if t.number > 0 and not {INTERRUPTED, EXTRA} & t.user_attrs.keys())

    def failures(self) -> dict[int, str]:
        """Why proposed trials failed that do not run again, by number."""
        failed = self._trials(TrialState.FAIL)
        return {t.number: t.user_attrs.get("reason", "") for t in failed if INTERRUPTED not in t.user_attrs}

    def counts(self) -> dict[str, int]:
        """Number of proposed trials by state, interrupted ones apart, without those that did not run."""
        by_state = {"complete": 0, "fail": 0, "pruned": 0, INTERRUPTED: 0}
        for trial in self._trials():
            if trial.number == 0 or not trial.state.is_finished():
                continue
            if trial.state is TrialState.PRUNED and EXTRA in trial.user_attrs:
                continue
            interrupted = INTERRUPTED in trial.user_attrs
            by_state[INTERRUPTED if interrupted else trial.state.name.lower()] += 1
        return by_state

    def ended(self) -> list[FrozenTrial]:
        """List the trials that ended, the reference and those without a result included."""
        return self._trials(TrialState.COMPLETE, TrialState.PRUNED, TrialState.FAIL)

    def configs(self) -> list[TrialConfig]:
        """List the configurations of all proposed trials that ended with a result."""
        complete = [trial for trial in self.complete_trials() if trial.number > 0]
        return [TrialConfig.from_json(trial.user_attrs["details"]["config"]) for trial in complete]

    def complete_trials(self) -> list[FrozenTrial]:
        """List the trials that ended with a result, the reference included."""
        return self._trials(TrialState.COMPLETE)

    def front(
        self, reference: Mapping[str, float], among: Collection[int] | None = None
    ) -> list[FrozenTrial]:
        """Feasible, non-dominated trials by what was measured last, best primary objective first.

        Latencies that differ by less than their spread are ties; of equal trials the first stays.

        Args:
            reference: metrics of the reference.
            among: numbers of the trials that count; None is all.
        """
        candidates = self._candidates(reference, among)
        costs = costs_of([point for _, point in candidates], self.objectives)
        chosen = non_dominated(costs, self._tolerances(candidates))
        return [candidates[i][0] for i in sorted(chosen, key=lambda i: list(costs[i]))]

    def front_probabilities(
        self, reference: Mapping[str, float], among: Collection[int] | None = None
    ) -> dict[int, float]:
        """How likely each feasible trial is to be on the front of these, were they judged by other rows.

        Args:
            reference: metrics of the reference.
            among: numbers of the trials that count; None is all.
        """
        candidates = self._candidates(reference, among)
        if not candidates:
            return {}
        points = [point for _, point in candidates]
        costs, drawn = costs_of(points, self.objectives), drawn_costs(points, self.objectives)
        shares = front_probabilities(costs, drawn, self._tolerances(candidates))
        numbers = [trial.number for trial, _ in candidates]
        return dict(zip(numbers, shares.tolist(), strict=True))

    def standing(
        self, number: int, reference: Mapping[str, float], among: Collection[int]
    ) -> tuple[bool, float]:
        """Whether a feasible trial is on the front of these, and how likely it is to be, were they judged by
        other rows: what `front` and `front_probabilities` say of it, without judging the others.

        Args:
            number: of the trial, one of these.
            reference: metrics of the reference.
            among: numbers of the trials that count.
        """
        candidates = self._candidates(reference, among)
        position = [trial.number for trial, _ in candidates].index(number)
        points = [point for _, point in candidates]
        costs, tolerances = costs_of(points, self.objectives), self._tolerances(candidates)
        if is_non_dominated(position, costs, tolerances):
            return True, 1.0
        drawn = drawn_costs(points, self.objectives)
        return False, front_probability(position, costs, drawn, tolerances)

    def rivals(
        self,
        reference: Mapping[str, float],
        among: Collection[int],
        least: float,
        constraints: Sequence[Constraint] | None = None,
    ) -> Rivals:
        """What a candidate is up against now.

        Args:
            reference: metrics of the reference.
            among: numbers of the trials that it is compared with.
            least: probability of being on the front from which on a candidate is kept.
            constraints: that it must satisfy; None is those of the search.
        """
        bounds = self.constraints if constraints is None else tuple(constraints)
        names = {objective.metric for objective in self.objectives}
        points = tuple(
            Point(point.metrics, {name: drawn for name, drawn in point.replicates.items() if name in names})
            for _, point in self._candidates(reference, among, bounds)
        )
        return Rivals(self.objectives, bounds, reference, points, least)

    def _candidates(
        self,
        reference: Mapping[str, float],
        among: Collection[int] | None,
        constraints: Sequence[Constraint] | None = None,
    ) -> list[tuple[FrozenTrial, Point]]:
        """Complete trials that satisfy constraints, the search's unless given, by what was measured last."""
        bounds = self.constraints if constraints is None else constraints
        final, dropped = self.final_metrics(), self.dropped()
        candidates: list[tuple[FrozenTrial, Point]] = []
        for trial in self.complete_trials():
            if trial.number in dropped or (among is not None and trial.number not in among):
                continue
            metrics = {**trial.user_attrs["metrics"], **final.get(trial.number, {})}
            if all(c.violation(metrics, reference) <= 0 for c in bounds):
                drawn = trial.user_attrs["details"].get("replicates", {})
                candidates.append((trial, Point(metrics, drawn)))
        return candidates

    def _tolerances(self, candidates: Sequence[tuple[FrozenTrial, Point]]) -> NDArray[np.float64]:
        """What of a difference in each objective is noise; `(trials, objectives)`."""
        spreads = [
            [_spread(o.metric, point.metrics) * point.metrics[o.metric] for o in self.objectives]
            for _, point in candidates
        ]
        return np.reshape(spreads, (len(candidates), len(self.objectives)))

    def dropped(self) -> dict[int, str]:
        """Trials that failed their final check, with the reason; they are on no front."""
        stored: Mapping[str, str] = self.study.user_attrs.get("dropped", {})
        return {int(number): reason for number, reason in stored.items()}

    def drop(self, reasons: Mapping[int, str]) -> None:
        """Take trials that failed their final check off the front."""
        merged = {**self.dropped(), **reasons}
        self._set_attribute_of_study("dropped", {str(number): reason for number, reason in merged.items()})

    def worth(self) -> dict[int, bool]:
        """Whether trials were worth keeping when they ended, of those whose folders do not tell."""
        stored: Mapping[str, bool] = self.study.user_attrs.get("worth", {})
        return {int(number): worth for number, worth in stored.items()}

    def set_worth(self, values: Mapping[int, bool]) -> None:
        """Record whether trials were worth keeping; what was recorded before stands."""
        merged = {**values, **self.worth()}
        self._set_attribute_of_study("worth", {str(number): worth for number, worth in merged.items()})

    def needed(self) -> set[int]:
        """Numbers of the trials that run, or wait to run again as they were proposed, and of those they need.

        A trial that runs may have stored its model already, which is judged once the trial is recorded.
        """
        left = self._trials(TrialState.RUNNING, TrialState.WAITING)
        configs = [trial.user_attrs.get(CONFIG, {}) for trial in left]
        needed = {config[name] for config in configs for name in ("parent", "teacher") if config.get(name)}
        return needed | {trial.number for trial in left}

    def test_metrics(self) -> dict[int, dict[str, float]]:
        """Metrics on the test split, by trial number."""
        return self._later("test_metrics")

    def set_test_metrics(self, values: Mapping[int, Mapping[str, float]]) -> None:
        """Add metrics on the test split."""
        self._set_later("test_metrics", values)

    def final_metrics(self) -> dict[int, dict[str, float]]:
        """What was measured once more when no trial ran, by trial number."""
        return self._later("final_metrics")

    def set_final_metrics(self, values: Mapping[int, Mapping[str, float]]) -> None:
        """Add metrics measured when no trial ran; they take the place of the trials' own."""
        self._set_later("final_metrics", values)

    def _later(self, key: str) -> dict[int, dict[str, float]]:
        stored = self.study.user_attrs.get(key, {})
        return {int(number): dict(values) for number, values in stored.items()}

    def _set_later(self, key: str, values: Mapping[int, Mapping[str, float]]) -> None:
        # They stand at the study, because finished trials are final.
        merged = {**self._later(key), **values}
        self._set_attribute_of_study(key, {str(n): dict(v) for n, v in merged.items()})

    def _fail(self, number: int, trial_id: int, reason: str, *, interrupted: bool) -> None:
        storage = self.study._storage
        storage.set_trial_user_attr(trial_id, "reason", reason)
        if interrupted:
            storage.set_trial_user_attr(trial_id, INTERRUPTED, True)
        self.study.tell(number, state=TrialState.FAIL)

    def _enqueue(self, trial: FrozenTrial, *, counted: bool) -> None:
        kept = (ASKED, EXTRA, WARM_START, TAKEN_OVER, CONFIG, _RUNS)
        again = {name: trial.user_attrs[name] for name in kept if name in trial.user_attrs}
        if counted:
            again[_RUNS] = again.get(_RUNS, 1) + 1
        if trial.params or {TAKEN_OVER, CONFIG} & again.keys():
            self.study.enqueue_trial(trial.params, user_attrs=again)


def _may_run_again(trial: Trial | FrozenTrial) -> bool:
    runs: int = trial.user_attrs.get(_RUNS, 1)
    return runs < _MOST_RUNS


def _origin(run: str, number: int) -> str:
    return f"{run}/trials/{number:04d}"


def _spread(metric: str, metrics: Mapping[str, float]) -> float:
    """What share of a metric repeated measurements differ by."""
    return metrics.get("latency_spread", 0.0) if metric == "latency" else 0.0
