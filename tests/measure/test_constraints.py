"""Constraint syntax and its bounds."""

from __future__ import annotations

import pytest

from autocompress.errors import SettingsError
from autocompress.measure import Constraint

KNOWN = {"accuracy": "maximize", "bytes": "minimize", "latency": "minimize"}
REFERENCE = {"accuracy": 0.9, "bytes": 1000.0, "latency": 4.0}


@pytest.mark.parametrize(
    ("text", "bound"),
    [
        ("accuracy>=0.97", 0.97),
        ("accuracy >= ref", 0.9),
        ("accuracy>=ref-0.005", 0.895),
        ("accuracy>=ref + 1e-2", 0.91),
        ("latency<=0.5*ref", 2.0),
        ("bytes<=.25 * ref+10", 260.0),
        ("bytes<=500", 500.0),
    ],
)
def test_bounds_are_absolute_or_relative_to_the_reference(text: str, bound: float) -> None:
    constraint = Constraint.parse(text, KNOWN)
    assert constraint.bound(*constraint.metrics, REFERENCE) == pytest.approx(bound)


def test_violation_is_positive_outside_and_not_inside() -> None:
    least = Constraint.parse("accuracy>=ref-0.1", KNOWN)
    most = Constraint.parse("bytes<=0.5*ref", KNOWN)
    assert least.violation({"accuracy": 0.7}, REFERENCE) == pytest.approx(0.1 / 0.8)
    assert least.violation({"accuracy": 0.85}, REFERENCE) < 0
    assert most.violation({"bytes": 600}, REFERENCE) == pytest.approx(0.2)
    assert most.violation({"bytes": 500}, REFERENCE) == 0


def test_one_of_several_metrics_must_keep_the_bound() -> None:
    either = Constraint.parse("bytes|latency<=ref", KNOWN)
    assert either.violation({"bytes": 1500, "latency": 3.0}, REFERENCE) == pytest.approx(-0.25)
    assert either.violation({"bytes": 1500, "latency": 5.0}, REFERENCE) == pytest.approx(0.25)


@pytest.mark.parametrize(
    "text", ["accuracy", "accuracy>0.9", "accuracy>=", "accuracy>=ref*0.5", ">=1", "|bytes<=1", "bytes|<=ref"]
)
def test_other_syntax_is_refused_with_examples(text: str) -> None:
    with pytest.raises(SettingsError, match="constraint must read like"):
        Constraint.parse(text, KNOWN)


def test_a_name_may_have_all_that_tells_no_name_from_its_bound() -> None:
    parsed = Constraint.parse("my err/x | bytes <= 2 * ref", {**KNOWN, "my err/x": ""})
    assert parsed.metrics == ("my err/x", "bytes")
    assert parsed.bound("my err/x", {"my err/x": 3.0}) == 6.0


def test_unknown_metrics_are_refused() -> None:
    with pytest.raises(SettingsError, match="must be on one of accuracy, bytes, latency but got 'a b'"):
        Constraint.parse("a b>=1", KNOWN)
    with pytest.raises(SettingsError, match="must be on one of accuracy, bytes, latency but"):
        Constraint.parse("bytes|speed<=1", KNOWN)
