"""Plots of the front and of how ratios evolved during a trial."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from functools import partial
from pathlib import Path

from matplotlib.figure import Figure

from autocompress.report.console import metric_text
from autocompress.result import SearchResult


def history_picture(history: Sequence[Mapping[str, float]], title: str, path: Path) -> Path:
    """Loss, and each group's ratio, over a trial's epochs, as a PNG file."""
    figure = Figure(figsize=(8, 3.2), layout="constrained")
    left, right = figure.subplots(1, 2)
    epochs = [entry["epoch"] for entry in history]
    left.plot(epochs, [entry["loss"] for entry in history], marker="o")
    left.set(xlabel="epoch", ylabel="training loss", title=title)
    names = list(dict.fromkeys(n for entry in history for n in entry if n.startswith("ratio/")))
    for name in names:
        points = [(e["epoch"], e[name]) for e in history if name in e]
        right.plot(*zip(*points, strict=True), marker=".", label=name.removeprefix("ratio/"))
    right.set(xlabel="epoch", ylabel="keep ratio", ylim=(0, 1), title="ratios per channel group")
    if 0 < len(names) <= 8:
        right.legend(fontsize=7)
    figure.savefig(path, dpi=80)
    return path


def _tick(name: str, value: float, _position: int | None) -> str:
    return metric_text(name, value)


def front_figure(result: SearchResult, others: Sequence[Mapping[str, float]] = ()) -> Figure:
    """The first objective against each other one: the front, the reference and the other trials."""
    primary, *rest = [objective.metric for objective in result.objectives]
    rest = rest or ["bytes"]
    figure = Figure(figsize=(6.5 * len(rest), 4.2), layout="constrained")
    for axis, name in zip(figure.subplots(1, len(rest), squeeze=False)[0], rest, strict=True):
        if others:
            x, y = [m[name] for m in others], [m[primary] for m in others]
            axis.scatter(x, y, s=14, color="0.75", label="other trials")
        ordered = sorted(result.front, key=lambda p: p.metrics[name])
        x, y = [p.metrics[name] for p in ordered], [p.metrics[primary] for p in ordered]
        axis.plot(x, y, marker="o", label="front")
        for point in ordered:
            axis.annotate(
                str(point.trial),
                (point.metrics[name], point.metrics[primary]),
                xytext=(4, -10),
                textcoords="offset points",
                fontsize=7,
            )
        base = result.reference.metrics
        axis.scatter([base[name]], [base[primary]], marker="*", s=140, color="C3", label="reference")
        axis.set(xlabel=name, ylabel=f"{primary} (validation)", xscale="log")
        for formatted in (axis.xaxis.set_major_formatter, axis.xaxis.set_minor_formatter):
            formatted(partial(_tick, name))
        axis.grid(alpha=0.3, which="both")
        axis.tick_params(axis="x", which="both", labelsize=7, rotation=30)
        axis.legend()
    return figure
