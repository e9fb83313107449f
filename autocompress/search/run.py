"""`search` and `load_run`."""

from __future__ import annotations

import shutil
import time
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch

from autocompress.checkpoint import Checkpoint, open_checkpoint
from autocompress.checkpoint.store import ARTIFACTS, remove_leftovers
from autocompress.checkpoint.weights import load_weights_into
from autocompress.distribute import Cluster, execute
from autocompress.distribute.worker import Shared, trial_folder
from autocompress.errors import SearchFailedError, TaskError
from autocompress.metrics import Objective, measure_split
from autocompress.report import Progress, Silent, write_report
from autocompress.result import ParetoModel, SearchResult, ratios
from autocompress.search.driver import SearchDriver
from autocompress.search.folder import RunFolder
from autocompress.search.halving import Halving
from autocompress.search.prepare import Prepared, prepare
from autocompress.search.settings import Settings
from autocompress.study import STUDY_NAME, SearchStudy, sqlite_url
from autocompress.task import Task
from autocompress.trial import Reference, train_reference


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
        progress: receives events; None shows nothing.
        options: fields of `Settings`, lists for tuples.

    Raises:
        UsageError: the task or a setting cannot be used; nothing was written.
        SearchFailedError: no trial succeeded.
    """
    fixed: dict[str, Any] = {k: tuple(v) if isinstance(v, list) else v for k, v in options.items()}
    if "out" in fixed:
        fixed["out"] = str(fixed["out"])
    name = task if isinstance(task, str) else task.name
    unknown = set(fixed) - set(Settings.__dataclass_fields__)
    if unknown:
        raise TypeError(f"search() got unknown options {sorted(unknown)}")
    resolved = replace(settings or Settings(task=name), **fixed)
    prepared = prepare(task, resolved)
    folder = RunFolder(prepared.out)
    folder.refuse_other_settings(resolved)
    with folder.locked():
        return _Search(prepared, folder, progress or Silent()).run()


class _Search:
    """One call of `search`, from the reference to the report."""

    def __init__(self, prepared: Prepared, folder: RunFolder, progress: Progress) -> None:
        self.prepared, self.folder, self.progress = prepared, folder, progress
        self.settings = prepared.settings
        self.device = "cuda" if prepared.settings.gpus_per_trial and torch.cuda.is_available() else "cpu"

    def run(self) -> SearchResult:
        folder, settings = self.folder, self.settings
        if folder.exists:
            self.progress.note(f"continuing the run in {folder.path}")
        else:
            folder.write(settings, {})
        for place in (folder.trials, folder.artifacts):
            place.mkdir(exist_ok=True)
        for place in (folder.path, folder.trials):
            remove_leftovers(place)
        checkpoint = self._reference()
        metrics: Mapping[str, float] = checkpoint.manifest["metrics"]
        described = [{"metric": o.metric, "direction": o.direction} for o in self.prepared.objectives]
        folder.write(settings, {"reference": {"metrics": metrics}, "objectives": described})
        study = self._study(metrics, checkpoint)
        halving = Halving(self.prepared.task.recipe.epochs) if settings.early_stopping else None
        driver = SearchDriver(self.prepared, study, folder.trials, metrics, self.progress, halving)
        finished = self._execute(driver, checkpoint)
        return self._finish(study, driver, finished)

    def _reference(self) -> Checkpoint:
        """The stored reference, or a new one."""
        if self.folder.reference.is_dir():
            return open_checkpoint(self.folder.reference)
        recipe = self.prepared.task.recipe
        epochs = recipe.reference_epochs or recipe.epochs
        return train_reference(
            self.prepared.task,
            self.folder.reference,
            self.prepared.measuring,
            self.settings.seed,
            lambda entry: self.progress.reference_epoch(int(entry["epoch"]), epochs),
            self.device,
        )

    def _study(self, metrics: Mapping[str, float], checkpoint: Checkpoint) -> SearchStudy:
        study = SearchStudy(
            self.settings.storage or sqlite_url(self.folder.path),
            study_name(self.folder.path, self.settings),
            self.prepared.objectives,
            self.prepared.constraints,
            self.folder.artifacts,
            self.settings.sampler,
            self.settings.seed,
        )
        study.add_reference(metrics, {"config": checkpoint.manifest["config"], "proof": 0.0})
        again = study.close_leftovers()
        if again:
            self.progress.note(f"{again} trials were cut off; they will run again")
        complete = {trial_folder(self.folder.trials, t.number) for t in study.complete_trials()}
        for orphan in set(self.folder.trials.iterdir()) - complete:
            shutil.rmtree(orphan)
        return study

    def _execute(self, driver: SearchDriver, checkpoint: Checkpoint) -> bool:
        """Run what is left of the budget; whether it came to its end."""
        settings = self.settings
        if driver.left <= 0:
            return True
        state = self.prepared.model
        load_weights_into(state, checkpoint.path / "weights.safetensors")
        weights = {name: t.detach().numpy() for name, t in state.state_dict().items()}
        program = (checkpoint.path / ARTIFACTS[settings.artifact][0]).resolve()
        shared = Shared(
            task=self.prepared.task,
            reference=Reference(weights, program, checkpoint.manifest["metrics"]),
            measuring=self.prepared.measuring,
            trials=self.folder.trials.resolve(),
            device=self.device,
            threads=max(1, int(settings.cpus_per_trial)),
        )
        workers = min(settings.parallel, driver.left)
        cluster = Cluster(workers, settings.cpus_per_trial, settings.gpus_per_trial, settings.ray_address)
        self.progress.note(
            f"{driver.left} trials of {driver.epochs} epochs, {workers} at a time; "
            f"methods: {', '.join(self.prepared.spaces)}; "
            f"constraints: {', '.join(c.text for c in self.prepared.constraints) or 'none'}"
        )
        self.progress.trials_begin(settings.trials - driver.left, settings.trials)
        try:
            return execute(driver, shared, cluster)
        except KeyboardInterrupt:
            return False
        finally:
            driver.abandon()

    def _finish(self, study: SearchStudy, driver: SearchDriver, finished: bool) -> SearchResult:
        """Measure the front on the test split, write the report, and say what there is."""
        counts = study.counts()
        if finished and not counts["complete"] and counts["fail"]:
            reasons = {t.user_attrs.get("reason", "") for t in study.study.trials if t.number}
            raise SearchFailedError(
                f"none of the {counts['fail']} trials succeeded: {'; '.join(sorted(reasons - {''}))}"
            )
        result = build_result(self.folder, study, self.prepared.objectives)
        self._test(result, study)
        measured = driver.overhead(min(self.settings.parallel, self.settings.trials))
        result = replace(
            build_result(self.folder, study, self.prepared.objectives),
            overhead=None if measured is None else measured[0],
            interrupted=not finished,
        )
        report(result, self.folder, study)
        if measured is not None:
            self.progress.note(
                f"overhead {measured[0]:.1%}: {measured[1]:.1f} s wall × "
                f"{min(self.settings.parallel, self.settings.trials)} workers for "
                f"{measured[2]:.1f} s inside training and evaluation steps"
            )
        return result

    def _test(self, result: SearchResult, study: SearchStudy) -> None:
        task = self.prepared.task
        split = task.test
        if split is None:
            return
        found = {}
        for point in [result.reference, *result.front]:
            if not point.test_metrics:
                program = point.checkpoint().program(self.settings.artifact)
                found[point.trial] = measure_split(program, split, task)
        if found:
            study.set_test_metrics(found)


def study_name(path: Path, settings: Settings) -> str:
    """The study's name: fixed in a run's own storage, the folder's name in a shared one."""
    return STUDY_NAME if settings.storage is None else f"{STUDY_NAME}-{path.resolve().name}"


def build_result(folder: RunFolder, study: SearchStudy, objectives: tuple[Objective, ...]) -> SearchResult:
    """The result as the study and the folder have it now."""
    trials = {t.number: t for t in study.complete_trials()}
    tested = study.test_metrics()
    base = trials[0].user_attrs["metrics"]

    def point(number: int) -> ParetoModel:
        attributes = trials[number].user_attrs
        path = folder.reference if number == 0 else trial_folder(folder.trials, number)
        return ParetoModel(
            trial=number,
            path=path,
            metrics=attributes["metrics"],
            test_metrics=tested.get(number, {}),
            config=attributes["details"]["config"],
            ratios=ratios(attributes["metrics"], base),
        )

    front = [point(t.number) for t in study.front()]
    return SearchResult(folder.path, objectives, point(0), front, study.study)


def open_study(folder: RunFolder) -> tuple[SearchStudy, tuple[Objective, ...]]:
    """The study of a run folder.

    Raises:
        SettingsError: the folder is no run.
        TaskError: its search was stopped before the reference was there.
    """
    data = folder.read()
    settings = Settings.from_json(data["settings"])
    if "objectives" not in data:
        raise TaskError(f"RUN '{folder.path}' must have a reference but its search stopped before.")
    objectives = tuple(Objective(**item) for item in data["objectives"])
    storage = settings.storage or sqlite_url(folder.path)
    return SearchStudy(storage, study_name(folder.path, settings), objectives), objectives


def load_run(path: str | Path) -> SearchResult:
    """The result of an earlier, or a running, search.

    Raises:
        SettingsError: the folder is no run.
    """
    folder = RunFolder(Path(path))
    study, objectives = open_study(folder)
    return build_result(folder, study, objectives)


def report(result: SearchResult, folder: RunFolder | None = None, study: SearchStudy | None = None) -> Path:
    """Write a run's `report.html`."""
    folder = folder or RunFolder(result.out)
    study = study or open_study(folder)[0]
    on_front = {p.trial for p in result.front} | {0}
    others = [t.user_attrs["metrics"] for t in study.complete_trials() if t.number not in on_front]
    started = time.strftime("%Y-%m-%d %H:%M")
    settings = {"written": started, **folder.read()["settings"]}
    return write_report(result, folder.report, settings, others, study.counts())
