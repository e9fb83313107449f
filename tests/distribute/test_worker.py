"""What a job tells the driver, and when."""

from __future__ import annotations

import contextlib
import itertools
import json
from types import SimpleNamespace
from typing import Any

import pytest

from autocompress.distribute import worker
from autocompress.distribute.searcher import DriverScheduler
from autocompress.distribute.worker import EPOCHS, MESSAGE, Messages


@pytest.fixture
def told(monkeypatch: pytest.MonkeyPatch) -> list[Any]:
    """Messages that Tune was given."""
    messages: list[Any] = []
    monkeypatch.setattr(worker.tune, "report", lambda metrics: messages.append(json.loads(metrics[MESSAGE])))
    return messages


@pytest.fixture
def now(monkeypatch: pytest.MonkeyPatch) -> SimpleNamespace:
    """A clock that stands until it is set."""
    clock = SimpleNamespace(seconds=100.0)
    monkeypatch.setattr(worker.time, "monotonic", lambda: clock.seconds)
    return clock


def epoch(number: int, **values: float) -> dict[str, float]:
    return {"epoch": float(number), "loss": 1 / number, "seconds": 0.01 * number, **values}


def test_the_first_epoch_is_told_at_once_and_short_ones_together_with_what_comes_next(
    told: list[Any], now: SimpleNamespace
) -> None:
    messages = Messages()
    for number in range(1, 5):
        messages.epoch(epoch(number))
    assert told == [[EPOCHS, None, [epoch(1)]]]
    messages.send("result", {"metrics": {}})
    assert told[1:] == [["result", {"metrics": {}}, [epoch(2), epoch(3), epoch(4)]]]


def test_epochs_that_take_their_time_are_told_one_by_one(told: list[Any], now: SimpleNamespace) -> None:
    messages = Messages()
    for number in range(1, 4):
        now.seconds += 10
        messages.epoch(epoch(number))
    assert [entries for _, _, entries in told] == [[epoch(1)], [epoch(2)], [epoch(3)]]


@pytest.mark.parametrize(("wait", "between"), [(0.001, 2), (0.06, 6), (5, 30)])
def test_waiting_for_answers_takes_a_hundredth_of_the_time_where_that_is_not_too_seldom(
    monkeypatch: pytest.MonkeyPatch, now: SimpleNamespace, wait: float, between: float
) -> None:
    answered: list[float] = []

    def report(metrics: dict[str, str]) -> None:
        now.seconds += wait
        answered.append(now.seconds)

    monkeypatch.setattr(worker.tune, "report", report)
    messages = Messages()
    for number in range(1, 1000):
        now.seconds += 0.1
        messages.epoch(epoch(number))
    gaps = [later - wait - earlier for earlier, later in itertools.pairwise(answered)]
    assert min(gaps) > between
    assert max(gaps) < between + 0.25


def test_an_epoch_after_which_a_trial_may_be_stopped_does_not_wait(
    told: list[Any], now: SimpleNamespace
) -> None:
    messages = Messages()
    rung = epoch(3, **{"rung/accuracy": 0.9})
    for entry in (epoch(1), epoch(2), rung, epoch(4)):
        messages.epoch(entry)
    assert told == [[EPOCHS, None, [epoch(1)]], [EPOCHS, None, [epoch(2), rung]]]


class Driver:
    """Hears of epochs, and stops trials after one of them."""

    def __init__(self, last: int) -> None:
        self.last, self.heard = last, list[float]()

    def epoch(self, number: int, entry: dict[str, float]) -> bool:
        self.heard.append(entry["epoch"])
        return entry["epoch"] < self.last


@pytest.mark.parametrize(
    ("kind", "last", "decision", "outcomes"),
    [
        (EPOCHS, 9, "CONTINUE", {}),
        (EPOCHS, 3, "STOP", {}),
        # It is at its end: nothing is left to stop.
        ("result", 3, "CONTINUE", {"a": ("result", {"x": 1})}),
    ],
)
def test_the_driver_hears_of_each_epoch_and_stops_only_what_goes_on(
    kind: str, last: int, decision: str, outcomes: dict[str, Any]
) -> None:
    driver = Driver(last)
    searcher: Any = SimpleNamespace(driver=driver, numbers={"a": 7}, outcomes={}, stopped=set())
    searcher.keeping_errors = contextlib.nullcontext
    content = {"x": 1} if kind == "result" else None
    message = {MESSAGE: json.dumps([kind, content, [epoch(2), epoch(3)]])}
    said = DriverScheduler(searcher).on_trial_result(None, SimpleNamespace(trial_id="a"), message)
    assert said == decision
    assert driver.heard == [2, 3]
    assert searcher.outcomes == outcomes
    assert searcher.stopped == ({"a"} if decision == "STOP" else set())
