"""Constraints such as `accuracy>=0.97`, `accuracy>=ref-0.005` or `latency|bytes<=0.5*ref`."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass

from autocompress.errors import SettingsError

_NUMBER = r"[0-9]*\.?[0-9]+(?:[eE][+-]?[0-9]+)?"
_PATTERN = re.compile(
    rf"^(?P<metrics>[^|<>=]+(?:\|[^|<>=]+)*)(?P<operator>>=|<=)\s*"
    rf"(?:(?:(?P<factor>{_NUMBER})\s*\*\s*)?(?P<ref>ref)(?:\s*(?P<sign>[+-])\s*(?P<offset>{_NUMBER}))?"
    rf"|(?P<value>-?{_NUMBER}))\s*$"
)


@dataclass(frozen=True)
class Constraint:
    """A bound on a metric, or on one of several: `factor · reference + offset`, or absolute where `factor`
    is None."""

    text: str
    metrics: tuple[str, ...]
    at_least: bool
    factor: float | None
    offset: float

    @staticmethod
    def parse(text: str, known: Mapping[str, str], setting: str = "constraint") -> Constraint:
        """Read `metric>=bound` or `metric<=bound`; of `one|other<=bound`, one must hold.

        Args:
            text: what is to be read.
            known: metric → its direction.
            setting: where the text comes from, for messages.

        Raises:
            SettingsError: the syntax or the metric is unknown.
        """
        match = _PATTERN.match(text)
        if match is None:
            raise SettingsError(
                f"{setting} must read like 'accuracy>=0.97', 'accuracy>=ref-0.005' or "
                f"'bytes<=0.5*ref' but got {text!r}."
            )
        metrics = tuple(name.strip() for name in match["metrics"].split("|"))
        for metric in metrics:
            if metric not in known:
                raise SettingsError(f"{setting} must be on one of {', '.join(known)} but got {metric!r}.")
        factor = float(match["factor"] or 1) if match["ref"] else None
        sign = -1 if match["sign"] == "-" else 1
        offset = float(match["value"]) if match["value"] else sign * float(match["offset"] or 0)
        return Constraint(text, metrics, match["operator"] == ">=", factor, offset)

    def bound(self, metric: str, reference: Mapping[str, float]) -> float:
        """The bound on a metric, given the reference's metrics."""
        if self.factor is None:
            return self.offset
        return self.factor * reference[metric] + self.offset

    def violation(self, metrics: Mapping[str, float], reference: Mapping[str, float]) -> float:
        """How far a model is out of bounds, relative to the bound; ≤ 0 is feasible."""
        return min(self._violation(metric, metrics, reference) for metric in self.metrics)

    def _violation(self, metric: str, metrics: Mapping[str, float], reference: Mapping[str, float]) -> float:
        bound = self.bound(metric, reference)
        excess = bound - metrics[metric] if self.at_least else metrics[metric] - bound
        return excess / max(abs(bound), 1e-12)
