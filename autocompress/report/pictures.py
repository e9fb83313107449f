"""Pictures of single trials, for who cannot draw charts: optuna-dashboard shows them beside a trial."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from matplotlib.axes import Axes

# Okabe & Ito's colours.
_BEFORE, _AFTER = "#b0b0b0", "#0072B2"
# Layers that fit into a picture one below the other.
_MOST_LAYERS = 40
_SHOWN = (("channels", "channels"), ("bits", "bits a number"), ("bytes", "bytes of tensors"))


def trial_picture(manifest: Mapping[str, Any], reference: Mapping[str, Any], title: str, path: Path) -> Path:
    """A model's layers beside the reference's, and how its training went, as a PNG file.

    Args:
        manifest: of the model's checkpoint.
        reference: of the reference's.
        title: of the picture.
        path: of the file.
    """
    # A second and a half, which commands that draw nothing need not wait for.
    from matplotlib.figure import Figure

    before = {layer["name"]: layer for layer in reference.get("layers", ())}
    after = {layer["name"]: layer for layer in manifest.get("layers", ())}
    names = list(dict.fromkeys([*before, *after]))[:_MOST_LAYERS]
    history = manifest["history"]
    rows = (len(names) > 0) + (len(history) > 0) or 1
    heights = [max(2.0, 0.22 * len(names))] * (len(names) > 0) + [2.6] * (len(history) > 0)
    figure = Figure(figsize=(9, sum(heights) + 0.8 if heights else 2), layout="constrained")
    figure.suptitle(title)
    parts = figure.subfigures(rows, 1, squeeze=False, height_ratios=heights or None)[:, 0]
    if names:
        _draw_layers(parts[0].subplots(1, len(_SHOWN), sharey=True), names, before, after)
    if history:
        _draw_curves(parts[-1].subplots(1, 2), history)
    figure.savefig(path, dpi=80)
    return path


def _draw_layers(
    axes: Sequence[Axes],
    names: Sequence[str],
    before: Mapping[str, Mapping[str, Any]],
    after: Mapping[str, Mapping[str, Any]],
) -> None:
    places = range(len(names))
    for axis, (quantity, label) in zip(axes, _SHOWN, strict=True):
        for layers, colour, height in ((before, _BEFORE, 0.8), (after, _AFTER, 0.45)):
            axis.barh(places, [layers.get(name, {}).get(quantity, 0) for name in names], height, color=colour)
        axis.set_xlabel(label)
        axis.grid(axis="x", alpha=0.3)
    axes[0].set_yticks(places, [name or "(the model itself)" for name in names], fontsize=7)
    axes[0].invert_yaxis()
    axes[0].set_title("grey: reference, blue: this model", fontsize=9, loc="left")


def _draw_curves(axes: Sequence[Axes], history: Sequence[Mapping[str, float]]) -> None:
    left, right = axes
    left.plot([entry["epoch"] for entry in history], [entry["loss"] for entry in history], marker="o")
    left.set(xlabel="epoch", ylabel="training loss")
    names = list(dict.fromkeys(n for entry in history for n in entry if n.startswith("ratio/")))
    for name in names:
        points = [(e["epoch"], e[name]) for e in history if name in e]
        right.plot(*zip(*points, strict=True), marker=".", label=name.removeprefix("ratio/"))
    right.set(xlabel="epoch", ylabel="share that is kept", ylim=(0, 1.05))
    if 0 < len(names) <= 8:
        right.legend(fontsize=7)
