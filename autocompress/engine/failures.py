"""Why trials of a search failed, in a line."""

from __future__ import annotations

import re
from collections import defaultdict
from collections.abc import Iterable, Mapping

# From this share of failed trials on, the end of a search says why; and at most so many reasons of them.
_TOLD, _MOST_REASONS = 1 / 3, 4


def told_failures(reasons: Mapping[int, str], ended: int) -> str | None:
    """Why trials failed, the commonest reason first; None where few did.

    Args:
        reasons: why each failed trial did, by number.
        ended: how many trials ended, the failed ones included.
    """
    if not reasons or len(reasons) < _TOLD * ended:
        return None
    return f"{len(reasons)} of {ended} trials failed: {grouped(reasons)}"


def grouped(reasons: Mapping[int, str]) -> str:
    """Reasons that differ in numbers alone as one, with how often they came and the trials that had them."""
    alike: defaultdict[str, list[int]] = defaultdict(list)
    for number, reason in reasons.items():
        alike[re.sub(r"\d+(\.\d+)?(e[-+]?\d+)?", "#", reason)].append(number)
    groups = sorted(alike.values(), key=len, reverse=True)
    parts = [f"{len(group)} × {reasons[group[0]]} (trial{_listed(group)})" for group in groups]
    more = [f"{len(groups) - _MOST_REASONS} more reasons"] if len(groups) > _MOST_REASONS else []
    return "; ".join(parts[:_MOST_REASONS] + more)


def _listed(numbers: Iterable[int]) -> str:
    few, *more = [*numbers][:3], *[*numbers][3:]
    return f"{'s' if len(few) > 1 else ''} {', '.join(map(str, few))}{', …' if more else ''}"
