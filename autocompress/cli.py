"""The command line: parse, call, print."""

from __future__ import annotations

import json
import sys
import tomllib
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Annotated, Any

import typer

from autocompress.errors import AutocompressError, SearchFailedError, SettingsError, one_line

app = typer.Typer(
    add_completion=False,
    no_args_is_help=True,
    rich_markup_mode=None,
    pretty_exceptions_enable=False,
    help="A Pareto front of compressed, deployable checkpoints from one command.\n\n"
    "Start with: autocompress search digits",
)

Run = Annotated[Path, typer.Argument(help="Folder that a search wrote.", metavar="RUN")]
TaskName = Annotated[
    str,
    typer.Argument(
        metavar="TASK",
        help="digits, mnist, fashion_mnist, cifar10, npz:FILE, imagefolder:DIR, "
        "package.module:function or path/file.py:function.",
    ),
]
Model = Annotated[
    str | None,
    typer.Option(
        help="mlp, lenet300, small_cnn, resnet20, resnet56, a torchvision model or module:function."
    ),
]
Weights = Annotated[str | None, typer.Option(help="Trained weights of the model (a state dict).")]
DataRoot = Annotated[str | None, typer.Option(help="Folder of data sets. [default: $AUTOCOMPRESS_DATA]")]
ImageSize = Annotated[int, typer.Option(help="Side of an image folder's images, in pixels.")]


@app.command(
    epilog="Examples:  autocompress search digits   |   "
    "autocompress search fashion_mnist --model small_cnn --methods alcn --trials 24   |   "
    "autocompress search my_package.task:make --objectives accuracy,latency --constraint "
    "'accuracy>=ref-0.01' --timeout 2h"
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
    trials: Annotated[int, typer.Option(help="Compressed models to try.")] = 24,
    timeout: Annotated[str | None, typer.Option(help="Time limit: 90s, 30m, 2h.")] = None,
    epochs: Annotated[int | None, typer.Option(help="Of one trial. [default: the task's]")] = None,
    workers: Annotated[
        int | None, typer.Option(help="Trials at a time. [default: CPUs / cpus-per-trial]")
    ] = None,
    cpus_per_trial: Annotated[float, typer.Option()] = 1.0,
    gpus_per_trial: Annotated[float, typer.Option()] = 0.0,
    sampler: Annotated[str, typer.Option(help="auto, tpe, nsga2, gp or random.")] = "auto",
    early_stopping: Annotated[bool, typer.Option(help="Stop unpromising trials early.")] = False,
    seed: Annotated[int, typer.Option()] = 0,
    artifact: Annotated[
        str, typer.Option(help="What bytes, accuracy and latency are those of: pt2 or onnx.")
    ] = "pt2",
    latency_batch_size: Annotated[int, typer.Option(help="Inputs per measured call.")] = 1,
    latency_threads: Annotated[int, typer.Option(help="Threads of the measured process.")] = 1,
    out: Annotated[str | None, typer.Option(help="RUN. [default: runs/<task>-<model>]")] = None,
    storage: Annotated[str | None, typer.Option(help="Optuna storage URL. [default: SQLite in RUN]")] = None,
    ray_address: Annotated[str | None, typer.Option(help="Of a running Ray cluster.")] = None,
    config: Annotated[
        str | None, typer.Option(help="TOML file of these options; the command line wins.")
    ] = None,
) -> None:
    """Search for compressed models of TASK, or continue an earlier search."""
    with _progress_of(_options(context, config)) as (name, settings, progress):
        from autocompress.search import search as run_search

        result = run_search(name, settings, progress=progress)
        progress.close()
        _print_result(result)
        if result.interrupted:
            _error("interrupted; the partial front is saved, the same command continues")
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
    from autocompress.report.inspection import inspection_json, inspection_tables
    from autocompress.search import Settings, prepare

    settings = Settings(task=task, model=model, data_root=data_root, image_size=image_size)
    prepared = prepare(task, settings)
    if as_json:
        print(json.dumps(inspection_json(prepared.analysis, prepared.profile), indent=2))
    else:
        _console().print(inspection_tables(prepared.analysis, prepared.profile))


@app.command(epilog="Example:  autocompress front runs/digits-small_cnn --csv > front.csv")
def front(
    run: Run,
    as_json: Annotated[bool, typer.Option("--json", help="Print JSON.")] = False,
    as_csv: Annotated[bool, typer.Option("--csv", help="Print CSV.")] = False,
) -> None:
    """The front of RUN: validation and test metrics, ratios to the reference."""
    from autocompress.search import load_run

    if as_json and as_csv:
        raise SettingsError("--json and --csv must not be given together.")
    result = load_run(run)
    if as_json:
        print(json.dumps(result.to_json(), indent=2))
    elif as_csv:
        print(result.to_csv(), end="")
    else:
        _print_front(result)


@app.command(
    epilog="Examples:  autocompress pick RUN --knee   |   autocompress pick RUN --max-drop 0.005 "
    "--latency 8ms   |   autocompress pick RUN --tau 0.8"
)
def pick(
    run: Run,
    knee: Annotated[bool, typer.Option("--knee", help="Best trade-off.")] = False,
    max_drop: Annotated[
        float | None, typer.Option(help="Smallest that loses at most this of the first objective.")
    ] = None,
    tau: Annotated[float | None, typer.Option(help="Weight of the first objective, 0 to 1.")] = None,
    latency: Annotated[str | None, typer.Option(help="At most, e.g. 8ms.")] = None,
    bytes: Annotated[float | None, typer.Option(help="At most.")] = None,
    params: Annotated[float | None, typer.Option(help="At most.")] = None,
    macs: Annotated[float | None, typer.Option(help="At most.")] = None,
    as_json: Annotated[bool, typer.Option("--json", help="Print JSON.")] = False,
) -> None:
    """One point of RUN's front, by need."""
    from autocompress.search import load_run

    if knee + (max_drop is not None) + (tau is not None) > 1:
        raise SettingsError("only one of --knee, --max-drop and --tau must be given.")
    budgets = {"bytes": bytes, "params": params, "macs": macs, "latency": _milliseconds(latency)}
    rule = "max-drop" if max_drop is not None else "tau" if tau is not None else "knee"
    result = load_run(run)
    point = result.pick(
        rule,  # type: ignore[arg-type]
        max_drop=max_drop,
        tau=tau,
        budgets={name: value for name, value in budgets.items() if value is not None},
    )
    if as_json:
        points = {p["trial"]: p for p in result.to_json()["points"]}
        print(json.dumps(points[point.trial], indent=2))
    else:
        _print_front(result, point)
        print(f"trial {point.trial}: {point.path}")


@app.command(epilog="Example:  autocompress export RUN --pick knee --format onnx -o model.onnx")
def export(
    run: Run,
    output: Annotated[Path, typer.Option("-o", "--output", help="File to write.")],
    trial: Annotated[int | None, typer.Option(help="Number of a trial of the front.")] = None,
    pick_rule: Annotated[str | None, typer.Option("--pick", help="knee")] = None,
    format: Annotated[
        str | None, typer.Option(help="pt2, onnx or safetensors. [default: by the file's ending]")
    ] = None,
) -> None:
    """Write one model of RUN to a file."""
    from autocompress.search import load_run

    if (trial is None) == (pick_rule is None):
        raise SettingsError("one of --trial and --pick must be given.")
    result = load_run(run)
    if trial is None:
        point = result.pick(pick_rule)  # type: ignore[arg-type]
    else:
        points = {p.trial: p for p in [result.reference, *result.front]}
        if trial not in points:
            raise SettingsError(f"trial must be on the front ({sorted(points)}) but got {trial}.")
        point = points[trial]
    print(point.export(output, format))


@app.command()
def report(run: Run) -> None:
    """Write RUN/report.html: a single self-contained file."""
    from autocompress.search import load_run
    from autocompress.search import report as write

    print(write(load_run(run)))


@app.command()
def dashboard(run: Run, port: Annotated[int, typer.Option(help="On 127.0.0.1.")] = 8080) -> None:
    """Show RUN's study, running or finished, in optuna-dashboard."""
    from autocompress.report.dashboard import serve_dashboard
    from autocompress.search.folder import RunFolder
    from autocompress.search.run import open_study

    study, _ = open_study(RunFolder(run))
    print(f"http://127.0.0.1:{port}  (Ctrl-C ends it)", flush=True)
    serve_dashboard(study.study, study.artifacts, port)


@app.command(epilog="Example:  autocompress replay runs/digits-small_cnn --trial 7")
def replay(run: Run, trial: Annotated[int, typer.Option(help="Number of a complete trial.")]) -> None:
    """Train a trial of RUN again from its stored configuration."""
    from rich.table import Table

    from autocompress.search import replay as run_again

    stored, result, path = run_again(
        run, trial, report=lambda e: print(f"epoch {e['epoch']:.0f}  loss {e['loss']:.4f}")
    )
    table = Table("metric", "stored", "again")
    for name, value in result.metrics.items():
        table.add_row(name, f"{stored[name]:g}", f"{value:g}")
    _console().print(table)
    print(path)


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
            listed = name in ("methods", "objectives") and isinstance(value, list)
            values[name] = ",".join(value) if listed else value
    return values


@contextmanager
def _progress_of(options: dict[str, Any]) -> Iterator[tuple[str, Any, Any]]:
    """The task's name, the settings and the display of a search."""
    from autocompress.report import ConsoleProgress
    from autocompress.search.settings import Settings, parse_duration, parse_list

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


def _print_result(result: Any) -> None:
    point = _print_front(result)
    print(f"checkpoints  {result.out / 'trials'}")
    print(f"report       {result.out / 'report.html'}")
    if point is not None:
        print(f"next         autocompress pick {result.out} --max-drop 0.01")
        print(f"             autocompress export {result.out} --pick knee -o model.pt2")
        print(f"             autocompress dashboard {result.out}")


def _print_front(result: Any, mark: Any = None) -> Any:
    from autocompress.report import front_table

    point = mark or (result.pick("knee") if result.front else None)
    _console().print(front_table(result, point))
    if not result.front:
        print("no trial satisfies the constraints yet")
    return point


def _milliseconds(text: str | None) -> float | None:
    """Milliseconds of "8ms", "8" or "0.1s"."""
    if text is None:
        return None
    number = text.removesuffix("ms").removesuffix("s").strip()
    try:
        return float(number) * (1000 if text.endswith("s") and not text.endswith("ms") else 1)
    except ValueError:
        raise SettingsError(f"latency must read like '8ms' or '0.1s' but got {text!r}.") from None


def _console() -> Any:
    from rich.console import Console

    console = Console()
    # A pipe has no width; tables made for one must not be cut to 80 columns.
    return console if console.is_terminal else Console(width=160)


def _error(text: str) -> None:
    print(f"autocompress: {text}", file=sys.stderr)


def main() -> None:
    """Run the command line and end the process with its exit code."""
    # Console scripts do not have the working folder on the path; `module:function` needs it.
    sys.path.insert(0, "")
    try:
        app(standalone_mode=True)
    except SearchFailedError as error:
        _error(one_line(error))
        sys.exit(1)
    except AutocompressError as error:
        _error(one_line(error))
        sys.exit(2)
    except KeyboardInterrupt:
        _error("interrupted")
        sys.exit(130)


if __name__ == "__main__":
    main()
