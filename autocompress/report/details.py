"""What the report shows of one model: its layers beside the reference's, its training, its classes."""

from __future__ import annotations

import math
from collections import defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from autocompress.report.charts import Chart, layout, text_of
from autocompress.tables import metric_text

# What of a layer is compared → its title.
QUANTITIES = {
    "channels": "channels",
    "rank": "rank",
    "bits": "bits a number",
    "macs": "MACs",
    "bytes": "bytes of tensors",
}
# What sessions log under these names, before a slash.
CURVES = {
    "loss": "training loss",
    "ratio": "share that is kept",
    "p": "P of residual branches",
    "alpha": "α of mixing blocks",
    "stability": "stability of blocks",
    "survival": "mean survival of channel groups",
    "distance": "distance of weights from what they are stored as",
    "translator_error": "error of translators",
    "rank_error": "error of ranks",
    "effective_layers": "effective layers",
    "active_channels": "share of active channels",
    "mean_c": "mean C",
    "pruned": "share of MACs pruned",
}
_BEFORE, _AFTER, _LOST = "#b0b0b0", "#0072B2", "#D55E00"
# Okabe & Ito's colours, and line styles that go round in another number.
_COLOURS = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9", "#000000")
_DASHES = ("solid", "dash", "dot", "dashdot")
# Classes that gained or lost most, where there are more.
_MOST_CLASSES = 20


def layer_charts(
    layers: Sequence[Mapping[str, Any]], before: Sequence[Mapping[str, Any]]
) -> dict[str, Chart]:
    """Bars of each layer before and after, for each quantity in which any layer differs.

    Args:
        layers: summaries of the model's layers.
        before: of the reference's.
    """
    after = {layer["name"]: layer for layer in layers}
    reference = {layer["name"]: layer for layer in before}
    names = list(dict.fromkeys([*reference, *after]))
    charts = {}
    for quantity in QUANTITIES:
        old, new = ([known.get(name, {}).get(quantity, 0) for name in names] for known in (reference, after))
        if old != new:
            charts[quantity] = _bars(quantity, names, old, new)
    return charts


def _bars(quantity: str, names: Sequence[str], old: Sequence[float], new: Sequence[float]) -> Chart:
    labels = [text_of(name or "(the model itself)") for name in names]
    texts = [f"{_amount(quantity, a)} → {_amount(quantity, b)}" for a, b in zip(old, new, strict=True)]
    common = {"type": "bar", "orientation": "h", "y": labels, "hovertext": texts, "hoverinfo": "y+text"}
    return {
        "data": [
            common | {"x": list(old), "name": "before", "marker": {"color": _BEFORE}},
            common | {"x": list(new), "name": "after", "marker": {"color": _AFTER}},
        ],
        "layout": layout(
            title={"text": QUANTITIES[quantity], "font": {"size": 13}, "x": 0, "xanchor": "left"},
            barmode="group",
            bargap=0.25,
            xaxis={"gridcolor": "#e3e3e3", "rangemode": "tozero", "nticks": 5},
            yaxis={"autorange": "reversed", "automargin": True, "type": "category"},
            margin={"l": 8, "r": 12, "t": 32, "b": 28},
            showlegend=False,
            height=70 + 26 * len(names),
        ),
    }


def _amount(quantity: str, value: float) -> str:
    return metric_text(quantity, value) if quantity in ("macs", "bytes") else f"{value:.4g}"


def curve_charts(history: Sequence[Mapping[str, float]]) -> dict[str, Chart]:
    """What was logged epoch by epoch, a chart for each kind; none of what was not trained.

    Args:
        history: an entry for each epoch.
    """
    series: dict[str, dict[str, list[tuple[float, float]]]] = defaultdict(lambda: defaultdict(list))
    for entry in history:
        for key, value in entry.items():
            kind, _, name = key.partition("/")
            if kind != "epoch" and math.isfinite(value):
                series[kind][name].append((entry["epoch"], value))
    last = max((entry["epoch"] for entry in history), default=0.0)
    return {kind: _lines(CURVES.get(kind, kind), named, last) for kind, named in series.items()}


def _lines(title: str, named: Mapping[str, Sequence[tuple[float, float]]], last: float) -> Chart:
    traces = []
    for position, (name, values) in enumerate(named.items()):
        epochs, logged = zip(*values, strict=True)
        line = {"color": _COLOURS[position % len(_COLOURS)], "dash": _DASHES[position % len(_DASHES)]}
        traces.append({
            "x": epochs,
            "y": logged,
            "mode": "lines+markers",
            "name": text_of(name or title),
            "line": line | {"width": 1.5},
            "marker": {"size": 4},
        })  # fmt: skip
    axes = {"gridcolor": "#e3e3e3", "linecolor": "#555", "automargin": True}
    return {
        "data": traces,
        "layout": layout(
            title={"text": text_of(title), "font": {"size": 13}, "x": 0, "xanchor": "left"},
            xaxis=axes
            | {"title": {"text": "epoch"}, "range": [0.5, last + 0.5], "nticks": min(int(last) + 1, 8)},
            yaxis=axes,
            showlegend=len(named) > 1,
            legend={"orientation": "h", "x": 0, "y": -0.35, "yanchor": "top"},
            margin={"l": 48, "r": 12, "t": 32, "b": 40},
            height=260 + (12 * len(named) if len(named) > 1 else 0),
        ),
    }


def class_chart(
    counts: Sequence[Sequence[int]], before: Sequence[Sequence[int]], names: Sequence[str] | None
) -> Chart | None:
    """How the accuracy of each class changed; None where that is not known, or nothing is counted.

    Bars are two standard errors of a difference long to both sides, as if both models had been judged by
    other rows: by the same rows they differ less.

    Args:
        counts: of each class the targets that are right, and all of them.
        before: of the reference.
        names: of the classes; None numbers them.
    """
    changes = _changes(counts, before, names)
    if len(changes) > _MOST_CLASSES:
        changes = [*changes[: _MOST_CLASSES // 2], *changes[-_MOST_CLASSES // 2 :]]
    if not changes:
        return None
    errors = [change.error for change in changes]
    return {
        "data": [{
            "type": "bar",
            "orientation": "h",
            "y": [text_of(change.name) for change in changes],
            "x": [change.points for change in changes],
            "error_x": {"array": errors, "thickness": 1, "width": 3, "color": "#333"},
            "marker": {"color": [_LOST if change.points < 0 else _AFTER for change in changes]},
            "hovertext": [change.text for change in changes],
            "hoverinfo": "y+text",
        }],
        "layout": layout(
            xaxis={"title": {"text": "points of accuracy"}, "gridcolor": "#e3e3e3", "zerolinecolor": "#555"},
            yaxis={"autorange": "reversed", "automargin": True, "type": "category"},
            margin={"l": 8, "r": 12, "t": 8, "b": 40},
            showlegend=False,
            height=80 + 24 * len(changes),
        ),
    }  # fmt: skip


@dataclass(frozen=True)
class _Change:
    """How a class changed, in points of accuracy, two standard errors of that, and both in words."""

    name: str
    points: float
    error: float
    text: str


def _changes(
    counts: Sequence[Sequence[int]], before: Sequence[Sequence[int]], names: Sequence[str] | None
) -> list[_Change]:
    """The classes that are counted, the one that lost most first."""
    changes = []
    for label, ((right, total), (then, total_then)) in enumerate(zip(counts, before, strict=False)):
        if not total or total != total_then:
            continue
        p, q = right / total, then / total
        error = math.sqrt((p * (1 - p) + q * (1 - q)) / total)
        name = names[label] if names is not None and label < len(names) else f"class {label}"
        changes.append(_Change(name, 100 * (p - q), 200 * error, f"{q:.1%} → {p:.1%} of {total}"))
    return sorted(changes, key=lambda change: change.points)
