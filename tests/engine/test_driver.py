"""What the driver knows of the time between trials."""

from __future__ import annotations

import pytest

from autocompress.engine.driver import _Slots


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
