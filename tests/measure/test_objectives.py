"""Objectives and their directions."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torchmetrics
from torchmetrics.classification import MulticlassF1Score

import autocompress as ac
from autocompress.errors import SettingsError
from autocompress.measure import known_metrics, parse_objectives
from autocompress.score import acc_comp

KNOWN = {"accuracy": "maximize", "bytes": "minimize", "macs": "minimize", "params": "minimize"}


def test_directions_are_known_and_can_be_overridden() -> None:
    parsed = parse_objectives(["accuracy", "bytes", "macs:max"], KNOWN)
    assert [(o.metric, o.maximised) for o in parsed] == [
        ("accuracy", True),
        ("bytes", False),
        ("macs", True),
    ]


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ([], "1 to 3 metrics but got 0"),
        (["accuracy", "bytes", "macs", "params"], "1 to 3 metrics but got 4"),
        (["speed"], "among accuracy, bytes, macs, params but got 'speed'"),
        (["bytes:down"], "'max' or 'min' but got 'bytes:down'"),
        (["bytes", "bytes:max"], "each metric once"),
    ],
)
def test_bad_objectives_are_refused(given: list[str], message: str) -> None:
    with pytest.raises(SettingsError, match=message):
        parse_objectives(given, KNOWN)


def test_metrics_of_unknown_direction_must_say_it() -> None:
    with pytest.raises(SettingsError, match="must say its direction, 'score:min' or 'score:max'"):
        parse_objectives(["score"], {"score": ""})
    assert not parse_objectives(["score:min"], {"score": ""})[0].maximised


def test_a_metric_object_tells_its_direction_where_the_name_does_not(residual_task: ac.Task) -> None:
    metrics = {
        "score": MulticlassF1Score(5),
        "distance": torchmetrics.MeanSquaredError(),
        "error": MulticlassF1Score(5),
        "mean": torchmetrics.MeanMetric(),
        "own": lambda outputs, targets: 0.0,
    }
    known = known_metrics(replace(residual_task, metrics=metrics))
    assert [known[name] for name in metrics] == ["maximize", "minimize", "minimize", "", ""]
    assert parse_objectives(["score", "bytes"], known)[0].maximised


def test_acc_comp_is_known_where_accuracy_is(residual_task: ac.Task) -> None:
    assert known_metrics(residual_task)["acc_comp"] == "maximize"
    regression = replace(residual_task, metrics={"mse": lambda outputs, targets: 0.0})
    assert "acc_comp" not in known_metrics(regression)


def test_acc_comp_weighs_accuracy_against_parameters_saved() -> None:
    assert acc_comp(0.9, 25, 100, 0.8) == pytest.approx(0.8 * 0.9 + 0.2 * 0.75)
    assert acc_comp(0.9, 100, 100, 0.8) == pytest.approx(0.8 * 0.9)
