"""Who need not be exported: candidates that no front, of now or later, would take."""

from __future__ import annotations

import pytest

from autocompress.measure import REPLICATES, Constraint, Objective
from autocompress.rivals import Point, Rivals

OBJECTIVES = (Objective("accuracy", "maximize"), Objective("bytes", "minimize"))
KNOWN = {"accuracy": "maximize", "bytes": "minimize"}
REFERENCE = {"accuracy": 0.9, "bytes": 100.0}


def point(accuracy: float, size: float, spread: float = 0.0) -> Point:
    drawn = [accuracy + spread * (-1) ** i for i in range(REPLICATES)]
    return Point({"accuracy": accuracy, "bytes": size}, {"accuracy": drawn})


def rivals(*points: Point, constraint: str = "accuracy>=ref-0.3") -> Rivals:
    return Rivals(OBJECTIVES, (Constraint.parse(constraint, KNOWN),), REFERENCE, points, least=0.05)


@pytest.mark.parametrize(
    ("candidate", "shut_out"),
    [
        (point(0.8, 50), True),
        (point(0.8, 39), False),
        (point(0.86, 50), False),
        (point(0.84, 50, spread=0.02), False),  # on half of the resamples it is on the front
        (point(0.5, 1), True),  # out of bounds
    ],
    ids=["worse in both", "smaller", "better", "within noise", "out of bounds"],
)
def test_a_candidate_is_shut_out_where_it_cannot_be_kept(candidate: Point, shut_out: bool) -> None:
    assert rivals(point(0.85, 40)).shut_out(candidate) is shut_out


def test_the_first_candidate_is_up_against_nobody() -> None:
    assert not rivals().shut_out(point(0.8, 50))


def test_who_is_shut_out_stays_so_when_others_come() -> None:
    candidate = point(0.8, 50, spread=0.01)
    assert rivals(point(0.85, 40)).shut_out(candidate)
    assert rivals(point(0.85, 40), point(0.9, 35), point(0.7, 10)).shut_out(candidate)
