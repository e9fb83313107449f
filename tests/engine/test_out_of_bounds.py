"""A search that finds no model within its bounds says which came nearest, and what int8 had to do with it."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any, cast

from autocompress.engine.out_of_bounds import why_none_within
from autocompress.measure import Constraint
from autocompress.study import SearchStudy

KNOWN = {"accuracy": "maximize", "bytes": "minimize", "latency": "minimize"}
REFERENCE = {"accuracy": 0.9, "bytes": 1000.0, "latency": 2.0}
BOUNDS = tuple(Constraint.parse(text, KNOWN) for text in ("accuracy>=ref-0.01", "bytes|latency<=0.5*ref"))


def study(*trials: tuple[dict[str, float], bool, dict[str, Any] | None]) -> SearchStudy:
    """A reference, and trials of so many metrics, that are within bounds or not, and int8 or not."""
    recorded = [
        SimpleNamespace(
            number=number,
            user_attrs={"metrics": metrics, "feasible": feasible, "details": {"int8": int8}},
        )
        for number, (metrics, feasible, int8) in enumerate([(REFERENCE, True, None), *trials])
    ]
    return cast(SearchStudy, SimpleNamespace(complete_trials=lambda: recorded))


def metrics(accuracy: float, size: float = 100.0, latency: float = 0.1) -> dict[str, float]:
    return {"accuracy": accuracy, "bytes": size, "latency": latency}


def int8(difference: float | None) -> dict[str, Any]:
    kinds = {"int8": ["a", "b"], "weights": ["c"], "floats": []}
    return {**kinds, "calibration": "Entropy", "difference": difference}


def test_nothing_is_said_where_a_model_is_within_bounds_or_there_is_none() -> None:
    assert why_none_within(study(), BOUNDS, REFERENCE) is None
    assert (
        why_none_within(study((metrics(0.5), False, None), (metrics(0.9), True, None)), BOUNDS, REFERENCE)
        is None
    )


def test_the_nearest_model_and_the_bound_that_it_misses_are_named() -> None:
    far, near = (metrics(0.5), False, None), (metrics(0.87), False, None)
    assert why_none_within(study(far, near), BOUNDS, REFERENCE) == (
        "no model is within the bounds: of the nearest, trial 2, accuracy 0.87 misses accuracy>=ref-0.01"
    )
    large = (metrics(0.9, 800.0, 1.5), False, None)
    said = why_none_within(study(large), BOUNDS, REFERENCE)
    assert said is not None
    assert said.endswith("of the nearest, trial 1, bytes 800, latency 1.5 misses bytes|latency<=0.5*ref")


def test_what_int8_changed_is_told() -> None:
    little = why_none_within(study((metrics(0.87), False, int8(0.004))), BOUNDS, REFERENCE)
    assert little is not None
    assert little.endswith(
        "; int8 changes 0.40% of its answers on training rows, so that most was lost before that "
        "(layers: 2 in int8, 1 with int8 weights alone; calibrated by Entropy)"
    )
    much = why_none_within(study((metrics(0.87), False, int8(0.04))), BOUNDS, REFERENCE)
    assert much is not None
    assert "int8 changes 4.00% of its answers on training rows, so that most was lost by it" in much
