"""From a run folder and its study to a `SearchResult`, and to the report."""

from __future__ import annotations

import tempfile
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from torch import nn

from autocompress.checkpoint import open_checkpoint
from autocompress.checkpoint.store import kept_trials, trial_folder
from autocompress.data import BUILT_IN, load_task
from autocompress.engine.folder import RunFolder, opened_run
from autocompress.engine.settings import Settings
from autocompress.errors import CheckpointError, SettingsError, TaskError
from autocompress.measure import Constraint, Objective
from autocompress.report import trial_picture, write_report
from autocompress.report.portable import RunFacts
from autocompress.report.portable import take_along as write_folder
from autocompress.result import LEAST_PROBABILITY, ParetoModel, SearchResult, ratios
from autocompress.study import STUDY_NAME, SearchStudy, sqlite_url, unmasked
from autocompress.task.checks import fresh_model


def study_name(folder: RunFolder) -> str:
    """The study's name, which `run.json` holds: the run's, made one of a kind where runs share a storage."""
    data = folder.read()
    if "study" in data:
        return str(data["study"])
    # Runs of versions that named all studies alike.
    if data["settings"].get("storage") is None:
        return STUDY_NAME
    return f"{STUDY_NAME}-{folder.path.resolve().name}-{data['id']}"


def build_result(
    folder: RunFolder,
    study: SearchStudy,
    objectives: tuple[Objective, ...],
    make_model: Callable[[], nn.Module] | None = None,
) -> SearchResult:
    """The result as the study and the folder have it now.

    Args:
        folder: of the run.
        study: of the run.
        objectives: of the search, primary first.
        make_model: makes a new model of the task, prepared as it says; None where it is not known.
    """
    trials = {t.number: t for t in study.complete_trials()}
    tested, final = study.test_metrics(), study.final_metrics()
    base = trials[0].user_attrs["metrics"]
    kept = {0, *kept_trials(folder.trials)}
    probabilities = study.front_probabilities(base, kept)

    def point(number: int) -> ParetoModel:
        attributes = trials[number].user_attrs
        metrics = {**attributes["metrics"], **final.get(number, {})}
        path = folder.reference if number == 0 else trial_folder(folder.trials, number)
        return ParetoModel(
            trial=number,
            path=path,
            metrics=metrics,
            test_metrics=tested.get(number, {}),
            config=attributes["details"]["config"],
            ratios=ratios(metrics, base),
            errors=attributes["details"].get("errors", {}),
            replicates=attributes["details"].get("replicates", {}),
            validation_rows=attributes["details"].get("validation_rows", 0),
            front_probability=probabilities.get(number, 0.0),
            lineage=_lineage(trials, number),
            make_model=make_model,
        )

    on_front = [trial.number for trial in study.front(base, kept)]
    near = sorted(kept & probabilities.keys() - {0, *on_front}, key=lambda n: -probabilities[n])
    return SearchResult(
        folder.path,
        objectives,
        point(0),
        [point(number) for number in on_front],
        study.study,
        contenders=[point(number) for number in near if probabilities[number] >= LEAST_PROBABILITY],
        target=_target(folder, base),
        address=folder.address,
    )


def _target(folder: RunFolder, base: Mapping[str, float]) -> Constraint | None:
    """The target of a run, which may be of a version that knew none."""
    text = folder.read()["settings"].get("target")
    return None if text is None else Constraint.parse(text, dict.fromkeys(base, ""), "target")


def _lineage(trials: Mapping[int, Any], number: int) -> tuple[int, ...]:
    """Numbers of the trials that one came from, itself last."""
    line: list[int] = []
    while number != 0:
        line.insert(0, number)
        number = trials[number].user_attrs["details"]["config"].get("parent", 0)
    return tuple(line)


def open_study(folder: RunFolder) -> tuple[SearchStudy, tuple[Objective, ...]]:
    """The study of a run folder.

    Raises:
        SettingsError: the folder is no run, or its study is gone.
        TaskError: the reference is not trained yet.
    """
    data = folder.read()
    settings = Settings.from_json(data["settings"])
    if "objectives" not in data:
        raise TaskError(f"RUN must have a trained reference but '{folder.shown}' has none yet.")
    objectives = tuple(Objective(**item) for item in data["objectives"])
    storage = sqlite_url(folder.path) if settings.storage is None else unmasked(settings.storage)
    name = study_name(folder)
    known = dict.fromkeys(data["reference"]["metrics"], "")
    constraints = tuple(Constraint.parse(text, known) for text in data.get("constraints", ()))
    if settings.storage is None and not folder.study.is_file():
        # SQLite would make an empty file.
        raise SettingsError(f"RUN must hold study.db but '{folder.shown}' has none.")
    study = SearchStudy(storage, name, objectives, constraints, folder.artifacts, create=False)
    if not study.study.trials:
        raise TaskError(f"RUN must have a recorded reference but '{folder.shown}' has none yet.")
    return study, objectives


def load_run(path: str | Path) -> SearchResult:
    """The result of an earlier, or a running, search.

    Args:
        path: the run folder, or an address as `s3://bucket/run`, of which a copy is made on this machine.

    Raises:
        SettingsError: the folder is no run, or its study is gone; or nobody answers at the address.
        StorageError: the store failed.
        TaskError: the reference is not trained yet.
    """
    return load_folder(opened_run(path))


def load_folder(folder: RunFolder) -> SearchResult:
    """The result of the search of a run folder, as `load_run` says."""
    study, objectives = open_study(folder)
    return build_result(folder, study, objectives, _model_maker(folder))


def _model_maker(folder: RunFolder) -> Callable[[], nn.Module] | None:
    """What makes the model of a run's task, where the run was made with a task's name."""
    settings = Settings.from_json(folder.read()["settings"])
    # A run of a built-in task has a model's name; a `Task` object may be called like one.
    built_in = settings.task.partition(":")[0] in BUILT_IN
    if (settings.model is None) if built_in else (":" not in settings.task):
        return None

    def make() -> nn.Module:
        task = load_task(
            settings.task, model=settings.model, root=settings.data_root, image_size=settings.image_size
        )
        return fresh_model(task)

    return make


def draw_pictures(result: SearchResult, study: SearchStudy) -> None:
    """Draw the layers and the training of each point that is or may be on the front, where no picture shows
    them yet, for optuna-dashboard."""
    waiting = [
        point
        for point in [*result.front, *result.contenders]
        if point.trial != 0 and not study.has_picture(point.trial)
    ]
    if not waiting:
        return
    reference = open_checkpoint(result.reference.path, verify=False).manifest
    with tempfile.TemporaryDirectory() as scratch:
        for point in waiting:
            try:
                manifest = open_checkpoint(point.path, verify=False).manifest
            except CheckpointError:
                continue  # the report says what is wrong with it
            picture = Path(scratch) / f"trial-{point.trial}.png"
            trial_picture(manifest, reference, f"trial {point.trial}", picture)
            study.add_picture(point.trial, picture)


def report(result: SearchResult, folder: RunFolder | None = None, study: SearchStudy | None = None) -> Path:
    """Write a run's `report.html`."""
    folder = folder or RunFolder(result.out)
    study = study or open_study(folder)[0]
    settings = folder.read()["settings"]
    # A report is made to be shared; a storage URL may hold a password.
    settings["storage"] = "SQLite in RUN" if settings["storage"] is None else "an Optuna storage"
    usual = Settings().to_json() | {"storage": "SQLite in RUN"}
    return write_report(result, folder.report, study, study.constraints, settings, usual)


def take_along(result: SearchResult, point: ParetoModel, folder: Path, format: str | None = None) -> Path:
    """Write a model of a run to a folder that is ready to be shared; see `report.portable.take_along`."""
    run = RunFolder(result.out)
    data = run.read()
    settings = Settings.from_json(data["settings"])
    manifest = point.checkpoint().manifest
    facts = RunFacts(
        manifest["task"],
        manifest["model"],
        data["versions"],
        (settings.latency_batch_size, settings.latency_threads),
    )
    return write_folder(point, result, open_study(run)[0], facts, folder, format)
