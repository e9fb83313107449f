"""Where the numbers of points stand in a chart, so that they can be read."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

# Pixels of a letter and of a line in the charts' font, and of a marker from its centre.
_LETTER, _LINE, _MARKER = 7.0, 13.0, 7.0


@dataclass(frozen=True)
class Plot:
    """How large a chart's plot is drawn.

    Args:
        widths: in pixels on a page, that of a small window, as texts that fit there fit into larger ones; and
            on a telephone.
        height: in pixels.
        positions: where texts may stand beside their points, as Plotly calls it ("top center"), the best
            first.
        overhang: by how much texts may stand out to the left and to the right.
    """

    widths: tuple[float, float]
    height: float
    positions: tuple[str, ...]
    overhang: float = 0.0


def place_texts(
    traces: Sequence[dict[str, Any]],
    plot: Plot,
    share: Callable[[float], float],
    rows: tuple[float, float],
) -> None:
    """Place the texts of traces: for a page, and under `meta.narrow` for a telephone.

    Args:
        traces: of points with texts.
        plot: that they are drawn in.
        share: gives of a place on the horizontal axis which share of the axis lies before it.
        rows: what stands at the bottom and at the top of the vertical axis.
    """
    texts = [text for trace in traces for text in trace["text"]]
    bottom, top = rows
    shares = [share(x) for trace in traces for x in trace["x"]]
    heights = [plot.height * (top - y) / (top - bottom) for trace in traces for y in trace["y"]]
    for width, narrow in zip(plot.widths, (False, True), strict=True):
        points = [(width * x, y) for x, y in zip(shares, heights, strict=True)]
        edges = -plot.overhang, width + plot.overhang
        placed = iter(place_labels(points, texts, plot.positions, edges))
        for trace in traces:
            own = [next(placed) for _ in trace["x"]]
            placing = {"text": [text for text, _ in own], "textposition": [place for _, place in own]}
            trace |= {"meta": {"narrow": placing}} if narrow else placing


class _Box(NamedTuple):
    left: float
    top: float
    right: float
    bottom: float

    def meets(self, other: _Box) -> bool:
        return not (
            self.right <= other.left
            or other.right <= self.left
            or self.bottom <= other.top
            or other.bottom <= self.top
        )


def place_labels(
    points: Sequence[tuple[float, float]],
    texts: Sequence[str],
    positions: Sequence[str],
    edges: tuple[float, float],
) -> list[tuple[str, str]]:
    """A text beside each point, none over another one or over another point.

    Args:
        points: in pixels from the upper left; the first have the choice of their places.
        texts: what stands beside them.
        positions: where a text may stand, the best first.
        edges: between which texts must stand, from left to right.

    Returns:
        The text and its position for each point; of one that has no place the text is "".
    """
    markers = [_Box(x - _MARKER, y - _MARKER, x + _MARKER, y + _MARKER) for x, y in points]
    taken: list[_Box] = []
    placed = []
    for point, text in zip(points, texts, strict=True):
        others = [*taken, *(marker for other, marker in enumerate(markers) if points[other] != point)]
        boxes = {position: _box(point, text, position) for position in positions}
        free = [
            place
            for place, box in boxes.items()
            if edges[0] <= box.left and box.right <= edges[1] and not any(map(box.meets, others))
        ]
        if text and free:
            taken.append(boxes[free[0]])
            placed.append((text, free[0]))
        else:
            placed.append(("", positions[0]))
    return placed


def _box(point: tuple[float, float], text: str, position: str) -> _Box:
    x, y = point
    width = _LETTER * len(text)
    vertical, horizontal = position.split()
    left = {"left": x - _MARKER - width, "center": x - width / 2, "right": x + _MARKER}[horizontal]
    top = {"top": y - _MARKER - _LINE, "middle": y - _LINE / 2, "bottom": y + _MARKER}[vertical]
    return _Box(left, top, left + width, top + _LINE)
