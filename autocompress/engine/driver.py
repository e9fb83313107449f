"""The search's side of execution: proposes trials, hears of their ends, and records them."""

from __future__ import annotations

import json
import time
import traceback
from collections import Counter, deque
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any

from autocompress import plugins
from autocompress.checkpoint.store import kept_trials, remove_checkpoint, trial_folder
from autocompress.distribute import Failure, Job
from autocompress.engine.damaged import set_damaged_aside
from autocompress.engine.family import FamilyTree, stored_as_codes
from autocompress.engine.interruption import Interruption
from autocompress.engine.moasha import MoAsha
from autocompress.engine.prepare import Prepared
from autocompress.engine.retention import remove_displaced
from autocompress.engine.saving import Saver
from autocompress.errors import AutocompressError, StorageError, UsageError, one_line
from autocompress.lineage import Family, Running
from autocompress.report import Progress, TrialBegin, TrialEnd
from autocompress.result import LEAST_PROBABILITY
from autocompress.rivals import Rivals
from autocompress.study import CONFIG, EXTRA, STORAGE_ERRORS, TAKEN_OVER, SearchStudy, Tracker
from autocompress.trial import Stage, TrialConfig, TrialResult, epoch_values, move_text, rung_metrics

# Trials of the same methods with the same settings, and proposals of such in a row that end a search.
_MOST_ALIKE, _MOST_REPEATED = 2, 50
# Checkpoints by which a folder may grow before those are removed whose place others took; or by a tenth.
_MOST_NEW = 8
# From when on it is said that something waits, which is longer than a worker's start on a busy machine.
WAIT_SECONDS = 30.0
WAITS = "waits for a worker: Ray has no CPUs or GPUs free for one, or it is slow to start"


class SearchDriver:
    """Asks the study for trials until the budget ends, and tells it how they went.

    Args:
        prepared: the search.
        study: where trials are recorded.
        trials: folder of the trials' checkpoints.
        reference: metrics of the reference.
        progress: the display.
        stopping: stops trials early; None lets all run to their end.
        tracker: is told of each trial that ended; None where nothing is tracked.
        interruption: ends the search before its budget does; None is the time limit alone, from now on.
        saver: uploads the run to its store; None where it is in none.
    """

    def __init__(
        self,
        prepared: Prepared,
        study: SearchStudy,
        trials: Path,
        reference: Mapping[str, float],
        progress: Progress,
        stopping: MoAsha | None = None,
        tracker: Tracker | None = None,
        interruption: Interruption | None = None,
        saver: Saver | None = None,
    ) -> None:
        self.saver = saver
        self.prepared, self.study, self.trials = prepared, study, trials
        self.reference, self.progress, self.stopping, self.tracker = reference, progress, stopping, tracker
        self.left = prepared.settings.trials - study.finished()
        self.interruption = interruption or Interruption(prepared.settings.timeout)
        self.waited: set[int] = set()
        self.full: StorageError | None = None
        self.epochs = prepared.task.recipe.epochs
        self.configs: dict[int, TrialConfig] = {}
        # Why trials were stopped early, and what their models measured then.
        self.pruned: dict[int, tuple[str, Mapping[str, float]]] = {}
        self.step_seconds = 0.0
        self.seconds: dict[int, float] = {}
        self.first_start: float | None = None
        self.last_end = 0.0
        self.slots = _Slots()
        self.pipeline = plugins.pipeline()
        self.tree = FamilyTree(
            study,
            trials,
            prepared.objectives,
            prepared.constraints,
            reference,
            prepared.profile,
            prepared.target,
            prepared.distill,
        )
        self.running: dict[int, Running] = {}
        self.extra: set[int] = set()
        self.idle = False
        # Checkpoints that stayed when those were removed last whose place others took.
        self.retained = 0
        self.guided = prepared.settings.sampler == "auto"
        self.tried = Counter(_stages(config) for config in study.configs())

    def plan(self, workers: int) -> str | None:
        """What the budget is spent on, in one line; None where the sampler proposes every trial.

        Args:
            workers: trials at a time.
        """
        if not self.guided:
            return None
        trials = self.prepared.settings.trials
        planned = self.pipeline.plan(trials, self.prepared.spaces, self.tree.cost_metric)
        if not self.study.finished() and self._guided(self._family()) is None:
            # Nothing is to be won by going down, as where a file is mostly graph.
            planned = replace(planned, methods=())
        return str(planned.text(workers))

    def ended_before(self) -> list[TrialEnd]:
        """How the trials of earlier calls ended."""
        return [
            TrialEnd(
                trial.number,
                trial.state.name.lower(),
                trial.user_attrs.get("metrics", {}),
                self.reference,
                trial.user_attrs.get("reason", ""),
                trial.user_attrs.get("feasible", True),
                EXTRA in trial.user_attrs,
            )
            for trial in self.study.ended()
            if trial.number > 0
        ]

    def next(self) -> Job | None:
        """Propose the next trial; where its search space fails, that is recorded and another proposed."""
        repeated = 0
        while not (self.idle or self.fatal or self.interruption.late or self.interruption.overdue):
            family = self._family()
            reason = self.pipeline.enough(family) if self.guided and self.left > 0 else None
            if reason is not None:
                self.progress.note(f"{reason}: {self.left} trials are left")
                self.left = 0
                continue
            waiting = self.study.waiting()
            move = None if waiting else self._guided(family)
            trains = move is None or move.trained
            if self.left <= 0 and trains and not self.study.waiting(extra=True):
                # Until a running trial ends with a model that is worth storing as codes.
                self.idle = True
                break
            if not waiting and any(config.taken_over for config in self.configs.values()):
                # Until what is taken over can be started from.
                self.idle = True
                break
            self.first_start = self.first_start or time.perf_counter()
            number, config = self._ask(family, move)
            if config is None:
                continue
            if move is None and not waiting and self._repeats(config):
                repeated += 1
                self.study.prune(number, "the same as trials before it", extra=True)
                self.left += 1
                if repeated == _MOST_REPEATED:
                    self.progress.note(f"nothing new to try: {self.left} trials are left")
                    self.left = 0
                continue
            self.tried[_stages(config)] += 1
            self.configs[number] = config
            if config.epochs:
                cost = family.kept[config.parent].cost if move is None else move.cost
                self.running[number] = Running(config.parent, cost, {} if move is None else move.params)
            self.slots.begin(number)
            self.progress.trial_begin(TrialBegin(number, config.parent, move_text(config), config.epochs))
            self.progress.trial_epoch(number, 0, config.epochs)
            return Job(number, config, self._rivals(config))
        return None

    @property
    def unfinished(self) -> bool:
        """Whether there is something to run, be it beside the budget."""
        if self.left > 0 or self.study.waiting(extra=True):
            return True
        move = self._guided(self._family())
        return move is not None and not move.trained

    def _family(self) -> Family:
        return self.tree.family(tuple(self.running.values()), self._coding(), self.left)

    def _guided(self, family: Family) -> Any:
        """A trial that goes where the front lacks a point; None where the sampler is to propose."""
        if not self.guided:
            return None
        try:
            return self.pipeline.guided(family, self.prepared.spaces)
        except UsageError as error:
            # A space of a user's own, which was tried on the reference alone.
            self.guided = False
            self.progress.note(f"{one_line(error)}; the sampler goes on alone")
            return None

    def _repeats(self, config: TrialConfig) -> bool:
        """Whether the same was tried often enough, from whichever parent: a small space is soon exhausted."""
        most = _MOST_ALIKE if config.stages else max(_MOST_ALIKE, self.prepared.settings.trials // 6)
        return self.tried[_stages(config)] >= most

    def _coding(self) -> tuple[int, ...]:
        running = self.configs.values()
        return tuple(config.parent for config in running if not (config.epochs or config.taken_over))

    def epoch(self, number: int, entry: Mapping[str, float]) -> bool:
        """Show an epoch; the trial goes on unless the time is over or others are better at this rung."""
        self.progress.epoch_log(number, epoch_values(entry))
        self.progress.trial_epoch(number, int(entry["epoch"]), self.epochs)
        self.seconds[number] = entry["seconds"]
        if self.interruption.late:
            return False
        standing = rung_metrics(entry)
        if self.stopping is None or not standing:
            return True
        reason = self.stopping.stops(number, int(entry["epoch"]), standing)
        if reason is not None:
            self.pruned[number] = (reason, standing)
        return reason is None

    @property
    def fatal(self) -> Exception | None:
        """What ended the search, of what no trial has to do with: the disk, or the run's store."""
        return self.full or (None if self.saver is None else self.saver.error)

    @property
    def interrupted(self) -> bool:
        """Whether a signal came; `abandon` then records what runs."""
        return self.interruption.signum is not None

    def overdue(self, number: int, seconds: float) -> bool:
        """Whether a trial is to be ended wherever it is: the search is over, or the trial's own time is."""
        limit = self.prepared.settings.trial_timeout
        ended = self.fatal is not None or self.interruption.overdue
        return ended or (limit is not None and seconds > limit)

    def waits(self, number: int, seconds: float) -> None:
        """Say once of a trial that it waits."""
        if seconds > WAIT_SECONDS and number not in self.waited:
            self.waited.add(number)
            self.progress.note(f"trial {number} {WAITS}")

    def completed(self, number: int, result: TrialResult | None) -> None:
        """Record a trial's result in the study, keep or drop its checkpoint, and show its end."""
        assert result is not None, "only the reference has none"
        self._ended(number, result.step_seconds, result.seconds)
        config = self.configs.pop(number)
        attributes = {
            "config": config.to_json(),
            "errors": dict(result.errors),
            "replicates": {name: list(drawn) for name, drawn in result.replicates.items()},
            "validation_rows": result.validation_rows,
            "difference": result.difference,
            "estimated": result.estimated,
            "int8": result.int8,
            "seconds": round(result.seconds, 3),
            "step_seconds": round(result.step_seconds, 3),
            "method_seconds": round(result.method_seconds, 3),
        }
        feasible = self.study.complete(number, result.metrics, self.reference, attributes)
        methods = [stage.method for stage in config.stages]
        worth, remark = self._standing(number, feasible, methods, result.metrics)
        self._retain(number, worth)
        self._show_end(number, "complete", remark, result.metrics, feasible)

    def _rivals(self, config: TrialConfig) -> Rivals:
        """What a model must pass to be written: nothing where each is kept. Those that store weights as codes
        are no match for one that others may start from, which may also be too costly yet."""
        if self.prepared.settings.keep == "all":
            return Rivals(tuple(self.prepared.objectives), (), self.reference, (), LEAST_PROBABILITY)
        numbers = {0, *kept_trials(self.trials)}
        if stored_as_codes([stage.method for stage in config.stages]):
            return self.study.rivals(self.reference, numbers, LEAST_PROBABILITY)
        numbers &= self.tree.parents.keys()
        return self.study.rivals(self.reference, numbers, LEAST_PROBABILITY, self.tree.quality)

    def _standing(
        self, number: int, feasible: bool, methods: Sequence[str], metrics: Mapping[str, float]
    ) -> tuple[bool, str]:
        """Whether a trial's model is worth keeping beside others, and what is to be said of it."""
        kept = {0, *kept_trials(self.trials)}
        # A model that was shut out has no checkpoint.
        if number in kept:
            if feasible:
                on_front, probability = self.study.standing(number, self.reference, kept)
                if on_front:
                    return True, "on the front"
                if probability >= LEAST_PROBABILITY:
                    return True, "within noise of the front"
            if self.tree.may_be_parent(number, methods, metrics):
                return True, "may be started from" if feasible else "out of bounds, may be started from"
        return False, "" if feasible else "out of bounds"

    def _retain(self, number: int, worth: bool) -> None:
        """Keep the checkpoint of a trial that ended or delete it, and those whose place it took; `replay`
        makes them again."""
        if self.prepared.settings.keep == "all":
            if not worth:
                self.study.set_worth({number: False})
        elif worth:
            # Not for each: all that are there are judged, and noise may have a hundred stay.
            if len(kept_trials(self.trials)) > self.retained + max(_MOST_NEW, self.retained // 10):
                remove_displaced(self.trials, self.study, self.tree, self.reference)
                self.retained = len(kept_trials(self.trials))
        else:
            remove_checkpoint(trial_folder(self.trials, number))

    def stopped(self, number: int) -> None:
        """Record a trial as pruned, with what its model measured, or as interrupted where time was over."""
        self._ended(number, self.seconds.get(number, 0.0))
        config = self.configs.pop(number)
        if number in self.pruned:
            reason, metrics = self.pruned.pop(number)
            self.study.prune(number, reason, metrics, {"config": config.to_json()})
        else:
            reason, metrics = "the time limit was reached", {}
            self.study.fail(number, reason, interrupted=True)
        self._show_end(number, "pruned", reason, metrics)

    def killed(self, number: int, where: str) -> None:
        """Record a trial that was ended as interrupted where the search is over, else as failed."""
        if self.fatal is not None:
            self._ended(number, 0.0)  # `abandon` records it
        elif self.interruption.overdue:
            self.stopped(number)
        else:
            limit = self.prepared.settings.trial_timeout
            reason = f"it took longer than the {limit:g} s of trial_timeout"
            lines = (line.strip() for line in where.splitlines())
            place = next((line for line in lines if line.startswith("File ")), "")
            self.failed(number, Failure(f"{reason}, and was at {place}" if place else reason, where))

    def died(self, number: int) -> None:
        """Record a trial whose process died, to be run again where it did not often."""
        self._again_or_fail(number, Failure("the worker process died"))

    def failed(self, number: int, failure: Failure) -> None:
        """Record a trial as failed; where memory ran out or a checkpoint that it needed is damaged, to be run
        again where it did not often.

        Where the disk is full, the search is over.
        """
        if failure.kind == "checkpoint" and number in self.configs:
            config = self.configs[number]
            needed = {config.parent, config.teacher} - {0}
            for damaged, reason in set_damaged_aside(self.trials, needed, self.study).items():
                self.progress.note(f"trial {damaged} left the front: {reason}")
        if failure.kind in ("memory", "checkpoint"):
            self._again_or_fail(number, failure)
        elif failure.kind == "disk":
            self.full = StorageError(
                f"the disk of '{self.trials}' or of TMPDIR is full: {failure.reason} (what had finished is "
                "kept; make room, and the same command continues)"
            )
            self._ended(number, 0.0)  # `abandon` records it
        else:
            self._fail(number, failure)

    def _again_or_fail(self, number: int, failure: Failure) -> None:
        """Record a trial as failed by what may be no fault of its own; it runs again, but not for ever."""
        self._fail(number, failure, again=self.study.may_run_again(number))

    def _fail(self, number: int, failure: Failure, *, again: bool = False) -> None:
        self._ended(number, self.seconds.get(number, 0.0))
        self.configs.pop(number, None)
        self.left += again and not self.study.is_extra(number)
        diverged = failure.kind == "diverged"
        self.study.fail(number, failure.reason, failure.traceback, again=again, diverged=diverged)
        self._show_end(number, "fail", f"{failure.reason}; it runs again" if again else failure.reason)

    @property
    def live(self) -> bool:
        """Whether trials run whose end was never told."""
        return bool(self.study.live)

    def leave(self) -> None:
        """Record nothing of trials that are cut off: the next call does."""
        self.study.live.clear()

    def abandon(self) -> None:
        """Record trials that were cut off, so that the same command runs them again."""
        for number in list(self.study.live):
            self.study.fail(number, "interrupted", interrupted=True)

    def overhead(self, workers: int) -> tuple[float, float, float] | None:
        """(overhead, wall seconds, step seconds) of the trials that completed; None without any.

        Overhead is (wall time × workers − time in steps) ÷ time in steps.
        """
        if self.first_start is None or not self.step_seconds:
            return None
        wall = self.last_end - self.first_start
        return (wall * workers - self.step_seconds) / self.step_seconds, wall, self.step_seconds

    def outside(self) -> tuple[float, float] | None:
        """Seconds that a trial took outside of steps, on average over those that were not their worker's
        first: in the trial itself, and from the end of the one before it to its own. None where there were
        none.
        """
        slots = self.slots
        return (slots.own / slots.trials, slots.outside / slots.trials) if slots.trials else None

    def _ended(self, number: int, step_seconds: float, seconds: float | None = None) -> None:
        self.running.pop(number, None)
        self.idle = False
        self.step_seconds += step_seconds
        self.last_end = time.perf_counter()
        self.slots.end(number, self.last_end, step_seconds, seconds)

    def _show_end(
        self,
        number: int,
        state: str,
        remark: str,
        metrics: Mapping[str, float] | None = None,
        feasible: bool = True,
    ) -> None:
        if self.tracker is not None:
            self.tracker.tell(self.study.study, number)
        if self.saver is not None:
            self.saver.changed()
        extra = number in self.extra
        self.progress.trial_end(
            TrialEnd(number, state, metrics or {}, self.reference, remark, feasible, extra)
        )

    def _ask(self, family: Family, move: Any) -> tuple[int, TrialConfig | None]:
        """The next trial's number and configuration; none where its search space failed."""
        with self.study.transaction():
            if move is None:
                trial = self.study.ask()
            else:
                trial = self.study.ask(move.params, move.asked, extra=not move.trained)
            if EXTRA in trial.user_attrs:
                self.extra.add(trial.number)
            else:
                self.left -= 1
        try:
            # Of its own: what Optuna refuses, as a parameter of another kind, takes all back that is not
            # committed.
            with self.study.transaction():
                config = self._proposed_before(trial, family, self._propose(trial, family))
                self.study.record_config(trial.number, config)
        except STORAGE_ERRORS:
            raise
        except Exception as error:  # a search space may be the user's own
            kind = "" if isinstance(error, AutocompressError) else f"{type(error).__name__}: "
            reason = f"its search space failed: {kind}{one_line(error)}"
            self.failed(trial.number, Failure(reason, traceback.format_exc()))
            return trial.number, None
        return trial.number, config

    def _proposed_before(self, trial: Any, family: Family, proposed: TrialConfig) -> TrialConfig:
        """What a trial that runs again was: of a family that has grown, its parameters may mean another
        parent."""
        if CONFIG not in trial.user_attrs:
            return proposed
        before = TrialConfig.from_json(trial.user_attrs[CONFIG])
        return before if {before.parent, before.teacher} <= {0, *family.kept} else proposed

    def _propose(self, trial: Any, family: Family) -> TrialConfig:
        if TAKEN_OVER in trial.user_attrs:
            seed = self.prepared.settings.seed
            return TrialConfig(epochs=0, taken_over=trial.user_attrs[TAKEN_OVER], seed=seed)
        proposal = self.pipeline.suggest(trial, family, self.prepared.spaces)
        return TrialConfig(
            stages=tuple(Stage(plugins.method_of(c), asdict(c)) for c in proposal.configs),
            parent=proposal.parent,
            epochs=0 if EXTRA in trial.user_attrs else self.epochs,
            compress_share=proposal.compress_share,
            lr_scale=proposal.lr_scale,
            distill_weight=proposal.distill_weight,
            distill_temperature=proposal.distill_temperature,
            # The task's own teacher is none of the trials.
            teacher=proposal.teacher if self.prepared.task.teacher is None else 0,
            seed=self.prepared.settings.seed,
        )


def _stages(config: TrialConfig) -> str:
    return json.dumps([config.to_json()["stages"], config.taken_over], sort_keys=True)


@dataclass
class _Slots:
    """What workers do between one trial and the next, as the driver sees it: a trial that is asked for
    takes the place of one that ended.

    Args:
        outside: seconds outside of steps, of complete trials that had one before them.
        own: of these, those in the trials themselves.
        trials: how many these are.
        free: when each place that is free became so.
        begun: running trial → when its place became free; None for the first one of a worker.
    """

    outside: float = 0.0
    own: float = 0.0
    trials: int = 0
    free: deque[float] = field(default_factory=deque)
    begun: dict[int, float | None] = field(default_factory=dict)

    def begin(self, number: int) -> None:
        self.begun[number] = self.free.popleft() if self.free else None

    def end(self, number: int, now: float, step_seconds: float, seconds: float | None) -> None:
        """A trial ended, which took so many seconds; None where it did not complete."""
        if number not in self.begun:
            return
        begun = self.begun.pop(number)
        self.free.append(now)
        if begun is not None and seconds is not None:
            self.outside += now - begun - step_seconds
            self.own += seconds - step_seconds
            self.trials += 1
