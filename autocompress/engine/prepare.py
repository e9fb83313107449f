"""Everything that is checked, loaded and analysed before a search writes anything."""

from __future__ import annotations

import itertools
import tempfile
from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import nn

from autocompress import plugins
from autocompress.checkpoint.four_bits import LEAST_WEIGHTS
from autocompress.checkpoint.store import ARTIFACTS, Writer
from autocompress.data import BUILT_IN, load_task, with_validation
from autocompress.engine.model_checks import check_made_anew
from autocompress.engine.settings import Settings
from autocompress.engine.starting_model import starting_model
from autocompress.errors import SettingsError, TaskError, TrialError, one_line
from autocompress.graph import Analysis, analyse, within
from autocompress.graph.costs import profile
from autocompress.measure import (
    STATIC,
    Constraint,
    Objective,
    check_metrics,
    known_metrics,
    parse_objectives,
)
from autocompress.measure.latency import LatencySettings, own_latency
from autocompress.plugins import SearchSpace, Suggest
from autocompress.study import unasked
from autocompress.surgery.preparation import described
from autocompress.task import Inputs, Limits, ModelProfile, Task
from autocompress.task.checks import (
    check_splits,
    fresh_model,
    make_model,
)
from autocompress.task.pretrained import load_weights
from autocompress.task.sizes import with_varying_sizes
from autocompress.training.trying import Tried, try_training, within_class
from autocompress.trial import Measuring

_MOST_SHOWN = 5  # layers of a line


@dataclass(frozen=True)
class Prepared:
    """A search that can start; its model is as trials find it, which may learn from a teacher where
    `distill`; `notes` are what its user should know of it."""

    settings: Settings
    task: Task
    model: nn.Module
    analysis: Analysis
    profile: ModelProfile
    spaces: dict[str, SearchSpace]
    objectives: tuple[Objective, ...]
    constraints: tuple[Constraint, ...]
    target: Constraint | None
    measuring: Measuring
    latency: LatencySettings
    out: Path
    distill: bool = True
    notes: tuple[str, ...] = ()

    def fresh_model(self) -> nn.Module:
        """Make a new model of the task, prepared by the user's own function."""
        return fresh_model(self.task)


def prepare(task: Task | str, settings: Settings, *, proposing: bool = True) -> Prepared:
    """Load the task, analyse its model and resolve every setting.

    Args:
        task: a task, or its name as on the command line.
        settings: of the search.
        proposing: whether trials are to be proposed; otherwise search spaces need not be there.

    Raises:
        UsageError: the task, the model, its data or a setting cannot be used.
    """
    if proposing:
        _check_names(settings)
    named = isinstance(task, str)
    task = _loaded(task, settings)
    if settings.epochs is not None:
        task = task.with_recipe(epochs=settings.epochs)
    if settings.steps_per_epoch is not None:
        task = task.with_recipe(steps_per_epoch=settings.steps_per_epoch)
    check_splits(task)
    known = known_metrics(task)
    objectives = parse_objectives(settings.objectives, known)
    constraints = tuple(Constraint.parse(text, known) for text in _bounds(settings, objectives))
    target = _target(settings.target, {**known, **{o.metric: o.direction for o in objectives}})
    # The search's seed has no part in it: searches of several seeds compare models on the same rows.
    task, origin = with_validation(task)
    with task.opened() as opened:
        check_splits(opened)  # also what functions make
    task = with_varying_sizes(task)
    task, model, made = _with_model(task, settings)
    example = task.example()
    bounds = (*constraints, *(() if target is None else (target,)))
    measured = [o.metric for o in objectives] + [m for c in bounds for m in c.metrics]
    latency = _latency(settings, measured)
    analysis = within(analyse(model, example), task.limits_of(model))
    _check_export(model, example, settings.artifact, latency)
    tried = try_training(task, model, analysis)
    task = replace(task, limits=within_class(task, model, analysis, tried))
    analysis = within(analysis, task.limits_of(model))
    graphs = _needing_graphs(tried, model, analysis)
    taught, graphed = _untaught(tried, settings), _without_graphs(tried, analysis, graphs)
    model_profile = profile(model, example, analysis)
    _check_costs(measured, model_profile)
    spaces = _spaces(settings, model_profile, analysis.limits, graphs) if proposing else {}
    aside = _named_aside(spaces, model_profile)
    notes = (*made, origin, _staying(analysis), taught, graphed, aside, _emulated(task, settings))
    return Prepared(
        settings=_resolved(settings, task, named, spaces, constraints),
        task=task,
        model=model,
        analysis=analysis,
        profile=model_profile,
        spaces=spaces,
        objectives=objectives,
        constraints=constraints,
        target=target,
        measuring=Measuring(
            tuple(dict.fromkeys(measured)),
            settings.artifact,
            latency.quick(),
            settings.tau,
        ),
        latency=latency,
        out=Path(settings.out or f"runs/{_slug(task.name)}-{_slug(task.model_name)}"),
        distill=settings.distill and tried.taught is None,
        notes=tuple(note for note in notes if note is not None),
    )


def _check_costs(measured: Collection[str], model_profile: ModelProfile) -> None:
    """Refuse a cost of which the reference has none: nothing is less, and no ratio to it is a number."""
    if "macs" in measured and not model_profile.macs:
        raise SettingsError(
            "objectives and constraints must be on what the model has but it has no macs, as none of its "
            "layers multiplies: use bytes or params."
        )


def _target(text: str | None, directions: Mapping[str, str]) -> Constraint | None:
    """What a search is to reach, which is no more of a cost, nor less of a score: the reference has that."""
    if text is None:
        return None
    target = Constraint.parse(text, directions, "target")
    wrong = "minimize" if target.at_least else "maximize"
    for metric in target.metrics:
        if directions[metric] == wrong:
            right = f"{metric}<=…" if target.at_least else f"{metric}>=…"
            raise SettingsError(
                f"target must read like '{right}', as {'less' if target.at_least else 'more'} of {metric} is "
                f"better, but got {target.text!r}."
            )
    return target


def _emulated(task: Task, settings: Settings) -> str | None:
    """That this CPU has no instructions for bfloat16, where trials would train in it."""
    elsewhere = settings.gpus_per_trial > 0 or settings.ray_address is not None
    if not task.recipe.mixed_precision or elsewhere or not _emulates_bfloat16():
        return None
    return (
        "mixed_precision trains in bfloat16, which this CPU has no instructions for: convolutions take "
        "several times as long; mixed_precision=False trains in single precision"
    )


def _emulates_bfloat16() -> bool:
    """Whether a CPU has no more than AVX2, by which resnet20 took 12 times as long as in single precision."""
    return torch.backends.cpu.get_cpu_capability() in ("DEFAULT", "AVX2")


def _untaught(tried: Tried, settings: Settings) -> str | None:
    """Why no trial learns from a teacher, where one might have."""
    if not settings.distill or tried.taught is None:
        return None
    return f"no trial learns from a teacher beside the task's own step: {tried.taught}"


def _staying(analysis: Analysis) -> str | None:
    """Which layers stay as they are, in one line; None where none does."""
    staying = [name for name in analysis.layers if analysis.limits.why_layer(name) is not None]
    if not staying:
        return None
    shown = ", ".join(name or "(the model itself)" for name in staying[:_MOST_SHOWN])
    more = ", …" if len(staying) > _MOST_SHOWN else ""
    return f"{len(staying)} of {len(analysis.layers)} layers stay as they are: {shown}{more}"


def _needing_graphs(tried: Tried, model: nn.Module, analysis: Analysis) -> dict[str, str]:
    """Method → why it cannot train, of those that leave of the model its graph, where steps fail on that."""
    if tried.on_graphs is None:
        return {}
    reason = f"it leaves of the model its graph, on which the task's own step fails: {tried.on_graphs}"
    methods = plugins.compressors()
    return {name: reason for name, cls in methods.items() if cls.needs_graph(model, analysis)}


def _without_graphs(tried: Tried, analysis: Analysis, graphs: Collection[str]) -> str | None:
    """What is not tried where the task's own step does not train the model's graph."""
    if tried.on_graphs is None:
        return None
    fixed = len(analysis.limits.whole)
    channels = f"; all channels of {fixed} layers stay, as the model's code fixes them" if fixed else ""
    return (
        "the task's own step does not train the model's graph, without the methods of its class, so "
        f"{', '.join(graphs)} are not tried{channels}: {tried.on_graphs}"
    )


def _loaded(task: Task | str, settings: Settings) -> Task:
    if not isinstance(task, str):
        for option in ("model", "weights", "data_root"):
            if getattr(settings, option) is not None:
                raise SettingsError(
                    f"{option} must not be given beside a Task object but got {getattr(settings, option)!r}."
                )
        return task
    return load_task(
        task,
        model=settings.model,
        root=settings.data_root,
        weights=settings.weights,
        image_size=settings.image_size,
    )


def _resolved(
    settings: Settings,
    task: Task,
    named: bool,
    spaces: dict[str, SearchSpace],
    constraints: Sequence[Constraint],
) -> Settings:
    """The settings with defaults filled in, so that naming a default is no other run."""
    built_in = named and settings.task.partition(":")[0] in BUILT_IN
    return replace(
        settings,
        model=task.model_name if built_in else settings.model,
        methods=_in_order(spaces if spaces and not settings.spaces else settings.methods),
        epochs=task.recipe.epochs,
        steps_per_epoch=task.recipe.steps_per_epoch,
        constraints=tuple(constraint.text for constraint in constraints),
        warm_start=None if settings.warm_start is None else str(Path(settings.warm_start)),
        exclude=tuple(sorted(set(settings.exclude))),
    )


def _in_order(methods: Iterable[str] | None) -> tuple[str, ...] | None:
    """Methods in the order in which they are known, which is none of a run's own."""
    if methods is None:
        return None
    chosen = [*methods]
    known = [name for name in plugins.compressors() if name in chosen]
    return (*known, *(name for name in chosen if name not in known))


def _with_model(task: Task, settings: Settings) -> tuple[Task, nn.Module, list[str]]:
    """The task, with limits, whose weights are under its model's names; its model, which has them and is
    prepared; and what was made of both. The task suits the model."""
    model = make_model(task)
    notes = []
    if task.weights is not None:
        fitted = load_weights(model, task.weights)
        task = replace(task, weights=fitted.state)
        notes.append(fitted.note or "the reference has the weights that were given, and is not trained")
    with task.opened() as opened:
        model, edits, limits = starting_model(opened, model, settings.exclude, settings.at_least)
        check_made_anew(opened, model, edits)
        check_metrics(opened, model)
    if edits:
        notes.append(f"before compressing, {described(edits)}; trials train the model as it is then")
    return replace(task, limits=limits), model, notes


def _bounds(settings: Settings, objectives: Sequence[Objective]) -> tuple[str, ...]:
    """The given constraints; by default those that keep toys off a front of accuracy, and models that are
    neither smaller nor faster than the reference."""
    if settings.constraints is not None:
        return settings.constraints
    accuracy = ["accuracy>=0.9*ref"] if objectives[0].metric == "accuracy" else []
    costs = "|".join(o.metric for o in objectives if o.metric in STATIC)
    return (*accuracy, f"{costs}<=ref") if costs else tuple(accuracy)


def _latency(settings: Settings, measured: Collection[str]) -> LatencySettings:
    """How latency is measured; a user's own function that does it is loaded.

    Args:
        settings: of the search.
        measured: metrics that are objectives or bounded.
    """
    by: Any = settings.latency_by
    if by is not None and "latency" not in measured:
        raise SettingsError(
            f"latency_by must be given where latency is an objective or bounded but that is "
            f"{', '.join(dict.fromkeys(measured))} (add latency to objectives)."
        )
    if isinstance(by, str):
        if ":" not in by:
            raise SettingsError(f"latency_by must read like 'module:function' but got {by!r}.")
        by = plugins.load_attribute(by)
        if not callable(by):
            raise SettingsError(
                f"latency_by must name a function of a path but {settings.latency_by!r} is a "
                f"{type(by).__name__}."
            )
    return LatencySettings(settings.latency_batch_size, settings.latency_threads, by=by)


def _check_export(model: nn.Module, example: Inputs, artifact: str, latency: LatencySettings) -> None:
    """Export the untrained model once, and let a user's own function measure it: what cannot be stored, or
    not be measured, is not worth training."""
    with tempfile.TemporaryDirectory() as scratch:
        writer = Writer(Path(scratch) / "dry-run")
        try:
            checkpoint = writer.write(model, example, artifact, [example])
        except TrialError as error:
            raise TaskError(
                f"the model must be exportable with a free batch size, as {artifact}, but: {error}"
            ) from error
        if artifact == "onnx-int4" and writer.quantized is not None and not writer.quantized.four_bits:
            raise SettingsError(
                f"artifact onnx-int4 must be of a model with a layer of at least {LEAST_WEIGHTS:,} weights, "
                "but this has none to store in 4 bits: use onnx-int8."
            )
        if latency.by is not None:
            try:
                own_latency(latency.by, checkpoint.artifact_file(artifact), latency)
            except TrialError as error:
                raise SettingsError(one_line(error)) from error


def _check_names(settings: Settings) -> None:
    """Names that need no data to be seen as wrong."""
    for method in settings.methods or ():
        artifacts = plugins.compressor(method).artifacts
        if artifacts is not None and settings.artifact not in artifacts:
            raise SettingsError(
                f"methods must fit the artifact but {method!r} trains for {' or '.join(artifacts)} and "
                f"artifact is {settings.artifact!r} (give artifact {artifacts[0]})."
            )
    for location in settings.spaces:
        plugins.search_space(location)


def _spaces(
    settings: Settings, model_profile: ModelProfile, limits: Limits, unusable: Mapping[str, str]
) -> dict[str, SearchSpace]:
    """Label → every search space that a trial may use.

    Args:
        settings: of the search.
        model_profile: that methods must suit.
        limits: that it is within.
        unusable: method → why it cannot be used, whatever the profile.
    """

    def unsupported(method: str) -> str | None:
        return unusable.get(method) or plugins.compressor(method).unsupported(model_profile)

    hint = "" if limits == Limits() else " (autocompress inspect says which layers stay, and why)"
    spaces: dict[str, SearchSpace] = {}
    chosen: Sequence[str] = settings.methods or ()
    if settings.methods is None and not settings.spaces:
        # What brings no space is searched by a space of the user's own alone.
        known = {name: cls for name, cls in plugins.compressors().items() if name in plugins.search_spaces()}
        fitting = [name for name, cls in known.items() if settings.artifact in (cls.artifacts or ARTIFACTS)]
        chosen = [method for method in fitting if unsupported(method) is None]
        if not chosen:
            raise SettingsError(f"methods must include one that fits the model but none does{hint}.")
    for method in chosen:
        reason = unsupported(method)
        if reason is not None:
            raise SettingsError(f"methods must fit the model but {method!r} does not: {reason}{hint}.")
        spaces[method] = plugins.search_space(method)
    for location in settings.spaces:
        spaces[_label(location, spaces)] = plugins.search_space(location)
    for name, space in spaces.items():
        try:
            params = space.move(model_profile, 0.5)
        except Exception as error:
            raise SettingsError(
                f"space {name!r} must say by move(profile, keep) how to keep half but: {one_line(error)}"
            ) from error
        if params is not None and not isinstance(params, Mapping):
            raise SettingsError(
                f"space {name!r} must return by move(profile, keep) what is to be suggested, by name, or "
                f"None, but returned {params!r}."
            )
    return spaces


def _named_aside(spaces: Mapping[str, SearchSpace], model_profile: ModelProfile) -> str | None:
    """What moves of the user's own spaces name, from the reference, that is not suggested: a slip, or what is
    suggested for other models alone."""
    aside: list[str] = []
    for label, space in spaces.items():
        params = space.move(model_profile, 0.5) if space.level is None else None
        if not params:
            continue
        try:
            names = unasked(partial(_suggest, space, model_profile), params)
        except Exception as error:
            raise SettingsError(
                f"space {label!r} must suggest for the model what its move says but: {one_line(error)}"
            ) from error
        aside += [f"{name!r} of space {label!r}" for name in names]
    if not aside:
        return None
    return f"move names what suggest does not ask for, which is left aside: {', '.join(aside)}"


def _suggest(space: SearchSpace, model_profile: ModelProfile, trial: Any) -> Any:
    return space.suggest(trial, model_profile)


def _label(location: str | Suggest, taken: Collection[str]) -> str:
    """What trials call a space: its name, or where that is another's its path, or its name with a number."""
    name = plugins.space_name(location)
    labels = itertools.chain(
        [name], [location] if isinstance(location, str) else [], (f"{name}-{n}" for n in itertools.count(2))
    )
    installed = plugins.search_spaces()
    return next(
        label for label in labels if label not in taken and (label == location or label not in installed)
    )


def _slug(name: str) -> str:
    return "".join(c if c.isalnum() or c in "-_." else "-" for c in name).strip("-.") or "task"
