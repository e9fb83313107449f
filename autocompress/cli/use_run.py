"""Commands on a run folder: front, pick, export, report, dashboard, replay."""

from __future__ import annotations

import json
import sys
import warnings
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from autocompress.cli import options as opt
from autocompress.cli.app import app
from autocompress.cli.options import AsJson, Number, Run, Whole
from autocompress.cli.show import answer_to_target, print_error, print_front, print_table
from autocompress.errors import SettingsError
from autocompress.remote import refuse_address

if TYPE_CHECKING:
    from autocompress.result import ParetoModel, SearchResult


@app.command(epilog="Example:  autocompress front runs/digits-small_cnn --csv > front.csv")
def front(
    run: Run,
    as_json: AsJson = False,
    as_csv: Annotated[bool, typer.Option("--csv", help="Print CSV.")] = False,
) -> None:
    """The front of RUN: validation and test metrics, ratios to the reference."""
    from autocompress.engine.results import load_run

    if as_json and as_csv:
        raise SettingsError("--json and --csv must not be given together.")
    result = load_run(run)
    if as_json:
        print(json.dumps(result.to_json(), indent=2))
    elif as_csv:
        print(result.to_csv(), end="")
    else:
        print_front(result)


@app.command(
    epilog="""\b
Examples:
  autocompress pick RUN --knee
  autocompress pick RUN --max-drop 0.005 --latency 8ms
"""
)
def pick(
    run: Run,
    knee: Annotated[bool, typer.Option("--knee", help="Best trade-off.")] = False,
    max_drop: Annotated[
        float | None, Number(help="Smallest that loses at most this of the first objective.")
    ] = None,
    sure: Annotated[
        bool, typer.Option("--sure", help="With --max-drop: only where that holds with 95 % certainty.")
    ] = False,
    tau: Annotated[float | None, Number(help="Weight of the first objective, 0 to 1.")] = None,
    latency: Annotated[str | None, typer.Option(help="At most, e.g. 8ms.")] = None,
    bytes: Annotated[str | None, typer.Option(help="At most, e.g. 9kB or 2MiB.")] = None,
    params: Annotated[str | None, typer.Option(help="At most, e.g. 10k.")] = None,
    macs: Annotated[str | None, typer.Option(help="At most, e.g. 1.5M.")] = None,
    memory: Annotated[str | None, typer.Option(help="Bytes of a call, at most, e.g. 64MB.")] = None,
    as_json: AsJson = False,
) -> None:
    """One point of RUN's front, by need; by default what answers the search's target, else the knee."""
    from autocompress.engine.results import load_run
    from autocompress.engine.settings import parse_amount

    if knee + (max_drop is not None) + (tau is not None) > 1:
        raise SettingsError("only one of --knee, --max-drop and --tau must be given.")
    if sure and max_drop is None:
        raise SettingsError("--sure must be given with --max-drop.")
    limits = {"bytes": bytes, "params": params, "macs": macs, "memory": memory}
    budgets = {name: parse_amount(name, most) for name, most in limits.items() if most is not None}
    if latency is not None:
        budgets["latency"] = _milliseconds(latency)
    result = load_run(run)
    point = result.pick("knee" if knee else None, max_drop=max_drop, sure=sure, tau=tau, budgets=budgets)
    if as_json:
        points = {p["trial"]: p for p in result.to_json()["points"]}
        print(json.dumps(points[point.trial], indent=2))
    else:
        by_need = budgets or max_drop is not None or tau is not None
        is_knee = knee or answer_to_target(result) is None
        label = "pick" if by_need or not point.trial else "knee" if is_knee else "target"
        print_front(result, point, label)
        print(f"{'trial ' * bool(point.trial)}{point.trial or 'reference'}: {point.path}")
    _say_if_reference(result, point)


@app.command(
    epilog="""\b
Examples:
  autocompress export RUN --pick knee --format onnx -o model.onnx
  autocompress export RUN --trial 7 --folder for-the-hub
"""
)
def export(
    run: Run,
    output: opt.Output = None,
    folder: opt.Folder = None,
    trial: opt.TrialOfFront = None,
    pick_rule: opt.PickRule = None,
    format: opt.Format = None,
    opset: opt.Opset = None,
    input_names: opt.InputNames = None,
    output_names: opt.OutputNames = None,
    class_names: opt.ClassNames = None,
    embed_preprocessing: opt.EmbedPreprocessing = False,
    dynamic_size: opt.DynamicSize = False,
) -> None:
    """Write one model of RUN to a file, and say what runs it; or to a folder that is ready to be shared."""
    from autocompress.checkpoint.onnx_options import given_options
    from autocompress.engine.results import load_run, take_along
    from autocompress.engine.settings import parse_list
    from autocompress.result import RUNTIMES, format_of

    if (output is None) == (folder is None):
        raise SettingsError("one of --output and --folder must be given.")
    if (trial is None) == (pick_rule is None):
        raise SettingsError("one of --trial and --pick must be given.")
    if pick_rule not in (None, "knee", "target"):
        raise SettingsError(
            f"pick must be 'knee' or 'target' (`autocompress pick` has more rules) but got {pick_rule!r}."
        )
    for name, path in (("output", output), ("folder", folder)):
        if path is not None:
            refuse_address(name, path)
    result = load_run(run)
    point = _chosen(result, trial, pick_rule)
    if pick_rule is not None:
        _say_if_reference(result, point)
    options = {
        "opset": opset,
        "input_names": parse_list(input_names or ""),
        "output_names": parse_list(output_names or ""),
        "class_names": parse_list(class_names or ""),
        "embed_preprocessing": embed_preprocessing,
        "dynamic_size": dynamic_size,
    }
    if folder is not None:
        given = [f"--{name.replace('_', '-')}" for name in given_options(options)]
        if given:
            raise SettingsError(f"{', '.join(given)} must be given with --output alone.")
        print(take_along(result, point, Path(folder), format))
    elif output is not None:
        written = point.export(output, format, **options)
        print(written)
        # Beside the path, which scripts read.
        print(f"runs with {RUNTIMES[format or format_of(written)]}", file=sys.stderr)


def _say_if_reference(result: SearchResult, point: ParetoModel) -> None:
    """Tell who picks a point that it is the reference, beside the output, which scripts read."""
    if point.trial == 0:
        why = "it answers best of all on the front" if result.compressed else result.why_none
        print(f"autocompress: this is the reference, not compressed: {why}", file=sys.stderr)


def _chosen(result: SearchResult, trial: int | None, pick_rule: str | None) -> ParetoModel:
    """The point of a front that is meant, by its number or by a rule; raises SettingsError."""
    if trial is None:
        return result.pick("knee" if pick_rule == "knee" else "target")
    points = {p.trial: p for p in [result.reference, *result.front]}
    if trial not in points:
        raise SettingsError(f"trial must be on the front ({sorted(points)}) but got {trial}.")
    return points[trial]


@app.command(epilog="Example:  autocompress report runs/digits-small_cnn")
def report(run: Run) -> None:
    """Write RUN/report.html: a single file that opens without a network."""
    from autocompress.engine.folder import opened_run
    from autocompress.engine.results import load_folder
    from autocompress.engine.results import report as write

    folder = opened_run(run)
    written = write(load_folder(folder), folder)
    folder.upload(written)
    print(written)
    if folder.address is not None:
        print(f"uploaded to {folder.show(written)}", file=sys.stderr)


@app.command(epilog="Example:  autocompress dashboard runs/digits-small_cnn --port 8081")
def dashboard(
    run: Run,
    host: Annotated[
        str, typer.Option(help="To listen on. There is no login: others than 127.0.0.1 let others in.")
    ] = "127.0.0.1",
    port: Annotated[int, Whole(help="To listen on; 0 is one that is free.")] = 8080,
) -> None:
    """Show RUN's study, running or finished, in optuna-dashboard."""
    from autocompress.engine.folder import opened_run
    from autocompress.engine.results import build_result, draw_pictures, open_study
    from autocompress.report.dashboard import serve_dashboard

    folder = opened_run(run)
    study, objectives = open_study(folder)
    if folder.mirror is not None:
        folder.mirror.follow(print_error)

    def load() -> SearchResult:
        result = build_result(folder, study, objectives)
        # Of a search that still runs, nobody has drawn any yet.
        draw_pictures(result, study)
        return result

    with warnings.catch_warnings():
        # Of few trials importance is not exact: nobody reads that where the server runs, at each reload.
        warnings.filterwarnings("ignore", module=r"optuna\.")
        serve_dashboard(study, load, host, port)


@app.command(epilog="Example:  autocompress replay runs/digits-small_cnn --trial 7")
def replay(run: Run, trial: Annotated[int, Whole(help="Number of a trial that ended.")]) -> None:
    """Train a trial of RUN again from its stored configuration; of one that failed, say where it did."""
    from rich.table import Table

    from autocompress.engine.replay import replay as run_again

    def say(number: int, entry: Mapping[str, float]) -> None:
        print(f"trial {number}  epoch {entry['epoch']:.0f}  loss {entry['loss']:.4f}")

    stored, result, path = run_again(run, trial, report=say, note=print)
    table = Table("metric", "stored", "again")
    for name, value in result.metrics.items():
        table.add_row(name, f"{stored[name]:g}" if name in stored else "-", f"{value:g}")
    print_table(table)
    print(path)


def _milliseconds(text: str) -> float:
    """Milliseconds of "8ms", "8" or "0.1s"."""
    number = text.removesuffix("ms").removesuffix("s").strip()
    try:
        return float(number) * (1000 if text.endswith("s") and not text.endswith("ms") else 1)
    except ValueError:
        raise SettingsError(f"latency must read like '8ms' or '0.1s' but got {text!r}.") from None
