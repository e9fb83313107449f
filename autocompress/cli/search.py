"""`autocompress search` and `autocompress inspect`."""

from __future__ import annotations

import difflib
import json
import sys
import tomllib
import warnings
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

import typer

from autocompress.cli import options as opt
from autocompress.cli.app import app
from autocompress.cli.show import console, print_error, print_result
from autocompress.engine.settings import Settings, parse_duration, parse_list, parse_shares
from autocompress.errors import SettingsError

if TYPE_CHECKING:
    from autocompress.report import Progress

_OBJECTIVES = ",".join(Settings.objectives)


@app.command(
    epilog="""\b
Examples:
  autocompress search digits
  autocompress search fashion_mnist --model small_cnn --methods alcn --trials 24
  autocompress search cifar10 --model resnet20 --weights resnet20.th --epochs 2
  autocompress search my_package.task:make --objectives accuracy,latency --timeout 2h
  autocompress search npz:data.npz --constraint 'accuracy>=ref-0.01' --early-stopping
  autocompress search digits --exclude 'features.0,classifier' --at-least 'features.*=0.5'
"""
)
def search(
    context: typer.Context,
    task: opt.TaskName,
    model: opt.Model = None,
    weights: opt.Weights = None,
    data_root: opt.DataRoot = None,
    image_size: opt.ImageSize = Settings.image_size,
    methods: opt.Methods = None,
    space: opt.Space = None,
    objectives: opt.Objectives = _OBJECTIVES,
    constraint: opt.Constraints = None,
    target: opt.Target = None,
    trials: opt.Trials = Settings.trials,
    timeout: opt.Timeout = None,
    epochs: opt.Epochs = None,
    workers: opt.Workers = None,
    cpus_per_trial: opt.CpusPerTrial = Settings.cpus_per_trial,
    gpus_per_trial: opt.GpusPerTrial = Settings.gpus_per_trial,
    sampler: opt.Sampler = Settings.sampler,
    early_stopping: opt.EarlyStopping = Settings.early_stopping,
    distillation: opt.Distillation = Settings.distill,
    seed: opt.Seed = Settings.seed,
    artifact: opt.Artifact = Settings.artifact,
    latency_batch_size: opt.LatencyBatchSize = Settings.latency_batch_size,
    latency_threads: opt.LatencyThreads = Settings.latency_threads,
    latency_by: opt.LatencyBy = None,
    tau: opt.Tau = Settings.tau,
    warm_start: opt.WarmStart = None,
    exclude: opt.Exclude = None,
    at_least: opt.AtLeast = None,
    out: opt.Out = None,
    storage: opt.Storage = None,
    ray_address: opt.RayAddress = None,
    config: opt.ConfigFile = None,
    quiet: opt.Quiet = False,
    json_lines: opt.JsonLines = False,
) -> None:
    """Search for compressed models of TASK, or continue an earlier search."""
    options = _options(context, config)
    quiet, json_lines = options.pop("quiet"), options.pop("json_lines")
    settings = _settings(options)
    with _display(quiet, json_lines) as progress:
        from autocompress.engine.run import search as run_search

        result = run_search(settings.task, settings, progress=progress)
        progress.close()
        print_result(result, quiet, json_lines)
        if result.interrupted:
            print_error("interrupted; the partial front is saved, the same command continues")
            raise typer.Exit(130)


@app.command(
    epilog="""\b
Examples:
  autocompress inspect cifar10 --model resnet56 --json
  autocompress inspect random:3x224x224 --model vit_b_16
  autocompress inspect cifar10 --model resnet56 --exclude 'conv1,linear' --at-least 'layer1.*=0.5'
"""
)
def inspect(
    task: opt.TaskName,
    model: opt.Model = None,
    data_root: opt.DataRoot = None,
    image_size: opt.ImageSize = Settings.image_size,
    exclude: opt.Exclude = None,
    at_least: opt.AtLeast = None,
    as_json: opt.AsJson = False,
) -> None:
    """What can be compressed in the model of TASK, and what cannot, and why."""
    from autocompress.engine.prepare import prepare
    from autocompress.graph.reach import reach
    from autocompress.report.inspection import inspection_json, inspection_tables

    settings = Settings(
        task=task,
        model=model,
        data_root=data_root,
        image_size=image_size,
        exclude=_patterns(exclude),
        at_least=parse_shares(_patterns(at_least)),
    )
    prepared = prepare(task, settings)
    shares = reach(prepared.model, prepared.analysis, prepared.profile)
    if as_json:
        print(json.dumps(inspection_json(prepared.analysis, prepared.profile, shares), indent=2))
    else:
        console().print(inspection_tables(prepared.analysis, prepared.profile, shares))


def _options(context: typer.Context, config: str | None) -> dict[str, Any]:
    """The command line's options, and where one was not given the configuration file's."""
    values = {k: v for k, v in context.params.items() if k != "config"}
    if config is None:
        return values
    if not Path(config).is_file():
        raise SettingsError(f"config must be an existing file but '{config}' is not.")
    try:
        stored = tomllib.loads(Path(config).read_text())
    except ValueError as error:
        raise SettingsError(f"config '{config}' must be TOML but: {error}") from error
    for key, value in stored.items():
        name = key.replace("-", "_")
        if name not in values or name == "task":
            options = [option.replace("_", "-") for option in values if option != "task"]
            nearest = difflib.get_close_matches(key.replace("_", "-"), options, 1, cutoff=0)[0]
            raise SettingsError(
                f"config '{config}' must hold options of search but has {key!r}; the nearest is {nearest!r}."
            )
        source = context.get_parameter_source(name)
        if source is None or source.name != "COMMANDLINE":
            values[name] = _from_file(name, value)
    return values


def _patterns(given: list[str] | None) -> tuple[str, ...]:
    return tuple(pattern for item in given or () for pattern in parse_list(item))


_LISTS = ("space", "constraint", "methods", "objectives", "exclude", "at_least")
_REPEATED = ("space", "constraint", "exclude", "at_least")


def _from_file(name: str, value: Any) -> Any:
    """An option's value as the command line would have given it; lists may be strings, and shares a table."""
    if name not in _LISTS:
        return value
    if name == "at_least" and isinstance(value, dict):
        return [f"{pattern}={share}" for pattern, share in value.items()]
    items = [value] if isinstance(value, str) else value
    if not isinstance(items, list) or not all(isinstance(item, str) for item in items):
        raise SettingsError(f"{name} must be a string or a list of strings but got {value!r}.")
    return items if name in _REPEATED else ",".join(items)


def _settings(options: Mapping[str, Any]) -> Settings:
    """The settings that options of the command line stand for."""
    values = dict(options)
    methods, timeout = values.pop("methods"), values.pop("timeout")
    values["objectives"] = parse_list(values["objectives"])
    values["spaces"] = tuple(values.pop("space") or ())
    values["distill"] = values.pop("distillation")
    values["exclude"] = _patterns(values["exclude"])
    values["at_least"] = parse_shares(_patterns(values["at_least"]))
    given = values.pop("constraint")
    values["constraints"] = None if not given else tuple(c for c in given if c != "none")
    return Settings(
        **values,
        methods=None if methods is None else parse_list(methods),
        timeout=None if timeout is None else parse_duration(str(timeout)),
    )


@contextmanager
def _display(quiet: bool, json_lines: bool) -> Iterator[Progress]:
    """What shows the search while it runs."""
    from autocompress.report import JsonLinesProgress, Progress, shown_progress

    if quiet and json_lines:
        raise SettingsError("--quiet and --json-lines must not be given together.")
    # As Python advises for applications: warnings of libraries are their authors' to read, or who asks.
    if not sys.warnoptions:
        warnings.simplefilter("ignore")
    progress = JsonLinesProgress() if json_lines else Progress() if quiet else shown_progress()
    try:
        yield progress
    except KeyboardInterrupt:
        progress.close()
        print_error("interrupted before any trial; the same command starts again")
        raise typer.Exit(130) from None
    finally:
        progress.close()
