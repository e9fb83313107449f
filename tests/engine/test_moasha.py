"""MO-ASHA: which trials go on, against decisions of another implementation, and what a study keeps of it."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from autocompress.engine.moasha import MoAsha, goes_on, rungs
from autocompress.measure import Objective
from autocompress.study import SearchStudy, sqlite_url

MINIMISED = tuple(Objective(name, "minimize") for name in ("first", "second", "third"))
OBJECTIVES = (Objective("accuracy", "maximize"), Objective("latency", "minimize"))

# Four trials at a time report random values; `[trial, epoch, values, whether it goes on]`, rungs alone. Of
# Syne Tune 0.16's `Bracket`, `pareto_efficient` and `compute_epsilon_net` with η = 3 on each front scaled to
# [0, 1]. Its `MOASHA` itself takes the sorted indices of trials for their ranks; here these are ranks. Where
# fewer than three reached a rung all go on.
RECORDED: list[dict[str, Any]] = json.loads((Path(__file__).parent / "moasha_decisions.json").read_text())


def study(folder: Path, objectives: tuple[Objective, ...] = OBJECTIVES) -> SearchStudy:
    return SearchStudy(sqlite_url(folder), "test", objectives)


def begin(made: SearchStudy) -> int:
    trial = made.ask()
    trial.suggest_float("x", 0, 1)
    return trial.number


def test_rungs_are_powers_of_eta_before_the_last_epoch() -> None:
    assert [rungs(epochs) for epochs in (0, 1, 2, 3, 4, 9, 10, 28)] == [
        (), (), (1,), (1,), (1, 3), (1, 3), (1, 3, 9), (1, 3, 9, 27)
    ]  # fmt: skip


def test_a_third_of_a_rung_goes_on_and_all_of_fewer_than_three() -> None:
    going_on = {trials: sum(goes_on(better, trials) for better in range(trials)) for trials in range(1, 8)}
    assert going_on == {1: 1, 2: 2, 3: 2, 4: 2, 5: 2, 6: 3, 7: 3}


@pytest.mark.parametrize("sequence", RECORDED, ids=lambda s: f"{s['epochs']} epochs")
def test_decisions_are_those_of_another_implementation(sequence: dict[str, Any], tmp_path: Path) -> None:
    objectives = MINIMISED[: len(sequence["reports"][0][2])]
    made = study(tmp_path, objectives)
    stopping = MoAsha(made, objectives)
    numbers: dict[int, int] = {}
    assert {epoch for _, epoch, _, _ in sequence["reports"]} == set(rungs(sequence["epochs"]))
    for trial, epoch, values, going_on in sequence["reports"]:
        number = numbers.setdefault(trial, begin(made) if trial not in numbers else -1)
        metrics = {o.metric: value for o, value in zip(objectives, values, strict=True)}
        assert (stopping.stops(number, epoch, metrics) is None) == going_on, (trial, epoch)


def test_a_trial_is_stopped_with_the_rung_and_how_many_are_better(tmp_path: Path) -> None:
    made = study(tmp_path)
    stopping = MoAsha(made, OBJECTIVES)
    reasons = [
        stopping.stops(begin(made), 3, {"accuracy": accuracy, "macs": macs})
        for accuracy, macs in ((0.9, 10.0), (0.8, 5.0), (0.95, 4.0), (0.7, 20.0))
    ]
    assert reasons == [None, None, None, "stopped at rung 3: 3 of the 3 others there are better"]


def test_macs_stand_for_latency_and_accuracy_is_maximised(tmp_path: Path) -> None:
    made = study(tmp_path)
    stopping = MoAsha(made, (*OBJECTIVES, Objective("macs", "minimize")))
    assert stopping.signs == {"accuracy": -1.0, "macs": 1.0}


def test_rungs_survive_a_resume_and_are_seen_by_another_process(tmp_path: Path) -> None:
    first, second = study(tmp_path), study(tmp_path)
    one, other = MoAsha(first, OBJECTIVES), MoAsha(second, OBJECTIVES)
    for accuracy in (0.9, 0.91):
        assert one.stops(begin(first), 1, {"accuracy": accuracy, "macs": 5.0}) is None
    # While the trials of the first one run.
    number = begin(second)
    assert other.stops(number, 1, {"accuracy": 0.5, "macs": 9.0}) is not None
    second.prune(number, "stopped", {"accuracy": 0.5, "macs": 9.0})
    resumed = study(tmp_path)
    assert sorted(s["accuracy"] for s in resumed.rung(1).values()) == [0.5, 0.9, 0.91]
    assert MoAsha(resumed, OBJECTIVES).stops(begin(resumed), 1, {"accuracy": 0.4, "macs": 9.5}) is not None


def test_later_rungs_add_to_those_of_a_trial(tmp_path: Path) -> None:
    made = study(tmp_path)
    stopping = MoAsha(made, OBJECTIVES)
    number = begin(made)
    for epoch in (1, 3):
        stopping.stops(number, epoch, {"accuracy": 0.1 * epoch, "macs": 5.0})
    stored = study(tmp_path).study.trials[0].user_attrs["rungs"]
    assert stored == {"1": {"accuracy": 0.1, "macs": 5.0}, "3": {"accuracy": 0.1 * 3, "macs": 5.0}}


def test_a_trial_that_runs_again_is_at_its_rung_once(tmp_path: Path) -> None:
    made = study(tmp_path)
    number = begin(made)
    MoAsha(made, OBJECTIVES).stops(number, 1, {"accuracy": 0.9, "macs": 5.0})
    again = study(tmp_path)
    assert again.close_leftovers() == 1
    assert again.rung(1) == {}
