"""How far a picture of a front reaches, so that trials far from it do not press it into one row."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence

# Other trials are shown up to this share of the span of what must be seen, beyond it.
_BEYOND = 0.5


def reach(anchors: Sequence[float], others: Iterable[float]) -> tuple[float, float]:
    """From where to where an axis shows values: all anchors, and of the others those that lie near.

    Args:
        anchors: what must be seen, such as the front and the bounds; where they are all the same, everything
            is shown.
        others: what may lie anywhere.
    """
    low, high = min(anchors), max(anchors)
    beyond = _BEYOND * (high - low) or float("inf")
    near = [value for value in others if low - beyond <= value <= high + beyond]
    return min([low, *near]), max([high, *near])


def outside_text(counts: Mapping[str, int], noun: str = "trial") -> str:
    """How many lie outside of a picture, in words: "3 trials lie below, 1 to the left"; "" where none do.

    Args:
        counts: how many, by where: "below", "above", "to the left" or "to the right".
        noun: what they are; "" leaves that out.
    """
    texts = [f"{count} {place}" for place, count in counts.items() if count]
    if not texts:
        return ""
    number, _, first = texts[0].partition(" ")
    subject = f"{number} {noun}{'s' * (number != '1')}" if noun else number
    return ", ".join([f"{subject} {'lies' if number == '1' else 'lie'} {first}", *texts[1:]])
