"""What a parameter says of an objective, as trials that train tell it."""

from __future__ import annotations

import contextlib

import optuna
import pytest
from optuna.distributions import FloatDistribution

from autocompress.study import EXTRA
from autocompress.study.importance import LEAST_TRIALS, importance

SPACE = {"width": FloatDistribution(0, 1), "rate": FloatDistribution(0, 1)}


def trial(width: float, rate: float, value: float, extra: bool = False) -> optuna.trial.FrozenTrial:
    return optuna.trial.create_trial(
        params={"width": width, "rate": rate},
        distributions=SPACE,
        values=[value, 0.0],
        user_attrs={EXTRA: True} if extra else {},
    )


def test_trials_beside_the_budget_do_not_count() -> None:
    study = optuna.create_study(directions=["minimize", "minimize"])
    trained = [(i / 29, (7 * i % 30) / 29) for i in range(30)]
    study.add_trials([trial(width, rate, width) for width, rate in trained])
    before = importance(study, 0).shares
    assert before["width"] > 0.9
    # All have one rate, and are better than what they were made of.
    study.add_trials([trial(width, 0.5, 0.01 * width, extra=True) for width, _ in trained])
    assert importance(study, 0).shares == pytest.approx(before)


def test_too_few_trials_say_nothing_and_the_reason_is_told() -> None:
    study = optuna.create_study(directions=["minimize", "minimize"])
    study.add_trials([trial(0.1 * i, 0.5, 0.1 * i) for i in range(LEAST_TRIALS - 1)])
    study.add_trials([trial(0.1 * i, 0.5, 0.1 * i, extra=True) for i in range(5)])
    assert importance(study, 0).reason == "9 complete trials are too few: it takes 10"


def test_what_lies_out_of_its_range_is_left_out() -> None:
    # As a space of the user's own may move to it, which Optuna records.
    study = optuna.create_study(directions=["minimize", "minimize"])
    for i in range(30):
        study.enqueue_trial({"width": i / 29, "rate": (7 * i % 30) / 29 if i else 3.0})
        asked = study.ask()
        with pytest.warns(UserWarning, match="out of range") if not i else contextlib.nullcontext():
            width, _ = [asked.suggest_float(name, 0, 1) for name in SPACE]
        study.tell(asked, [width, 0.0])
    assert study.trials[0].params["rate"] == 3.0
    assert importance(study, 0).shares["width"] > 0.9


def test_what_is_left_within_its_range_must_be_enough() -> None:
    study = optuna.create_study(directions=["minimize", "minimize"])
    for i in range(LEAST_TRIALS):
        study.enqueue_trial({"width": i / 29, "rate": 3.0 if i < 2 else 0.5})
        asked = study.ask()
        with pytest.warns(UserWarning, match="out of range") if i < 2 else contextlib.nullcontext():
            width, _ = [asked.suggest_float(name, 0, 1) for name in SPACE]
        study.tell(asked, [width, 0.0])
    assert importance(study, 0).reason == "8 complete trials are too few: it takes 10"
