"""What the report's charts show of a front, and where their texts stand."""

from __future__ import annotations

import itertools
from pathlib import Path

import pytest

from autocompress.report.charts import family_chart, front_chart
from autocompress.report.labels import place_labels
from autocompress.report.reach import outside_text, reach
from autocompress.report.records import trial_records
from autocompress.trial import Stage, TrialConfig
from tests.report.runs import WrittenRun

ALCN = TrialConfig((Stage("alcn", {"initial_ratio": 0.25}),), 0, 3)


@pytest.fixture
def scattered(tmp_path: Path) -> WrittenRun:
    """A front between 0.94 and 0.98, with a bound at 0.9 and trials far below and far dearer."""
    run = WrittenRun(tmp_path / "run")
    for accuracy, share in ((0.1, 0.3), (0.2, 0.2), (0.93, 0.12), (0.95, 40.0)):
        run.complete(ALCN, accuracy, share, None)
    return run


def test_a_front_is_not_pressed_into_a_row_by_trials_far_below(scattered: WrittenRun) -> None:
    result = scattered.result
    chart = front_chart(result, trial_records(scattered.study, result), scattered.study.constraints, "bytes")
    low, high = chart["layout"]["yaxis"]["range"]
    assert 0.85 < low < 0.9  # the bound is there, a little above the end
    assert 0.98 < high < 1.02
    left, right = chart["layout"]["xaxis"]["range"]
    assert -1.6 < left < -1  # the smallest of the front has 0.1 of the reference's bytes
    assert 0 < right < 0.2
    (told,) = chart["layout"]["annotations"]
    assert told["text"] == "3 trials lie below, 1 to the right"
    # They are there for whoever zooms out.
    drawn = [y for trace in chart["data"] if trace["name"] == "out of bounds" for y in trace["y"]]
    assert sorted(drawn) == [0.1, 0.2, 0.5, 0.95]


def test_where_nothing_is_on_the_front_all_trials_are_shown(scattered: WrittenRun) -> None:
    result = scattered.result
    records = trial_records(scattered.study, result)
    nothing = type(result)(result.out, result.objectives, result.reference, [], None)
    chart = front_chart(nothing, records, scattered.study.constraints, "bytes")
    assert chart["layout"]["yaxis"]["range"][0] < 0.1
    assert chart["layout"]["annotations"] == []


def test_numbers_of_relatives_stand_apart(scattered: WrittenRun) -> None:
    run = scattered
    for share in (0.09, 0.0899, 0.0898, 0.0897, 0.0896, 0.0895):
        number = run.complete(TrialConfig(ALCN.stages, 3, 3), 0.94, share, [])
    chart = family_chart(run.result, trial_records(run.study, run.result))
    traces = [trace for trace in chart["data"] if "text" in trace]
    assert str(number) in [text for trace in traces for text in trace["text"]]
    narrow = [text for trace in traces for text in trace["meta"]["narrow"]["text"]]
    assert "reference" in narrow
    assert chart["layout"]["xaxis"]["range"][0] > chart["layout"]["xaxis"]["range"][1]


def test_two_models_of_one_method_are_told_apart_in_words(scattered: WrittenRun) -> None:
    schemes = [
        {"layers": ["*"], "scheme": {"kind": "mixed", "bits": bits}, "joint": False} for bits in (3, 4)
    ]
    stages = [Stage("lc", {"schemes": [scheme]}) for scheme in schemes]
    numbers = [scattered.complete(TrialConfig((stage,), 2, 0), 0.93, 0.2, None) for stage in stages]
    records = trial_records(scattered.study, scattered.result)
    assert [records[number].move for number in numbers] == [
        "lc (schemes * mixed bits 3)",
        "lc (schemes * mixed bits 4)",
    ]
    assert records[0].move == "reference"


def test_an_axis_shows_anchors_and_what_is_near_them() -> None:
    assert reach([1.0, 2.0], [0.6, 0.4, 2.5, 9.0]) == (0.6, 2.5)
    assert reach([1.0, 2.0], []) == (1.0, 2.0)
    assert reach([1.0], [0.1, 5.0]) == (0.1, 5.0)


def test_what_is_not_shown_is_counted_in_words() -> None:
    assert outside_text({"below": 3, "above": 0}) == "3 trials lie below"
    assert outside_text({"below": 1, "to the left": 2}) == "1 trial lies below, 2 to the left"
    assert outside_text({"above": 1}, "") == "1 lies above"
    assert outside_text({"below": 0}) == ""


def test_no_text_stands_over_another_or_over_a_point_or_beyond_the_edges() -> None:
    points = [(5.0 + 9 * n, 50.0) for n in range(12)]
    positions = ("top center", "bottom center", "top left", "bottom right")
    placed = place_labels(points, [str(100 + n) for n in range(12)], positions, (0.0, 120.0))
    assert 4 <= sum(text != "" for text, _ in placed) < 12
    for position in positions:
        row = [x for (x, _), (text, place) in zip(points, placed, strict=True) if text and place == position]
        assert all(b - a >= 21 for a, b in itertools.pairwise(row))
    assert ("100", "top center") not in placed  # it would begin before the left edge
    assert place_labels([(50.0, 50.0)], ["7"], positions, (0.0, 120.0)) == [("7", "top center")]
