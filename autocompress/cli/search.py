"""`autocompress search` and `autocompress inspect`."""

from __future__ import annotations

import json
import tomllib
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Annotated, Any

import typer

from autocompress.cli.app import DataRoot, ImageSize, Model, Number, TaskName, Weights, Whole, app
from autocompress.cli.show import console, print_error, print_result
from autocompress.errors import SettingsError


@app.command(
    epilog="""\b
Examples:
  autocompress search digits
  autocompress search fashion_mnist --model small_cnn --methods alcn --trials 24
  autocompress search cifar10 --model resnet20 --weights resnet20.th --epochs 2
  autocompress search my_package.task:make --objectives accuracy,latency --timeout 2h
  autocompress search npz:data.npz --constraint 'accuracy>=ref-0.01' --early-stopping
"""
)
def search(
    context: typer.Context,
    task: TaskName,
    model: Model = None,
    weights: Weights = None,
    data_root: DataRoot = None,
    image_size: ImageSize = 224,
    methods: Annotated[
        str | None, typer.Option(help="Comma-separated. [default: all that fit the model]")
    ] = None,
    space: Annotated[
        list[str] | None,
        typer.Option(help="FILE.py or module with suggest(trial, profile); repeatable."),
    ] = None,
    objectives: Annotated[
        str,
        typer.Option(help="At most 3 of accuracy, bytes, params, macs, latency; ':max'/':min'."),
    ] = "accuracy,bytes",
    constraint: Annotated[
        list[str] | None,
        typer.Option(
            help="'accuracy>=0.97', 'accuracy>=ref-0.005', 'bytes<=0.5*ref'; repeatable; 'none' lifts "
            "the default. [default: accuracy>=0.9*ref]"
        ),
    ] = None,
    trials: Annotated[int, Whole(help="Compressed models to try.")] = 24,
    timeout: Annotated[str | None, typer.Option(help="Time limit: 90s, 30m, 2h.")] = None,
    epochs: Annotated[int | None, Whole(help="Of one trial. [default: the task's]")] = None,
    workers: Annotated[int | None, Whole(help="Trials at a time. [default: CPUs / cpus-per-trial]")] = None,
    cpus_per_trial: Annotated[float, Number("CPUs of one trial; also its threads.")] = 1.0,
    gpus_per_trial: Annotated[float, Number("GPUs of one trial.")] = 0.0,
    sampler: Annotated[str, typer.Option(help="auto, tpe, nsga2, gp or random.")] = "auto",
    early_stopping: Annotated[bool, typer.Option(help="Stop unpromising trials early.")] = False,
    seed: Annotated[int, Whole("Of everything random.")] = 0,
    artifact: Annotated[
        str, typer.Option(help="What bytes, accuracy and latency are those of: pt2 or onnx.")
    ] = "pt2",
    latency_batch_size: Annotated[int, Whole(help="Inputs per measured call.")] = 1,
    latency_threads: Annotated[int, Whole(help="Threads of the measured process.")] = 1,
    out: Annotated[str | None, typer.Option(help="RUN. [default: runs/<task>-<model>]")] = None,
    storage: Annotated[str | None, typer.Option(help="Optuna storage URL. [default: SQLite in RUN]")] = None,
    ray_address: Annotated[str | None, typer.Option(help="Of a running Ray cluster.")] = None,
    config: Annotated[
        str | None, typer.Option(help="TOML file of these options; the command line wins.")
    ] = None,
) -> None:
    """Search for compressed models of TASK, or continue an earlier search."""
    with _progress_of(_options(context, config)) as (name, settings, progress):
        from autocompress.engine.run import search as run_search

        result = run_search(name, settings, progress=progress)
        progress.close()
        print_result(result)
        if result.interrupted:
            print_error("interrupted; the partial front is saved, the same command continues")
            raise typer.Exit(130)


@app.command(epilog="Example:  autocompress inspect cifar10 --model resnet56 --json")
def inspect(
    task: TaskName,
    model: Model = None,
    data_root: DataRoot = None,
    image_size: ImageSize = 224,
    as_json: Annotated[bool, typer.Option("--json", help="Print JSON.")] = False,
) -> None:
    """What can be compressed in the model of TASK, and what cannot, and why."""
    from autocompress.engine.prepare import prepare
    from autocompress.engine.settings import Settings
    from autocompress.report.inspection import inspection_json, inspection_tables

    settings = Settings(task=task, model=model, data_root=data_root, image_size=image_size)
    prepared = prepare(task, settings)
    if as_json:
        print(json.dumps(inspection_json(prepared.analysis, prepared.profile), indent=2))
    else:
        console().print(inspection_tables(prepared.analysis, prepared.profile))


def _options(context: typer.Context, config: str | None) -> dict[str, Any]:
    """The command line's options, and where one was not given the configuration file's."""
    values = {k: v for k, v in context.params.items() if k != "config"}
    if config is None:
        return values
    if not Path(config).is_file():
        raise SettingsError(f"config must be an existing file but '{config}' is not.")
    try:
        stored = tomllib.loads(Path(config).read_text())
    except tomllib.TOMLDecodeError as error:
        raise SettingsError(f"config '{config}' must be TOML but: {error}") from error
    for key, value in stored.items():
        name = key.replace("-", "_")
        if name not in values or name == "task":
            raise SettingsError(f"config '{config}' must hold options of search but has {key!r}.")
        source = context.get_parameter_source(name)
        if source is None or source.name != "COMMANDLINE":
            if name in ("space", "constraint") and isinstance(value, str):
                value = [value]
            listed = name in ("methods", "objectives") and isinstance(value, list)
            values[name] = ",".join(value) if listed else value
    return values


@contextmanager
def _progress_of(options: dict[str, Any]) -> Iterator[tuple[str, Any, Any]]:
    """The task's name, the settings and the display of a search."""
    from autocompress.engine.settings import Settings, parse_duration, parse_list
    from autocompress.report import ConsoleProgress

    values = dict(options)
    methods, timeout = values.pop("methods"), values.pop("timeout")
    values["objectives"] = parse_list(values["objectives"])
    values["spaces"] = tuple(values.pop("space") or ())
    given = values.pop("constraint")
    values["constraints"] = None if not given else tuple(c for c in given if c != "none")
    settings = Settings(
        **values,
        methods=None if methods is None else parse_list(methods),
        timeout=None if timeout is None else parse_duration(str(timeout)),
    )
    progress = ConsoleProgress([item.partition(":")[0] for item in settings.objectives])
    try:
        yield settings.task, settings, progress
    finally:
        progress.close()
