"""The terminal: live progress of a search, and the front as a table."""

from __future__ import annotations

from collections.abc import Sequence

from rich.box import SIMPLE_HEAD
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, TaskID, TextColumn, TimeElapsedColumn
from rich.progress import Progress as Bar
from rich.table import Table

from autocompress.report.progress import Progress, TrialEnd
from autocompress.result import ParetoModel, SearchResult

_SHOWN = ("bytes", "weight_bytes", "params", "macs", "latency", "memory")


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


class ConsoleProgress(Progress):
    """Bars on a terminal, a line per trial everywhere.

    Args:
        objectives: metric names shown for each trial.
        console: where to print; None means standard error.
    """

    def __init__(self, objectives: Sequence[str], console: Console | None = None) -> None:
        self.console = console or Console(stderr=True)
        self.objectives = list(objectives)
        self.bar = Bar(
            TextColumn("{task.description}"),
            BarColumn(),
            MofNCompleteColumn(),
            TimeElapsedColumn(),
            console=self.console,
            transient=True,
            disable=not self.console.is_terminal,
        )
        self.tasks: dict[str, TaskID] = {}
        self.bar.start()

    def note(self, text: str) -> None:
        """Print the line above the bars."""
        self.console.print(text, highlight=False, markup=False, soft_wrap=True)

    def reference_epoch(self, epoch: int, epochs: int) -> None:
        """Move the reference's bar; where there is no terminal, print a line."""
        self._update("reference", "training the reference", epoch, epochs)
        if not self.console.is_terminal:
            self.note(f"training the reference: epoch {epoch} of {epochs}")
        if epoch == epochs:
            self._remove("reference")

    def trials_begin(self, done: int, total: int) -> None:
        """Put up the bar of trials."""
        self._update("trials", "trials", done, total)

    def trial_epoch(self, number: int, epoch: int, epochs: int) -> None:
        """Move the bar of a trial."""
        self._update(f"trial {number}", f"  trial {number}", epoch, epochs)

    def trial_end(self, end: TrialEnd) -> None:
        """Take a trial's bar down and print its metrics, with ratios to the reference, on a line."""
        self._remove(f"trial {end.number}")
        if "trials" in self.tasks:
            self.bar.advance(self.tasks["trials"])
        parts = [f"trial {end.number:>3}"]
        for name in self.objectives:
            if name in end.metrics:
                text = f"{name} {metric_text(name, end.metrics[name])}"
                if name in _SHOWN and end.reference.get(name):
                    text += f" ({end.metrics[name] / end.reference[name]:.2f}×)"
                parts.append(text)
        if end.state != "complete":
            parts.append(end.state.upper())
        if end.remark:
            parts.append(end.remark)
        self.note("  ".join(parts))

    def final(self, done: int, total: int) -> None:
        """Move the bar of points that are measured once more, and take it down after the last."""
        self._update("final", "measuring the front", done, total)
        if done == total:
            self._remove("final")

    def close(self) -> None:
        """Take all bars down."""
        self.bar.stop()

    def _update(self, key: str, text: str, done: int, total: int) -> None:
        if key not in self.tasks:
            self.tasks[key] = self.bar.add_task(text, total=total)
        self.bar.update(self.tasks[key], completed=done)

    def _remove(self, key: str) -> None:
        if key in self.tasks:
            self.bar.remove_task(self.tasks.pop(key))


def front_table(result: SearchResult, mark: ParetoModel | None = None, label: str = "knee") -> Table:
    """The front with the reference on top: validation and test metrics, ratios to the reference.

    Args:
        result: whose front.
        mark: a point to show in bold.
        label: what that point is called.
    """
    scores = [n for n in result.reference.metrics if n not in _SHOWN and "_spread" not in n]
    sizes = [n for n in _SHOWN if n in result.reference.metrics]
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
