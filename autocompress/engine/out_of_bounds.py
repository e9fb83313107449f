"""Why a search found no model within its bounds."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from autocompress.checkpoint.quantize import Control
from autocompress.measure import Constraint
from autocompress.study import SearchStudy


def why_none_within(
    study: SearchStudy, constraints: Sequence[Constraint], reference: Mapping[str, float]
) -> str | None:
    """Which model came nearest to the bounds, and which of them it misses; what int8 has to do with it.

    Args:
        study: of the search.
        constraints: its bounds.
        reference: metrics of the reference.

    Returns:
        A line; None where a model is within the bounds, or there is none at all.
    """
    trials = [trial for trial in study.complete_trials() if trial.number]
    if not trials or any(trial.user_attrs["feasible"] for trial in trials):
        return None

    def worst(trial: Any) -> tuple[float, Constraint]:
        metrics = trial.user_attrs["metrics"]
        return max(((c.violation(metrics, reference), c) for c in constraints), key=lambda entry: entry[0])

    nearest = min(trials, key=lambda trial: worst(trial)[0])
    bound, metrics = worst(nearest)[1], nearest.user_attrs["metrics"]
    values = ", ".join(f"{name} {metrics[name]:.4g}" for name in bound.metrics)
    line = (
        f"no model is within the bounds: of the nearest, trial {nearest.number}, {values} misses {bound.text}"
    )
    int8 = nearest.user_attrs["details"].get("int8")
    return line if int8 is None else f"{line}; {_of_int8(int8)}"


def _of_int8(int8: Mapping[str, Any]) -> str:
    """What int8 changed of a model, in words."""
    texts = {
        "int8": "in int8",
        "weights": "with int8 weights alone",
        "floats": "in floats",
        "four_bits": "of these with weights of 4 bits",
    }
    layers = ", ".join(f"{len(int8[kind])} {text}" for kind, text in texts.items() if int8.get(kind))
    difference = int8["difference"]
    if difference is None:
        return f"layers: {layers}"
    when = "before that" if difference <= Control.bound else "by it"
    return (
        f"int8 changes {difference:.2%} of its answers on training rows, so that most was lost {when} "
        f"(layers: {layers}; calibrated by {int8['calibration']})"
    )
