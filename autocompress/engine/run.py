"""`search`: from the reference to the report."""

from __future__ import annotations

import math
import shlex
import shutil
from collections.abc import Mapping
from dataclasses import replace
from typing import Any

import torch
from joblib import cpu_count

from autocompress.checkpoint import Checkpoint, open_checkpoint
from autocompress.checkpoint.store import kept_trials, remove_leftovers, trial_folder
from autocompress.distribute import (
    Cluster,
    ReferenceJob,
    check_sendable,
    connection,
    execute,
    hide_in_title,
    memory_share,
    serving,
    start_here,
)
from autocompress.distribute.worker import Shared
from autocompress.engine.damaged import set_damaged_aside
from autocompress.engine.driver import SearchDriver
from autocompress.engine.failures import grouped, told_failures
from autocompress.engine.final import UNSETTLED, settle_front
from autocompress.engine.folder import RunFolder, run_folder
from autocompress.engine.identity import identity
from autocompress.engine.interruption import Interrupted, Interruption, TimeOver
from autocompress.engine.moasha import MoAsha, rungs
from autocompress.engine.out_of_bounds import why_none_within
from autocompress.engine.prepare import Prepared, prepare
from autocompress.engine.reference import ReferenceFirst
from autocompress.engine.results import build_result, draw_pictures, report, study_name
from autocompress.engine.retention import keep_front_alone, remove_displaced
from autocompress.engine.saving import Saver, saving
from autocompress.engine.settings import Settings
from autocompress.engine.warm_start import WarmStart, plan_warm_start
from autocompress.errors import SearchFailedError, StorageError, one_line, refuse_unknown
from autocompress.graph.reach import reach
from autocompress.remote import is_address, secrets_of_address
from autocompress.report import Progress, shown_progress
from autocompress.result import Z95, SearchResult
from autocompress.study import (
    STORAGE_ERRORS,
    SearchStudy,
    Tracker,
    check_storage,
    secrets_of,
    sqlite_url,
)
from autocompress.task import ModelProfile, Task
from autocompress.trial import epoch_values


def search(
    task: Task | str,
    settings: Settings | None = None,
    *,
    progress: Progress | None = None,
    **options: Any,
) -> SearchResult:
    """Search for compressed models of a task, or continue an earlier search of the same settings.

    Args:
        task: a `Task`, or a name as on the command line.
        settings: all settings; fields may be given as keyword arguments instead or beside.
        progress: receives events; None shows them on standard error, `Progress()` nowhere.
        options: fields of `Settings`, lists for tuples.

    Ctrl-C ends the search with the front so far. SIGTERM and SIGHUP do too, and then do what they would have
    done to this process.

    Raises:
        UsageError: the task or a setting cannot be used; nothing was written.
        SearchFailedError: no trial succeeded, or there was no time for any.
    """
    fixed: dict[str, Any] = {k: tuple(v) if isinstance(v, list) else v for k, v in options.items()}
    fixed |= {name: str(fixed[name]) for name in ("out", "warm_start") if fixed.get(name) is not None}
    name = task if isinstance(task, str) else task.name
    refuse_unknown("search", fixed, Settings.__dataclass_fields__)
    resolved = replace(settings or Settings(), **fixed, task=name)
    interruption = Interruption(resolved.timeout)
    try:
        with interruption:
            return search_within(interruption, task, resolved, progress)
    finally:
        interruption.hand_on()


def search_within(
    interruption: Interruption, task: Task | str, settings: Settings, progress: Progress | None = None
) -> SearchResult:
    """Search, or continue an earlier search, until it ends or is interrupted.

    Args:
        interruption: entered.
        task: a `Task`, or a name as on the command line.
        settings: all settings.
        progress: receives events; None shows them on standard error.

    Raises:
        Interrupted: a signal came before anything was written.
    """
    try:
        settings.check_machine()
        hide_in_title(_secrets(settings))
        # What is no place for a run is refused before anything takes time.
        folder = None if settings.out is None else run_folder(settings.out)
        prepared = prepare(task, settings)
        folder = folder or RunFolder(prepared.out)
        prepared = replace(prepared, out=folder.path)
        shown = progress or shown_progress()
        try:
            if folder.mirror is not None:
                folder.mirror.pull(shown.note)
            entries = identity(prepared)
            folder.refuse_other_settings(entries)
            # Once it is taken over, the other run is needed no more.
            taking = settings.warm_start is not None and not folder.taken_over.is_dir()
            warm_start = plan_warm_start(prepared, entries, shown.note) if taking else None
            if settings.storage is not None:
                check_storage(settings.storage)
            with (
                interruption.asked(),
                connection(settings.ray_address),
                folder.locked(),
                saving(folder.mirror, shown.note) as saver,
            ):
                try:
                    return _Search(prepared, entries, folder, shown, warm_start, interruption, saver).run()
                finally:
                    interruption.over()
        finally:
            if progress is None:
                shown.close()
    except STORAGE_ERRORS as error:
        raise StorageError(
            f"the storage of the study failed: {_first_cause(error)} (what had finished is kept, and the "
            "same command continues)"
        ) from error
    except TimeOver as error:
        raise SearchFailedError(
            f"timeout must leave time to prepare the search but {interruption.timeout:g} s were over before "
            "(give more)"
        ) from error


def _secrets(settings: Settings) -> list[str]:
    """What nobody is to read of the settings in a list of processes."""
    places = [place for place in (settings.out, settings.warm_start) if place is not None]
    secrets = [secret for place in places if is_address(place) for secret in secrets_of_address(place)]
    return secrets + ([] if settings.storage is None else secrets_of(settings.storage))


def _first_cause(error: BaseException) -> str:
    """What a database's driver said, which Optuna and SQLAlchemy say in more words."""
    while error.__cause__ is not None:
        error = error.__cause__
    return one_line(error)


def _reached(prepared: Prepared) -> str:
    """Which share of the model each method can make smaller, in one line."""
    shares = reach(prepared.model, prepared.analysis, prepared.profile)
    parts = ", ".join(
        f"{method} {share.params:.0%} / {share.macs:.0%} / {share.bytes:.0%}"
        for method, share in shares.items()
    )
    return (
        f"methods can reach of the model's parameters / MACs / bytes: {parts} (autocompress inspect says why "
        "not all)"
    )


# What the study records of the reference's manifest.
_REFERENCE_DETAILS = ("config", "errors", "replicates", "validation_rows")


class _Search:
    """One call of `search`, from the reference to the report."""

    def __init__(
        self,
        prepared: Prepared,
        entries: Mapping[str, Any],
        folder: RunFolder,
        progress: Progress,
        warm_start: WarmStart | None,
        interruption: Interruption,
        saver: Saver | None = None,
    ) -> None:
        self.saver = saver
        self.prepared, self.identity, self.folder, self.progress = prepared, entries, folder, progress
        self.settings, self.warm_start = prepared.settings, warm_start
        self.interruption = interruption
        self.workers = min(self.settings.parallel, self.settings.trials)
        names = [objective.metric for objective in prepared.objectives]
        self.tracker = Tracker(names, self.settings.mlflow, self.settings.wandb, progress.note)

    def run(self) -> SearchResult:
        folder, settings = self.folder, self.settings
        check_sendable(self.prepared.task, self.prepared.latency.by)
        self.progress.search_begins(self.prepared.objectives)
        if folder.exists:
            self.progress.note(f"continuing the run in {folder.shown}")
        else:
            folder.write(settings, self.identity, {})
            if self.saver is not None:
                self.saver.changed()
        for note in (*self.prepared.notes, _reached(self.prepared)):
            self.progress.note(note)
        for place in (folder.trials, folder.artifacts):
            place.mkdir(exist_ok=True)
        for place in (folder.path, folder.trials):
            remove_leftovers(place)
        if folder.reference.is_dir():
            driver = self._begin()
            return self._finish(driver, not driver.unfinished or self._execute(driver))
        first = self._reference_first()
        finished = self._execute(first)
        if first.error is not None:
            raise first.error
        if first.search is None:
            # Without a signal it was the time limit that left none for the reference to begin.
            raise TimeOver if self.interruption.signum is None else Interrupted
        return self._finish(first.search, finished)

    def _reference_first(self) -> ReferenceFirst:
        """The run of one whose reference has yet to be trained: where trials are, so that this process never
        has a GPU."""
        recipe, is_given = self.prepared.task.recipe, self.prepared.task.weights is not None
        epochs = 0 if is_given else recipe.reference_epochs or recipe.epochs
        # More threads than a busy machine has cores free are slower than one.
        threads = min(torch.get_num_threads(), max(1, cpu_count() // 2))
        self.progress.reference_epoch(0, epochs)
        return ReferenceFirst(
            ReferenceJob(self.settings.seed, threads),
            self.workers,
            self.folder.computed.resolve() / "reference-ended",
            self._begin,
            lambda entry: self._show_reference(entry, epochs),
            self.interruption,
            self.progress.note,
            self.saver,
        )

    def _show_reference(self, entry: Mapping[str, float], epochs: int) -> None:
        self.progress.epoch_log(0, epoch_values(entry))
        self.progress.reference_epoch(int(entry["epoch"]), epochs)

    def _begin(self) -> SearchDriver:
        """The search, once the reference is stored."""
        folder, settings = self.folder, self.settings
        checkpoint = open_checkpoint(folder.reference)
        metrics: Mapping[str, float] = checkpoint.manifest["metrics"]
        described = [{"metric": o.metric, "direction": o.direction} for o in self.prepared.objectives]
        extra = {
            "reference": {"metrics": metrics},
            "objectives": described,
            "constraints": [c.text for c in self.prepared.constraints],
        }
        folder.write(settings, self.identity, extra)
        self.progress.note(_resolution(checkpoint.manifest, self.prepared.objectives[0].metric))
        study = self._study(metrics, checkpoint)
        if self.warm_start is not None:
            self.warm_start.enqueue(study)
            self.warm_start.copy_to(folder.taken_over)
            self.progress.note(self.warm_start.note)
        stopping = MoAsha(study, self.prepared.objectives) if settings.early_stopping else None
        # The stored one knows, beside, what the trained model would lose.
        known = ModelProfile.from_json(checkpoint.manifest["profile"])
        driver = SearchDriver(
            replace(self.prepared, profile=known),
            study,
            folder.trials,
            metrics,
            self.progress,
            stopping,
            self.tracker,
            self.interruption,
            self.saver,
        )
        if self.saver is not None:
            self.saver.changed()
        if driver.left > 0:
            self._tell(driver)
        return driver

    def _tell(self, driver: SearchDriver) -> None:
        """Say what is going to run."""
        self.workers = min(self.workers, driver.left)
        self.progress.note(
            f"{_counted(driver.left, 'trial')} of {_counted(driver.epochs, 'epoch')}, "
            f"{self.workers} at a time; "
            f"methods: {', '.join(self.prepared.spaces)}; "
            f"constraints: {', '.join(c.text for c in self.prepared.constraints) or 'none'}"
        )
        plan = driver.plan(self.workers)
        if plan is not None:
            self.progress.note(plan)
        self.progress.trials_before(driver.ended_before())
        self.progress.trials_begin(self.settings.trials - driver.left, self.settings.trials)

    def _study(self, metrics: Mapping[str, float], checkpoint: Checkpoint) -> SearchStudy:
        study = SearchStudy(
            self.settings.storage or sqlite_url(self.folder.path),
            study_name(self.folder),
            self.prepared.objectives,
            self.prepared.constraints,
            self.folder.artifacts,
            self.settings.sampler,
            self.settings.seed,
            sole_writer=True,
        )
        details = {name: checkpoint.manifest[name] for name in _REFERENCE_DETAILS}
        study.add_reference(metrics, {**details, "difference": 0.0})
        again = study.close_leftovers()
        if again:
            self.progress.note(f"{again} trials were cut off; they will run again")
        kept = sorted(kept_trials(self.folder.trials))
        for damaged, reason in set_damaged_aside(self.folder.trials, kept, study).items():
            self.progress.note(f"trial {damaged} left the front: {reason}")
        # A killed driver leaves checkpoints of trials that it could not record any more, or whose record was
        # not yet in the run's store.
        complete = {t.number for t in study.complete_trials()}
        for number in kept_trials(self.folder.trials) - complete:
            shutil.rmtree(trial_folder(self.folder.trials, number), ignore_errors=True)
        return study

    def _execute(self, driver: SearchDriver | ReferenceFirst) -> bool:
        """Run what is left of the budget; whether it came to its end."""
        settings, task = self.settings, self.prepared.task
        use_gpu = settings.gpus_per_trial > 0
        compared = rungs(task.recipe.epochs) if settings.early_stopping else ()
        shared = Shared(
            task=replace(task, test=None),  # which scores the front alone
            artifact=settings.artifact,
            measuring=replace(self.prepared.measuring, rungs=compared),
            root=self.folder.path.resolve(),
            use_gpu=use_gpu,
            threads=max(1, int(settings.cpus_per_trial)),
            trial_timeout=settings.trial_timeout,
            # CUDA maps more than it takes, and other machines have other memories.
            memory=None if use_gpu or settings.ray_address else memory_share(self.workers),
        )
        cluster = Cluster(self.workers, settings.cpus_per_trial, settings.gpus_per_trial)
        try:
            start_here(cluster)
            with serving(self.folder.path.resolve(), settings.ray_address is not None) as served:
                shared = replace(shared, served=served)
                ended = self.interruption.signum is None and execute(driver, shared, cluster)
            if driver.fatal is not None:
                raise driver.fatal
            # Trials that nobody told the end of were cut off, whatever Tune says.
            return ended and not driver.live and self.interruption.signum is None
        except STORAGE_ERRORS:
            driver.leave()  # for they cannot be recorded now
            raise
        finally:
            driver.abandon()
            shutil.rmtree(self.folder.computed, ignore_errors=True)

    def _finish(self, driver: SearchDriver, finished: bool) -> SearchResult:
        """Measure the front once more and on the test split, check its files, and write the report."""
        study = driver.study
        counts = study.counts()
        if finished and not counts["complete"] and counts["fail"]:
            raise SearchFailedError(
                f"none of the {counts['fail']} trials succeeded: {grouped(study.failures())}"
                f"{self._how_to_see(study)}"
            )
        why = why_none_within(study, self.prepared.constraints, driver.reference)
        if finished and why is not None:
            self.progress.note(why)
        if finished:
            finished = self._settle(study)
        if finished:
            self._retain(driver)
        return self._conclude(driver, finished)

    def _settle(self, study: SearchStudy) -> bool:
        """Measure the front once more, as far as there is time; whether no signal ended that."""
        try:
            with self.interruption.raised():
                settle_front(self.prepared, self.folder, study, self.progress, self.interruption)
        except TimeOver:
            self.progress.note(UNSETTLED)
        except Interrupted:
            return False
        return True

    def _retain(self, driver: SearchDriver) -> None:
        """Remove checkpoints that need not stay once the search has come to its end."""
        trials, study = self.folder.trials, driver.study
        if self.settings.keep == "front":
            keep_front_alone(trials, study, driver.reference)
        elif self.settings.keep == "near":
            remove_displaced(trials, study, driver.tree, driver.reference)

    def _how_to_see(self, study: SearchStudy) -> str:
        """Which command runs the first trial that failed once more, where it may be seen failing."""
        run = shlex.quote(self.folder.shown)
        return f" (autocompress replay {run} --trial {min(study.failures())} shows where)"

    def _conclude(self, driver: SearchDriver, finished: bool) -> SearchResult:
        """The result as it stands, and its report.

        Where the search was interrupted estimates stand until it is continued, and the test split is for what
        then is the front.
        """
        study = driver.study
        result = build_result(self.folder, study, self.prepared.objectives, self.prepared.fresh_model)
        measured, outside = driver.overhead(self.workers), driver.outside()
        result = replace(
            result,
            overhead=None if measured is None else measured[0],
            interrupted=not finished,
        )
        failures = told_failures(study.failures(), study.finished())
        if failures is not None:
            self.progress.note(f"{failures}{self._how_to_see(study)}")
        draw_pictures(result, study)
        report(result, self.folder, study)
        if measured is not None:
            self.progress.note(_time_text(1 / (1 + measured[0]), measured[1], self.workers, outside))
        return result


def _counted(number: int, what: str) -> str:
    return f"{number} {what}" if number == 1 else f"{number} {what}s"


def _time_text(share: float, seconds: float, workers: int, outside: tuple[float, float] | None) -> str:
    """Where the time of the trials went.

    Args:
        share: of it in steps of training and evaluation.
        seconds: from the first trial's start to the last one's end.
        workers: trials at a time.
        outside: seconds that a trial took besides, and with what is between trials, where that is known.
    """
    of_workers = "" if workers == 1 else f" of {workers} workers"
    text = f"trials took {seconds:.1f} s{of_workers}, {share:.0%} of it in steps of training and evaluation"
    if outside is None:
        return text
    in_trial, with_gaps = outside
    return (
        f"{text}; besides, a trial takes {in_trial:.2f} s to analyse, export, load and measure, and "
        f"{with_gaps - in_trial:.2f} s to begin"
    )


def _resolution(reference: Mapping[str, Any], metric: str) -> str:
    """What a validation split of this size can tell apart, in one line."""
    rows, error = reference["validation_rows"], reference["errors"].get(metric)
    if error is None:
        return f"validation has {rows} rows; how exact {metric} is on them is not known"
    return (
        f"validation has {rows} rows: {metric} of the reference is {reference['metrics'][metric]:.4f} ± "
        f"{error:.4f} (standard error); two unlike models that differ by less than "
        f"{Z95 * math.sqrt(2) * error:.3f} cannot be told apart (95 %)"
    )
