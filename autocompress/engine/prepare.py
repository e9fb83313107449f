"""Everything that is checked, loaded and analysed before a search writes anything."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from torch import Tensor, nn

from autocompress import plugins
from autocompress.data import load_task, with_validation
from autocompress.engine.settings import Settings
from autocompress.errors import SettingsError
from autocompress.graph import Analysis, analyse
from autocompress.graph.costs import profile
from autocompress.metrics import Constraint, Objective, known_metrics, parse_objectives
from autocompress.metrics.latency import LatencySettings
from autocompress.task import ModelProfile, Task, check_forward, check_labels
from autocompress.trial import Measuring, load_state

DEFAULT_CONSTRAINT = "accuracy>=0.9*ref"


@dataclass(frozen=True)
class Prepared:
    """A search that can start."""

    settings: Settings
    task: Task
    model: nn.Module
    analysis: Analysis
    profile: ModelProfile
    spaces: dict[str, Callable[..., Any]]
    objectives: tuple[Objective, ...]
    constraints: tuple[Constraint, ...]
    measuring: Measuring
    out: Path

    def example(self) -> Tensor:
        return self.task.example()


def prepare(task: Task | str, settings: Settings) -> Prepared:
    """Load the task, analyse its model and resolve every setting.

    Args:
        task: a task, or its name as on the command line.
        settings: of the search.

    Raises:
        UsageError: the task, the model, its data or a setting cannot be used.
    """
    _check_names(settings)
    if isinstance(task, str):
        task = load_task(
            task,
            model=settings.model,
            root=settings.data_root,
            weights=settings.weights,
            image_size=settings.image_size,
        )
    known = known_metrics(task)
    objectives = parse_objectives(settings.objectives, known)
    given = settings.constraints
    if given is None:
        given = (DEFAULT_CONSTRAINT,) if objectives[0].metric == "accuracy" else ()
    constraints = tuple(Constraint.parse(text, known) for text in given)
    task = with_validation(task)
    if settings.epochs is not None:
        task = task.with_recipe(epochs=settings.epochs)
    model = task.model()
    check_forward(task, model)
    check_labels(task, model)
    if task.weights is not None:
        load_state(model, {name: tensor.numpy() for name, tensor in task.weights.items()})
    example = task.example()
    analysis = analyse(model, example)
    found = profile(model, example, analysis)
    measured = [o.metric for o in objectives] + [c.metric for c in constraints]
    return Prepared(
        settings=settings,
        task=task,
        model=model,
        analysis=analysis,
        profile=found,
        spaces=_spaces(settings, found),
        objectives=objectives,
        constraints=constraints,
        measuring=Measuring(
            tuple(dict.fromkeys(measured)),
            settings.artifact,
            LatencySettings(settings.latency_batch_size, settings.latency_threads),
        ),
        out=Path(settings.out or f"runs/{_slug(task.name)}-{_slug(task.model_name)}"),
    )


def _check_names(settings: Settings) -> None:
    """Names that need no data to be seen as wrong."""
    for method in settings.methods or ():
        plugins.compressor(method)
    for location in settings.spaces:
        plugins.search_space(location)


def _spaces(settings: Settings, found: ModelProfile) -> dict[str, Callable[..., Any]]:
    """Label → `suggest` of every space a trial may use."""
    spaces: dict[str, Callable[..., Any]] = {}
    chosen: Sequence[str] = settings.methods or ()
    if settings.methods is None and not settings.spaces:
        chosen = [m for m, cls in plugins.compressors().items() if not cls.unsupported(found)]
        if not chosen:
            raise SettingsError("methods must include one that fits the model but none does.")
    for method in chosen:
        reason = plugins.compressor(method).unsupported(found)
        if reason is not None:
            raise SettingsError(f"methods must fit the model but {method!r} does not: {reason}.")
        spaces[method] = plugins.search_space(method).suggest
    for location in settings.spaces:
        label = Path(location).stem if location.endswith(".py") else location
        spaces[label] = plugins.search_space(location).suggest
    return spaces


def _slug(name: str) -> str:
    return "".join(c if c.isalnum() or c in "-_." else "-" for c in name).strip("-.") or "task"
