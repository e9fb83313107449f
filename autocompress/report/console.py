"""The terminal: metrics and fronts as people read them."""

from __future__ import annotations

from collections.abc import Sequence

from rich.box import SIMPLE_HEAD
from rich.table import Table

from autocompress.checkpoint.store import kept_trials
from autocompress.result import ParetoModel, SearchResult

# Metrics that are read relative to the reference's.
SIZES = ("bytes", "weight_bytes", "params", "macs", "latency", "memory")


# `bytes` is the size of the file that runs, `weight_bytes` what its tensors take of it.
HEADINGS = {"bytes": "file bytes", "weight_bytes": "of weights"}


def metric_text(name: str, value: float) -> str:
    """A metric as people read it: bytes with a unit, counts shortened, latency in ms."""
    if name in ("bytes", "weight_bytes", "memory"):
        return _scaled(value, (" B", " kB", " MB", " GB"))
    if name in ("params", "macs"):
        return _scaled(value, ("", " k", " M", " G"))
    if name == "latency":
        return f"{value:.3g} ms"
    return f"{value:.4f}" if abs(value) >= 0.01 or value == 0 else f"{value:.3g}"


def disk_text(result: SearchResult) -> str:
    """Of how many trials a run has checkpoints, and what its folder takes of the disk."""
    numbers = kept_trials(result.out / "trials")
    ended = sum(1 for trial in result.study.trials if trial.number and trial.state.is_finished())
    return f"{len(numbers)} of {ended} trials; the run takes {metric_text('bytes', result.disk_bytes)}"


def error_text(point: ParetoModel, name: str) -> str:
    """The standard error behind a metric, where it is known."""
    return f" ±{point.errors[name]:.4f}" if name in point.errors else ""


def certainty_text(result: SearchResult, point: ParetoModel) -> str:
    """What is known of a point, in a sentence: its 95 % interval, and whether it is likely on the front."""
    name = result.objectives[0].metric
    text = f"{name} {metric_text(name, point.metrics[name])} on {point.validation_rows} validation rows"
    if name in point.errors:
        low, high = point.interval(name)
        text += f" (95 %: {metric_text(name, low)} to {metric_text(name, high)})"
    return f"{text}; on the front with a probability of {point.front_probability:.0%}"


def target_text(result: SearchResult, point: ParetoModel | None) -> str:
    """Which trial answers the search's target, in a line: by validation, and what the test split says.

    Args:
        result: of a search with a target.
        point: that answers it; None where none does.
    """
    assert result.target is not None
    if point is None:
        return f"target {result.target.text}: no compressed model on the front holds it"
    cost, primary = result.first_cost, result.objectives[0].metric
    text = f"target {result.target.text}: trial {point.trial}, {point.ratios[cost]:.3g} of the {cost}"
    for name in dict.fromkeys((primary, *result.target.metrics)):
        if name in point.test_metrics:
            tested = metric_text(name, point.test_metrics[name])
            text += f", {name} {metric_text(name, point.metrics[name])} (test {tested})"
    return text


def _ratio(point: ParetoModel, name: str) -> str:
    return f"{point.ratios[name]:.3f}" if name in point.ratios else "-"


def _scaled(value: float, units: Sequence[str]) -> str:
    for unit in units[:-1]:
        if abs(value) < 1000:
            return f"{value:.3g}{unit}"
        value /= 1000
    return f"{value:.3g}{units[-1]}"


def front_table(result: SearchResult, mark: ParetoModel | None = None, label: str = "knee") -> Table:
    """The front with the reference on top: validation and test metrics, ratios to the reference.

    Args:
        result: whose front.
        mark: a point to show in bold.
        label: what that point is called.
    """
    scores = [n for n in result.reference.metrics if n not in SIZES and "_spread" not in n]
    sizes = [n for n in SIZES if n in result.reference.metrics]
    table = Table(title=f"Pareto front of {result.out}", title_justify="left", box=SIMPLE_HEAD)
    table.add_column("trial", justify="right", no_wrap=True)
    for name in scores:
        table.add_column(f"{name}\nval", justify="right", no_wrap=True)
        table.add_column("\ntest", justify="right", no_wrap=True)
    table.add_column("on the\nfront", justify="right", no_wrap=True)
    for name in sizes:
        table.add_column(HEADINGS.get(name, name), justify="right", no_wrap=True)
        table.add_column("×ref", justify="right", no_wrap=True, style="cyan")
    for point in [result.reference, *(p for p in result.front if p.trial != 0)]:
        marked = mark is not None and point.trial == mark.trial
        name_of = "reference" if point.trial == 0 else str(point.trial)
        cells = [f"{label} {name_of}" if marked else name_of]
        for name in scores:
            tested = point.test_metrics.get(name)
            cells += [
                metric_text(name, point.metrics[name]) + error_text(point, name),
                "-" if tested is None else metric_text(name, tested),
            ]
        cells.append("" if point.trial == 0 else f"{point.front_probability:.0%}")
        for name in sizes:
            cells += [metric_text(name, point.metrics[name]), _ratio(point, name)]
        table.add_row(*cells, style="bold" if marked else None)
    return table
