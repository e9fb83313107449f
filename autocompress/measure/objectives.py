"""Objectives: metric names with a direction, as given to `--objectives`."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from autocompress.errors import SettingsError

MOST = 3
_SUFFIXES = {"max": "maximize", "min": "minimize"}


@dataclass(frozen=True)
class Objective:
    """A metric and whether it is to "maximize" or "minimize"."""

    metric: str
    direction: str

    @property
    def maximised(self) -> bool:
        """Whether larger values of the metric are better."""
        return self.direction == "maximize"


def parse_objectives(given: Sequence[str], known: Mapping[str, str]) -> tuple[Objective, ...]:
    """Read `metric[:max|:min]` items; at most three, none twice.

    Args:
        given: items as on the command line.
        known: metric → direction, "" where it is not known.

    Raises:
        SettingsError: none or too many, an unknown metric or direction, or one given twice.
    """
    if not 1 <= len(given) <= MOST:
        raise SettingsError(f"objectives must be 1 to {MOST} metrics but got {len(given)}.")
    objectives = []
    for item in given:
        metric, _, suffix = item.partition(":")
        if metric not in known:
            raise SettingsError(f"objectives must be among {', '.join(known)} but got {metric!r}.")
        if suffix and suffix not in _SUFFIXES:
            raise SettingsError(f"an objective's direction must be 'max' or 'min' but got {item!r}.")
        if not suffix and not known[metric]:
            raise SettingsError(
                f"objective {metric!r} must say its direction, '{metric}:min' or '{metric}:max'."
            )
        objectives.append(Objective(metric, _SUFFIXES.get(suffix, known[metric])))
    names = [objective.metric for objective in objectives]
    if len(set(names)) < len(names):
        raise SettingsError(f"objectives must name each metric once but got {', '.join(names)}.")
    return tuple(objectives)
