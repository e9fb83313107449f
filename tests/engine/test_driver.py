"""What the driver says of what is to come, and knows of the time between trials."""

from __future__ import annotations

from pathlib import Path

import pytest

import autocompress as ac
from autocompress.engine.driver import SearchDriver, _Slots
from autocompress.engine.prepare import prepare
from autocompress.engine.settings import Settings
from autocompress.study import SearchStudy, sqlite_url


def test_seconds_outside_of_steps_are_those_since_the_trial_before_in_the_same_place() -> None:
    slots = _Slots()
    slots.begin(1)
    slots.begin(2)
    slots.end(1, 10.0, 1.0, 3.0)  # a worker's first trial, which started the worker
    slots.begin(3)
    slots.end(2, 11.0, 1.0, 3.0)
    slots.begin(4)
    slots.end(3, 13.0, 2.5, 2.7)  # half a second since 10
    slots.end(4, 12.3, 1.0, 1.1)  # 0.3 since 11
    assert slots.trials == 2
    assert slots.outside == pytest.approx(0.8)
    assert slots.own == pytest.approx(0.3)


def test_trials_that_did_not_complete_free_their_place_and_count_for_nothing() -> None:
    slots = _Slots()
    slots.begin(1)
    slots.end(1, 5.0, 0.0, None)
    slots.begin(2)
    slots.end(2, 9.0, 0.0, None)
    slots.end(7, 9.5, 1.0, 1.5)  # its proposal failed: it never ran
    slots.begin(3)
    slots.end(3, 12.0, 2.8, 2.9)
    assert slots.trials == 1
    assert slots.outside == pytest.approx(0.2)


@pytest.mark.parametrize(
    ("tensors", "said"),
    [
        (90_000, "12 trials: alcn makes the smallest so far smaller"),
        (500, "12 trials: proposed by the sampler"),
    ],
)
def test_a_file_that_is_mostly_graph_is_left_to_the_sampler_and_the_plan_says_so(
    tensors: int, said: str, residual_task: ac.Task, tmp_path: Path
) -> None:
    prepared = prepare(residual_task, Settings(trials=12, objectives=("accuracy", "bytes")))
    metrics = {"accuracy": 0.9, "bytes": 100_000.0, "weight_bytes": float(tensors)}
    study = SearchStudy(sqlite_url(tmp_path), "test", prepared.objectives, prepared.constraints)
    study.add_reference(metrics, {})
    driver = SearchDriver(prepared, study, tmp_path, metrics, ac.Progress())
    plan = driver.plan(1)
    assert plan is not None
    assert plan.startswith(said)
