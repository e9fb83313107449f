"""The report's charts of a whole search, as data that Plotly draws."""

from __future__ import annotations

import html
import math
import textwrap
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import replace
from typing import Any

from autocompress.measure import Constraint
from autocompress.measure.subject import STATIC
from autocompress.report.labels import Plot, place_texts
from autocompress.report.reach import outside_text, reach
from autocompress.report.records import TrialRecord
from autocompress.report.rendering import shortened
from autocompress.report.summary import Growth, family_rows
from autocompress.result import ParetoModel, SearchResult
from autocompress.study import Importance
from autocompress.tables import HEADINGS, metric_text
from autocompress.trial import changed_settings

Chart = dict[str, Any]
# Okabe & Ito, *Color Universal Design*, 2008, without yellow, which white paper swallows; the symbols tell
# methods apart where no colour does.
_STYLES = {
    "alcn": ("#0072B2", "circle"),
    "depth": ("#D55E00", "square"),
    "alds": ("#009E73", "diamond"),
    "autoplastic": ("#CC79A7", "triangle-up"),
    "lc": ("#E69F00", "cross"),
    "qat": ("#56B4E9", "triangle-down"),
}
_OTHER, REFERENCE = ("#56B4E9", "hexagon"), ("#000000", "star")
_GREY = "#8a8a8a"
# Letters of a line that fits a telephone.
_HOVER_WIDTH = 38
# Above a front and left of it nothing lies, and no line and no error bar goes there.
_FRONT_PLOT = Plot(
    (560.0, 230.0),
    320.0,
    ("top left", "bottom right", "middle left", "middle right", "top right", "bottom left"),
)
_ROW = 44.0
_TREE_PLOT = Plot(
    (590.0, 250.0),
    _ROW,
    ("top center", "bottom center", "top left", "top right", "bottom left", "bottom right"),
    overhang=26.0,
)
# Ticks at equal factors: the least of these steps that gives few enough.
_FACTORS, _MOST_TICKS = (1.01, 1.02, 1.05, 1.1, 1.25, 2, 4, 10, 100), 8


def style_of(record: TrialRecord) -> tuple[str, str]:
    """Colour and symbol of a trial: its last method's."""
    if record.number == 0:
        return REFERENCE
    return _STYLES.get(record.methods[-1] if record.methods else "", _OTHER)


def text_of(value: object) -> str:
    """A user's text as Plotly shows it letter by letter: Plotly reads some tags."""
    return html.escape(str(value), quote=False)


def layout(**more: Any) -> Chart:
    """What all charts have in common."""
    common = {
        "font": {"family": "system-ui, sans-serif", "size": 12},
        "margin": {"l": 56, "r": 12, "t": 16, "b": 48},
        "paper_bgcolor": "rgba(0,0,0,0)",
        "plot_bgcolor": "rgba(0,0,0,0)",
        "hoverlabel": {"align": "left", "bgcolor": "#fff", "font": {"color": "#1d1d1f"}},
        "modebar": {"bgcolor": "rgba(0,0,0,0)", "color": "#aaa", "activecolor": "#333"},
        "legend": {"orientation": "h", "x": 0, "y": 1.02, "yanchor": "bottom"},
    }
    return common | more


def front_chart(
    result: SearchResult,
    records: Mapping[int, TrialRecord],
    constraints: Sequence[Constraint],
    across: str,
) -> Chart:
    """The first objective against another metric: front, reference, other trials; what is out of bounds is
    shaded.

    Args:
        result: of the run.
        records: all trials.
        constraints: of the search.
        across: the metric on the horizontal axis.
    """
    up = result.objectives[0].metric
    shown = [r for r in records.values() if up in r.metrics and across in r.metrics]
    points = {p.trial: p for p in [result.reference, *result.front]}
    others = [r for r in shown if r.number not in points]
    horizontal, vertical = (_axis(name, result, others, constraints) for name in (across, up))
    front_points = _front_points(points, records, horizontal, vertical)
    place_texts(front_points, _FRONT_PLOT, horizontal.share, vertical.ends())
    traces = [
        *_others(others, horizontal, vertical),
        _line(sorted(result.front, key=lambda p: p.metrics[across]), horizontal, vertical),
        *front_points,
    ]
    return {
        "data": [trace for trace in traces if trace["x"]],
        "layout": layout(
            xaxis=horizontal.layout(),
            yaxis=vertical.layout(),
            shapes=[*_shades(constraints, horizontal, vertical, result.reference.metrics)],
            annotations=_outside(others, horizontal, vertical),
            hovermode="closest",
            height=420,
        ),
    }


def _axis(
    metric: str, result: SearchResult, others: Sequence[TrialRecord], constraints: Iterable[Constraint]
) -> Axis:
    """The axis of a metric: it shows the front, the reference and the bounds, and of other trials those near;
    where no compressed model is on the front, all, so that it is seen how far they are."""
    models = [result.reference, *result.front]
    reference = result.reference.metrics
    anchors = [p.metrics[metric] + sign * p.errors.get(metric, 0.0) for p in models for sign in (1, -1)]
    anchors += [c.bound(metric, reference) for c in constraints if c.metrics == (metric,)]
    values = [r.metrics[metric] for r in others]
    base = reference.get(metric, 0.0)
    return Axis(metric, anchors, base, values) if result.compressed else Axis(metric, anchors + values, base)


def _outside(records: Sequence[TrialRecord], horizontal: Axis, vertical: Axis) -> list[Chart]:
    """A line in the chart's corner that tells how many trials it does not show, and where they would be."""
    counts = dict.fromkeys(("below", "above", "to the left", "to the right"), 0)
    for record in records:
        across, up = (axis.side(record.metrics[axis.metric]) for axis in (horizontal, vertical))
        if up:
            counts["below" if up < 0 else "above"] += 1
        elif across:
            counts["to the left" if across < 0 else "to the right"] += 1
    text = outside_text(counts)
    corner = {"xref": "paper", "yref": "paper", "x": 1, "y": 0, "xanchor": "right", "yanchor": "bottom"}
    font = {"color": "#595959", "size": 11}
    return [{"text": text, "showarrow": False, "font": font, **corner}] if text else []


class Axis:
    """Where a metric's values stand: costs by their ratio to the reference in logarithms, so that equal
    factors are equal steps; others as they are.

    Args:
        metric: its name.
        values: that are shown.
        base: the reference's.
        others: that are shown where they lie near.
    """

    def __init__(
        self, metric: str, values: Iterable[float], base: float, others: Iterable[float] = ()
    ) -> None:
        self.metric, self.base = metric, base
        self.values = [value for value in values if math.isfinite(value)]
        self.others = [value for value in others if math.isfinite(value)]
        positive = all(value > 0 for value in [*self.values, *self.others])
        self.by_ratio = metric in STATIC and base > 0 and positive

    @property
    def name(self) -> str:
        """The metric as the tables call it."""
        return HEADINGS.get(self.metric, self.metric)

    def place(self, value: float) -> float:
        """Where a value stands."""
        return value / self.base if self.by_ratio else value

    def layout(self) -> Chart:
        """Title, ticks and grid."""
        grid = {"gridcolor": "#e3e3e3", "zeroline": False, "linecolor": "#555", "automargin": True}
        low, high = self.ends()
        if not self.by_ratio:
            return grid | {"title": {"text": f"{text_of(self.name)} (validation)"}, "range": [low, high]}
        ticks = _factors(low, high)
        texts = [f"{ratio:.3g}×<br>{metric_text(self.metric, ratio * self.base)}" for ratio in ticks]
        return grid | {
            "type": "log",
            "range": [math.log10(low), math.log10(high)],
            "tickvals": ticks,
            "ticktext": texts,
            "tickangle": 0,
            "title": {"text": f"{text_of(self.name)}, over the reference's"},
        }

    def ends(self) -> tuple[float, float]:
        """Where it begins and ends: a little beyond all values, the reference's, and others that lie near."""
        anchors = [self._scaled(value) for value in [*self.values, self.base]]
        low, high = reach(anchors, map(self._scaled, self.others))
        if self.by_ratio:
            margin = max(0.06 * (high - low), math.log10(1.05))
            return 10 ** (low - margin), 10 ** (high + margin)
        margin = 0.08 * (high - low) or 0.05 * abs(high) or 1.0
        return low - margin, high + margin

    def side(self, value: float) -> int:
        """-1 for a value before the axis begins, 1 for one after it ends, 0 for one that it shows."""
        low, high = self.ends()
        return (self.place(value) > high) - (self.place(value) < low)

    def share(self, place: float) -> float:
        """What of the axis lies before a place on it."""
        low, high = self.ends()
        if self.by_ratio:
            low, high, place = math.log(low), math.log(high), math.log(place)
        return (place - low) / (high - low)

    def _scaled(self, value: float) -> float:
        return math.log10(self.place(value)) if self.by_ratio else value


def _factors(low: float, high: float) -> list[float]:
    """Powers of one factor, so that ticks stand at equal distances."""
    for factor in _FACTORS:
        first = math.ceil(math.log(low, factor) - 1e-9)
        last = math.floor(math.log(high, factor) + 1e-9)
        if last - first < _MOST_TICKS:
            break
    return [float(factor) ** power for power in range(first, last + 1)]


def _others(records: Sequence[TrialRecord], horizontal: Axis, vertical: Axis) -> list[Chart]:
    """Trials that are not on the front; those that were stopped early by what they measured then."""
    groups = {
        "other trials": ("circle-open", [r for r in records if r.feasible]),
        "out of bounds": ("x-thin-open", [r for r in records if r.feasible is False]),
        "stopped early": ("triangle-down-open", [r for r in records if r.feasible is None]),
    }
    return [
        {
            "x": [horizontal.place(r.metrics[horizontal.metric]) for r in members],
            "y": [vertical.place(r.metrics[vertical.metric]) for r in members],
            "mode": "markers",
            "name": name,
            "marker": {"color": _GREY, "symbol": symbol, "size": 8, "line": {"width": 1.5, "color": _GREY}},
            "text": [hover_text(r) for r in members],
            "hovertemplate": "%{text}<extra></extra>",
        }
        for name, (symbol, members) in groups.items()
    ]


def _line(front: Sequence[ParetoModel], horizontal: Axis, vertical: Axis) -> Chart:
    return {
        "x": [horizontal.place(p.metrics[horizontal.metric]) for p in front],
        "y": [vertical.place(p.metrics[vertical.metric]) for p in front],
        "mode": "lines",
        "line": {"color": _GREY, "width": 1.5},
        "name": "front",
        "hoverinfo": "skip",
        "showlegend": False,
    }


def _front_points(
    points: Mapping[int, ParetoModel],
    records: Mapping[int, TrialRecord],
    horizontal: Axis,
    vertical: Axis,
) -> list[Chart]:
    """The reference and the front, a trace for each method, with standard errors."""
    by_label: dict[str, list[ParetoModel]] = {}
    for number in sorted(points):
        by_label.setdefault(records[number].label, []).append(points[number])
    traces = []
    for label, members in by_label.items():
        colour, symbol = style_of(records[members[0].trial])
        errors = [p.errors.get(vertical.metric, 0.0) for p in members]
        traces.append({
            "x": [horizontal.place(p.metrics[horizontal.metric]) for p in members],
            "y": [vertical.place(p.metrics[vertical.metric]) for p in members],
            "mode": "markers+text",
            "name": text_of(label),
            "marker": {"color": colour, "symbol": symbol, "size": 13 if symbol == "star" else 11},
            "text": [str(p.trial) if p.trial else "" for p in members],
            "error_y": {"array": errors, "color": colour, "thickness": 1, "width": 3, "visible": any(errors)},
            "hovertext": [hover_text(records[p.trial], p) for p in members],
            "hoverinfo": "text",
        })  # fmt: skip
    return traces


def hover_text(record: TrialRecord, point: ParetoModel | None = None) -> str:
    """What is known of a trial, line by line: metrics with standard errors, and its configuration."""
    lines = [f"<b>{'reference' if record.number == 0 else f'trial {record.number}'}</b>"]
    if record.standing and record.number:
        lines[0] += f" ({record.standing})"
    elif record.feasible is False:
        lines[0] += " (out of bounds)"
    for name, value in record.metrics.items():
        if name.endswith("_spread"):
            continue
        text = metric_text(name, value)
        if point is not None and name in point.errors:
            text += f" ± {point.errors[name]:.4f}"
        if name in record.ratios and record.number:
            text += f" ({record.ratios[name]:.3g}×)"
        lines.append(f"{text_of(HEADINGS.get(name, name))}: {text}")
    if point is not None and record.number:
        lines.append(f"on the front with a probability of {point.front_probability:.0%}")
    if record.number:
        start = "the reference" if record.parent == 0 else f"trial {record.parent}"
        lines.append(f"{text_of(record.label)}, from {start}")
    for stage in record.config.get("stages", ()):
        for name, value in changed_settings(stage["method"], stage["config"]).items():
            setting = textwrap.wrap(f"{name} = {shortened(value)}", _HOVER_WIDTH)
            lines += [f"&nbsp;&nbsp;{text_of(line)}" for line in setting]
    return "<br>".join(lines)


def _shades(
    constraints: Iterable[Constraint], horizontal: Axis, vertical: Axis, reference: Mapping[str, float]
) -> Iterable[Chart]:
    """Where a constraint on one of both metrics does not hold; one on several metrics is no side of a
    line."""
    for constraint in constraints:
        if len(constraint.metrics) != 1:
            continue
        for axis, own, other in ((horizontal, "x", "y"), (vertical, "y", "x")):
            if constraint.metrics[0] != axis.metric:
                continue
            bound = axis.place(constraint.bound(axis.metric, reference))
            low, high = axis.ends()
            side = (low, min(bound, high)) if constraint.at_least else (max(bound, low), high)
            if side[0] >= side[1]:
                continue  # it holds wherever the axis reaches
            yield {
                "type": "rect",
                "layer": "below",
                "line": {"width": 0},
                "fillcolor": "rgba(213,94,0,0.10)",
                f"{own}ref": own,
                f"{other}ref": "paper",
                f"{own}0": side[0],
                f"{own}1": side[1],
                f"{other}0": 0,
                f"{other}1": 1,
            }


def family_chart(result: SearchResult, records: Mapping[int, TrialRecord]) -> Chart:
    """Who came from whom by which method: each model at its cost over the reference's."""
    cost = result.first_cost
    front = [p.trial for p in result.front if p.trial]
    rows = family_rows(front, {number: record.parent for number, record in records.items()})
    members = {n: records[n] for n in rows if n in records and cost in records[n].metrics}
    axis = Axis(cost, [r.metrics[cost] for r in members.values()], result.reference.metrics[cost])
    traces: list[Chart] = []
    for number, record in members.items():
        if number and record.parent in members:
            start, end = members[record.parent], record
            traces.append({
                "x": [axis.place(start.metrics[cost])] * 2 + [axis.place(end.metrics[cost])],
                "y": [rows[start.number], rows[number], rows[number]],
                "mode": "lines",
                "line": {"color": style_of(record)[0], "width": 2},
                "hoverinfo": "skip",
                "showlegend": False,
            })  # fmt: skip
    labels = dict.fromkeys(record.label for record in members.values())
    points = [
        _relatives(label, [r for r in members.values() if r.label == label], rows, axis, front)
        for label in labels
    ]
    ticks = axis.layout()
    ticks["range"] = ticks["range"][::-1]
    ends = max(rows.values()) + 0.5, -0.5
    plot = replace(_TREE_PLOT, height=_ROW * (ends[0] - ends[1]))
    place_texts(points, plot, axis.share, ends)
    height = 130 + _ROW * (1 + max(rows.values()))
    hidden = {"visible": False, "range": ends}
    return {
        "data": [*traces, *points],
        "layout": layout(
            xaxis=ticks, yaxis=hidden, height=height, margin={"l": 24, "r": 24, "t": 24, "b": 48}
        ),
    }


def _relatives(
    label: str, relatives: Sequence[TrialRecord], rows: Mapping[int, int], axis: Axis, front: Sequence[int]
) -> Chart:
    colour, symbol = style_of(relatives[0])
    shapes = [symbol if r.number in front or r.number == 0 else f"{symbol}-open" for r in relatives]
    return {
        "x": [axis.place(r.metrics[axis.metric]) for r in relatives],
        "y": [rows[r.number] for r in relatives],
        "mode": "markers+text",
        "name": text_of(label),
        "text": ["reference" if r.number == 0 else str(r.number) for r in relatives],
        "cliponaxis": False,
        "marker": {"color": colour, "symbol": shapes, "size": 11, "line": {"width": 1.5, "color": colour}},
        "hovertext": [hover_text(r) for r in relatives],
        "hoverinfo": "text",
    }


def growth_chart(grown: Sequence[Growth], records: Mapping[int, TrialRecord]) -> Chart:
    """Hypervolume of the front against the epochs spent; what added to it is marked."""
    steps = {
        "x": [step.epochs for step in grown],
        "y": [step.volume for step in grown],
        "mode": "lines",
        "line": {"shape": "hv", "color": _GREY},
        "hoverinfo": "skip",
        "showlegend": False,
    }
    traces = [steps]
    added = [step for step in grown if step.number and step.gain > 0]
    for label in dict.fromkeys(records[step.number].label for step in added):
        own = [step for step in added if records[step.number].label == label]
        colour, symbol = style_of(records[own[0].number])
        traces.append({
            "x": [step.epochs for step in own],
            "y": [step.volume for step in own],
            "mode": "markers",
            "name": text_of(label),
            "marker": {"color": colour, "symbol": symbol, "size": 9},
            "hovertext": [f"trial {step.number}: +{step.gain:.4f}" for step in own],
            "hoverinfo": "text",
        })  # fmt: skip
    axes = {"gridcolor": "#e3e3e3", "linecolor": "#555", "automargin": True}
    return {
        "data": traces,
        "layout": layout(
            xaxis=axes
            | {"title": {"text": "epochs that all trials were trained for"}, "rangemode": "tozero"},
            yaxis=axes | {"title": {"text": "hypervolume"}, "rangemode": "tozero"},
            height=320,
        ),
    }


def importance_chart(importances: Mapping[str, Importance], most: int = 12) -> Chart:
    """The share of each parameter, for each objective of which something is known.

    Args:
        importances: by objective.
        most: parameters that are shown.
    """
    known = {name: importance for name, importance in importances.items() if importance.shares}
    greatest: dict[str, float] = {}
    for importance in known.values():
        for name, share in importance.shares.items():
            greatest[name] = max(share, greatest.get(name, 0.0))
    names = sorted(greatest, key=lambda name: greatest[name])[-most:]
    colours = ("#0072B2", "#D55E00", "#009E73")
    patterns = ("", "/", ".")
    traces = [
        {
            "type": "bar",
            "orientation": "h",
            "name": text_of(objective),
            "y": [text_of(name) for name in names],
            "x": [importance.shares.get(name, 0.0) for name in names],
            "marker": {"color": colour, "pattern": {"shape": pattern}},
            "hovertemplate": "%{y}: %{x:.1%}<extra>%{fullData.name}</extra>",
        }
        for (objective, importance), colour, pattern in zip(known.items(), colours, patterns, strict=False)
    ]
    return {
        "data": traces,
        "layout": layout(
            barmode="group",
            xaxis={"title": {"text": "share of the importance"}, "tickformat": ".0%", "gridcolor": "#e3e3e3"},
            yaxis={"automargin": True},
            height=120 + (14 + 12 * len(known)) * len(names),
        ),
    }
