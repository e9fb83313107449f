"""Models and fronts as people read them: metrics with their units, tables for a terminal and a notebook."""

from __future__ import annotations

import html
import io
import math
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, Protocol

from rich.box import SIMPLE_HEAD
from rich.console import Console, RenderableType
from rich.markup import escape
from rich.table import Table

from autocompress.measure import Objective

# Metrics that are read relative to the reference's.
SIZES = ("bytes", "weight_bytes", "params", "macs", "latency", "memory")
# `bytes` is the size of the file that runs, `weight_bytes` what its tensors take of it.
HEADINGS = {"bytes": "file bytes", "weight_bytes": "of weights"}
# Of a file or a pipe, which have none; texts in cells are wrapped there.
_NO_TERMINAL = 160
_UNLIMITED = 10_000


class Measured(Protocol):
    """What a table reads of a model; a `ParetoModel` has it."""

    @property
    def trial(self) -> int:
        """Number of its trial; 0 is the reference."""
        ...

    @property
    def path(self) -> Path:
        """Of its checkpoint."""
        ...

    @property
    def metrics(self) -> Mapping[str, float]:
        """On validation rows, and of its file."""
        ...

    @property
    def test_metrics(self) -> Mapping[str, float]:
        """On test rows, where they were scored."""
        ...

    @property
    def ratios(self) -> Mapping[str, float]:
        """Of its costs to the reference's."""
        ...

    @property
    def errors(self) -> Mapping[str, float]:
        """Standard errors of metrics, where they are known."""
        ...

    @property
    def front_probability(self) -> float:
        """How likely it is on the front by other validation rows."""
        ...


class Searched(Protocol):
    """What a table reads of a search; a `SearchResult` has it."""

    @property
    def shown(self) -> str:
        """The run's folder, or its address in a store."""
        ...

    @property
    def objectives(self) -> Sequence[Objective]:
        """Of the search, the first one first."""
        ...

    @property
    def reference(self) -> Measured:
        """The model before compression."""
        ...

    @property
    def front(self) -> Sequence[Measured]:
        """The models that no other one beats, the best by the first objective first."""
        ...


def metric_text(name: str, value: float) -> str:
    """A metric as people read it: bytes with a unit, counts shortened, latency in ms."""
    if name in ("bytes", "weight_bytes", "memory"):
        return _scaled(value, (" B", " kB", " MB", " GB"))
    if name in ("params", "macs"):
        return _scaled(value, ("", " k", " M", " G"))
    if name == "latency":
        return f"{value:.3g} ms"
    return f"{value:.4f}" if abs(value) >= 0.01 or value == 0 else f"{value:.3g}"


def _scaled(value: float, units: Sequence[str]) -> str:
    for unit in units[:-1]:
        if abs(value) < 1000:
            return f"{value:.3g}{unit}"
        value /= 1000
    return f"{value:.3g}{units[-1]}"


def error_text(point: Measured, name: str) -> str:
    """The standard error behind a metric, where it is known."""
    return f" ±{point.errors[name]:.4f}" if name in point.errors else ""


def scores_of(metrics: Iterable[str]) -> list[str]:
    """The metrics that are no sizes: those of the task."""
    return [name for name in metrics if name not in SIZES and not name.endswith("_spread")]


def sizes_of(metrics: Iterable[str]) -> list[str]:
    """The sizes and costs among metrics, in the order of the tables."""
    known = set(metrics)
    return [name for name in SIZES if name in known]


def point_text(point: Measured) -> str:
    """A model on a line: its metrics, their ratios to the reference's, and where it lies."""
    parts = []
    for name in scores_of(point.metrics):
        text = f"{name} {metric_text(name, point.metrics[name])}{error_text(point, name)}"
        if name in point.test_metrics:
            text += f" (test {metric_text(name, point.test_metrics[name])})"
        parts.append(text)
    for name in sizes_of(point.metrics):
        ratio = f" ({_ratio(point, name)}×)" if point.trial and name in point.ratios else ""
        parts.append(f"{name} {metric_text(name, point.metrics[name])}{ratio}")
    return f"{_name(point)}: {', '.join(parts)}; {point.path}"


def _name(point: Measured) -> str:
    return f"trial {point.trial}" if point.trial else "reference"


def _ratio(point: Measured, name: str) -> str:
    return f"{point.ratios[name]:.3f}" if name in point.ratios else "-"


def _rows(result: Searched) -> list[Measured]:
    """The reference, and the compressed models of the front."""
    return [result.reference, *(p for p in result.front if p.trial != 0)]


def front_table(
    result: Searched, mark: Measured | None = None, label: str = "knee", width: int | None = None
) -> Table:
    """The front with the reference on top: validation and test metrics, ratios to the reference.

    Args:
        result: whose front.
        mark: a point to show in bold.
        label: what that point is called.
        width: characters that there are; the columns that matter least are left out until the table fits,
            down to the first objective and the first cost. None has all columns.
    """
    columns = _Columns(result)
    table = columns.table(mark, label)
    for column in columns.by_least_interest():
        if width is None or table_width(table) <= width:
            return table
        columns.shown.discard(column)
        table = columns.table(mark, label)
        table.caption, table.caption_justify = "a wider terminal shows more columns", "left"
    return table


class _Columns:
    """Which columns a front's table has: pairs of what is told and of which metric.

    Args:
        result: whose front.
    """

    def __init__(self, result: Searched) -> None:
        self.result = result
        self.objectives = [objective.metric for objective in result.objectives]
        self.scores = scores_of(result.reference.metrics)
        self.sizes = sizes_of(result.reference.metrics)
        self.shown = {(kind, n) for kind in ("value", "error", "test") for n in self.scores}
        self.shown |= {(kind, n) for kind in ("value", "ratio") for n in self.sizes} | {("probability", "")}

    def by_least_interest(self) -> Iterator[tuple[str, str]]:
        """The columns that may be left out, the first of them first."""
        first_cost = next((n for n in [*self.objectives, *self.sizes] if n in self.sizes), "")
        minor = [n for n in reversed(self.sizes) if n not in self.objectives and n != first_cost]
        costs = [n for n in reversed(self.objectives) if n in self.sizes and n != first_cost]
        primary = self.objectives[0] if self.objectives[0] in self.scores else next(iter(self.scores), "")
        others = [n for n in reversed(self.scores) if n != primary]
        yield from (("value", n) for n in minor)
        yield from (("error", n) for n in [*others, primary])
        # What the tensors take of a file follows from the file.
        yield from (("ratio", n) for n in sorted(minor, key=lambda n: n != "weight_bytes"))
        yield ("probability", "")
        yield from (("test", n) for n in others)
        yield from (("value", n) for n in costs)
        yield from (("value", n) for n in others if n not in self.objectives)
        yield ("test", primary)
        yield ("value", first_cost)
        yield from (("ratio", n) for n in costs)
        yield from (("value", n) for n in others)

    def table(self, mark: Measured | None, label: str) -> Table:
        """The table with the columns that are shown."""
        title = f"Pareto front of {escape(self.result.shown)}"
        table = Table(title=title, title_justify="left", box=SIMPLE_HEAD)
        for heading, style in self._headings():
            table.add_column(escape(heading), justify="right", no_wrap=True, style=style)
        for point in _rows(self.result):
            marked = mark is not None and point.trial == mark.trial
            table.add_row(*self._cells(point, label if marked else ""), style="bold" if marked else None)
        return table

    def _headings(self) -> Iterator[tuple[str, str]]:
        yield "trial", ""
        for name in self.scores:
            if ("value", name) in self.shown:
                yield f"{name}\nval", ""
            if ("test", name) in self.shown:
                yield "\ntest", ""
        if ("probability", "") in self.shown:
            yield "on the\nfront", ""
        for name in self.sizes:
            heading = HEADINGS.get(name, name)
            valued = ("value", name) in self.shown
            if valued:
                yield heading, ""
            if ("ratio", name) in self.shown:
                yield "×ref" if valued else f"{heading}\n×ref", "cyan"

    def _cells(self, point: Measured, label: str) -> Iterator[str]:
        name_of = str(point.trial) if point.trial else "reference"
        yield f"{label} {name_of}" if label else name_of
        for name in self.scores:
            if ("value", name) in self.shown:
                error = error_text(point, name) if ("error", name) in self.shown else ""
                yield metric_text(name, point.metrics[name]) + error
            if ("test", name) in self.shown:
                tested = point.test_metrics.get(name)
                yield "-" if tested is None else metric_text(name, tested)
        if ("probability", "") in self.shown:
            yield "" if point.trial == 0 else f"{point.front_probability:.0%}"
        for name in self.sizes:
            if ("value", name) in self.shown:
                yield metric_text(name, point.metrics[name])
            if ("ratio", name) in self.shown:
                yield _ratio(point, name)


def table_width(table: Table) -> int:
    """Characters that a table takes where nothing is wrapped or cut."""
    return _plain_console(_UNLIMITED).measure(table).maximum


def plain_text(renderable: RenderableType, width: int | None = None) -> str:
    """What a terminal would show, without colours and without blanks at the ends of lines.

    Args:
        renderable: a table, for instance.
        width: characters of a line; None is as many as a table needs, and for running text 160.
    """
    if width is None:
        width = max(_NO_TERMINAL, table_width(renderable) if isinstance(renderable, Table) else 0)
    console = _plain_console(width)
    console.print(renderable)
    stream: Any = console.file
    return "\n".join(line.rstrip() for line in stream.getvalue().splitlines()).strip("\n")


def _plain_console(width: int) -> Console:
    # Rich would print into a notebook by itself.
    return Console(file=io.StringIO(), width=width, color_system=None, force_jupyter=False)


def front_html(result: Searched, mark: Measured | None = None, label: str = "knee") -> str:
    """The front as a table of HTML: scores on validation and test, costs with their ratios to the reference.

    Args:
        result: whose front.
        mark: a point to show in bold.
        label: what that point is called.
    """
    scores = scores_of(result.reference.metrics)
    sizes = sizes_of(result.reference.metrics)
    heads = ["trial", *(head for n in scores for head in (n, f"{n} (test)")), "on the front"]
    heads += [HEADINGS.get(n, n) for n in sizes]
    rows = []
    for point in _rows(result):
        marked = mark is not None and point.trial == mark.trial
        name = str(point.trial) if point.trial else "reference"
        cells = [f"{name} ({label})" if marked else name]
        for n in scores:
            tested = point.test_metrics.get(n)
            cells.append(metric_text(n, point.metrics[n]) + error_text(point, n))
            cells.append("–" if tested is None else metric_text(n, tested))
        cells.append(f"{point.front_probability:.0%}" if point.trial else "")
        cells += [_with_ratio(point, n) for n in sizes]
        rows.append((cells, marked))
    return _html_table(f"Pareto front of {result.shown}", heads, rows)


def point_html(point: Measured) -> str:
    """A model as a table of HTML, a line for each metric."""
    rows = [
        (
            [
                HEADINGS.get(name, name),
                metric_text(name, point.metrics[name]) + error_text(point, name),
                metric_text(name, point.test_metrics[name]) if name in point.test_metrics else "",
                f"{_ratio(point, name)}×" if name in SIZES and name in point.ratios else "",
            ],
            False,
        )
        for name in [*scores_of(point.metrics), *sizes_of(point.metrics)]
    ]
    return _html_table(f"{_name(point)}: {point.path}", ["", "validation", "test", "of the reference"], rows)


def _with_ratio(point: Measured, name: str) -> str:
    ratio = f" ({_ratio(point, name)}×)" if point.trial and name in point.ratios else ""
    return metric_text(name, point.metrics.get(name, math.nan)) + ratio


def _html_table(caption: str, heads: Sequence[str], rows: Iterable[tuple[Sequence[str], bool]]) -> str:
    lines = [f"<table><caption>{html.escape(caption)}</caption>", "<thead><tr>"]
    lines += [f"<th>{html.escape(head)}</th>" for head in heads]
    lines.append("</tr></thead><tbody>")
    for cells, marked in rows:
        style = ' style="font-weight: bold"' if marked else ""
        lines.append(f"<tr{style}>{''.join(f'<td>{html.escape(cell)}</td>' for cell in cells)}</tr>")
    return "\n".join([*lines, "</tbody></table>"])
