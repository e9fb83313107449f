"""Where trials go in a search that has a target, and when it has had enough."""

from __future__ import annotations

import math
from dataclasses import replace
from typing import Any

import pytest

import autocompress as ac
from autocompress import plugins
from autocompress.task import GroupProfile, ModelProfile

pipeline = plugins.pipeline()
PROFILE = ModelProfile(params=1000, macs=1000, groups=(GroupProfile("g", 8, 500, 500),))
SPACES = {"alcn": plugins.search_space("alcn")}
ACCURACY = ac.Target("accuracy>=0.9")
BYTES = ac.Target("bytes<=0.2*ref", on_cost=True, cost=0.2)


def parent(number: int, cost: float, score: float, target: ac.Target) -> ac.Parent:
    holds = cost <= target.cost if target.on_cost else score >= 0.9
    return ac.Parent(number, cost, score, PROFILE, holds=holds)


def attempt(number: int, start: int, cost: float | None, **others: Any) -> ac.Attempt:
    usual = {"methods": ("alcn",), "score": 0.9, "feasible": True, "kept": True, "holds": False}
    usual["params"] = {"method": "alcn", "lr_scale": 1.0}
    return ac.Attempt(number, start, cost=cost, **{**usual, **others})


def family(target: ac.Target, *models: tuple[int, float, float], **others: Any) -> ac.Family:
    """Of (trial, cost, score), the costliest first, the reference among them."""
    members = tuple(parent(*model, target) for model in models)
    usual = {"left": 10, "target": target, **others}
    return ac.Family(members, {member.number: member for member in members}, **usual)


def place(move: Any) -> tuple[float, bool]:
    """Position of the parent, and whether it is only trained on."""
    return move.params["parent"], move.params["only_train"] == 1.0


def test_trials_go_down_as_without_a_target_as_long_as_it_holds() -> None:
    aimed = family(ACCURACY, (0, 1.0, 0.95), (1, 0.5, 0.94), left=8)
    usual = ac.Family(aimed.front, aimed.kept, left=8)
    assert pipeline.guided(aimed, SPACES) == pipeline.guided(usual, SPACES)


def test_between_what_holds_and_what_failed_trials_go_halfway() -> None:
    failed = (attempt(2, 1, 0.125),)
    models = ((0, 1.0, 0.95), (1, 0.5, 0.94), (2, 0.125, 0.7))
    move = pipeline.guided(family(ACCURACY, *models, attempts=failed), SPACES)
    assert move.cost == pytest.approx(0.25)
    assert place(move) == (0.5, False)
    # One that runs is going there.
    beside = pipeline.guided(
        family(ACCURACY, *models, attempts=failed, running=(ac.Running(0, 0.25),)), SPACES
    )
    assert beside.cost == pytest.approx(0.5 * 4**-0.25)


def test_near_the_target_a_miss_is_trained_on_and_what_holds_goes_a_little_further() -> None:
    models = ((0, 1.0, 0.95), (1, 0.5, 0.91), (2, 0.48, 0.89))
    tried = [attempt(2, 1, 0.48, params={"method": "alcn", "lr_scale": 1.0})]
    seen = []
    for number in range(3, 9):
        move = pipeline.guided(family(ACCURACY, *models, attempts=tuple(tried)), SPACES)
        trains_on = place(move)[1]
        seen.append((*place(move), move.params["lr_scale"]))
        start = {0.5: 1, 1.0: 2}[move.params["parent"]]
        methods = () if trains_on else ("alcn",)
        tried.append(attempt(number, start, 0.49, methods=methods, params={"lr_scale": seen[-1][2]}))
        if not trains_on:
            assert move.cost == pytest.approx(0.45)
    assert {(position, trains) for position, trains, _ in seen} == {(1.0, True), (0.5, True), (0.5, False)}
    assert len(set(seen)) == len(seen)  # never the same at the same rate


def test_a_target_that_nothing_holds_is_approached_from_the_best() -> None:
    move = pipeline.guided(family(ACCURACY, (0, 1.0, 0.85), (1, 0.5, 0.8)), SPACES)
    assert place(move) == (0.0, False)
    assert move.cost == pytest.approx(0.9)
    again = pipeline.guided(family(ACCURACY, (3, 0.9, 0.87), (1, 0.5, 0.8)), SPACES)
    assert place(again) == (0.0, True)


def test_a_bound_on_cost_is_reached_in_a_third_of_the_trials() -> None:
    costs, tried = [1.0], []
    for number in range(1, 5):
        models = [(0, 1.0, 0.95)] + [(n, cost, 0.95 - n / 100) for n, cost in enumerate(costs) if n]
        made = family(BYTES, *models, attempts=tuple(tried), left=13 - number)
        move = pipeline.guided(made, SPACES)
        costs.append(move.cost)
        tried.append(attempt(number, number - 1, move.cost))
    assert costs == pytest.approx([1.0, 0.19**0.25, 0.19**0.5, 0.19**0.75, 0.19])


def test_what_was_too_far_is_come_to_in_smaller_steps_and_at_other_rates() -> None:
    tried: list[ac.Attempt] = []
    moves = []
    for number in range(1, 4):
        move = pipeline.guided(family(BYTES, (0, 1.0, 0.95), attempts=tuple(tried), left=7 - number), SPACES)
        moves.append(move)
        tried.append(attempt(number, 0, move.cost, score=0.4, feasible=False, kept=False))
    costs = [move.cost for move in moves]
    assert costs[0] == pytest.approx(0.19**0.5)
    assert costs[1:] == pytest.approx([math.sqrt(costs[0]), math.sqrt(math.sqrt(costs[0]))])
    assert len({move.params["lr_scale"] for move in moves}) == 3


def test_a_bound_on_another_cost_is_come_to_as_without_a_target() -> None:
    elsewhere = ac.Target("macs<=0.5*ref", on_cost=True, cost=math.inf)
    reference = ac.Parent(0, 1.0, 0.95, PROFILE, holds=False)
    aimed = ac.Family((reference,), {0: reference}, left=8, target=elsewhere)
    usual = ac.Family((reference,), {0: reference}, left=8)
    assert pipeline.guided(aimed, SPACES) == pipeline.guided(usual, SPACES)


def test_below_a_bound_on_cost_the_best_is_trained_on_and_its_neighbour_comes_down() -> None:
    models = ((0, 1.0, 0.95), (1, 0.5, 0.94), (2, 0.18, 0.9))
    first = pipeline.guided(family(BYTES, *models), SPACES)
    assert place(first) == (1.0, True)
    trained = attempt(3, 2, 0.18, methods=())
    second = pipeline.guided(family(BYTES, *models, attempts=(trained,)), SPACES)
    assert place(second) == (0.5, False)
    assert second.cost == pytest.approx(math.sqrt(0.5 * 0.19))
    near = (*models[:1], (1, 0.22, 0.94), models[2])
    assert pipeline.guided(family(BYTES, *near, attempts=(trained,)), SPACES).cost == pytest.approx(0.19)


@pytest.mark.parametrize(
    ("last", "failure", "had_enough"),
    [
        (0.49, 0.47, True),  # not even 3 % less
        (0.40, 0.39, False),  # it helped
        (0.49, 0.30, False),  # between the two there is room
    ],
)
def test_a_search_has_had_enough_once_six_trials_brought_it_no_closer(
    last: float, failure: float, had_enough: bool
) -> None:
    models = ((0, 1.0, 0.95), (1, 0.5, 0.94), (7, last, 0.92))
    tried = [attempt(1, 0, 0.5, holds=True), *(attempt(n, 1, failure) for n in range(2, 7))]
    five = family(ACCURACY, *models, attempts=tuple(tried))
    assert pipeline.enough(five) is None
    six = family(ACCURACY, *models, attempts=(*tried, attempt(7, 1, last, holds=True)))
    assert bool(pipeline.enough(six)) == had_enough
    codes = tuple(attempt(n, 1, failure, trained=False) for n in range(8, 20))
    assert pipeline.enough(family(ACCURACY, *models, attempts=(*tried[:4], *codes))) is None


def test_a_best_model_that_got_no_better_is_enough_below_a_bound_on_cost() -> None:
    models = ((0, 1.0, 0.95), (1, 0.18, 0.9))
    tried = (attempt(1, 0, 0.18, holds=True), *(attempt(n, 1, 0.18, holds=True) for n in range(2, 8)))
    assert "bytes<=0.2*ref" in str(pipeline.enough(family(BYTES, *models, attempts=tried)))
    better = (*models[:1], (7, 0.19, 0.91), models[1])
    assert pipeline.enough(family(BYTES, *better, attempts=tried)) is None
    # The first best model gave its place to one that is no better: what it was still counts.
    later = (models[0], (7, 0.18, 0.9))
    assert "bytes<=0.2*ref" in str(pipeline.enough(family(BYTES, *later, attempts=tried)))
    failed = tuple(replace(trial, holds=False) for trial in tried)
    assert pipeline.enough(family(BYTES, models[0], attempts=failed)) is None


def test_without_a_target_there_is_never_enough() -> None:
    made = family(ACCURACY, (0, 1.0, 0.95), (1, 0.5, 0.94))
    tried = tuple(attempt(n, 1, 0.5) for n in range(1, 30))
    assert pipeline.enough(ac.Family(made.front, made.kept, tried)) is None
