"""Pipelines of methods, and what the spaces of depth propose."""

from __future__ import annotations

import copy
import itertools
import json
import math
import subprocess
import sys
from collections.abc import Callable
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import optuna
import pytest
import torch
from torch import nn

import autocompress as ac
from autocompress import plugins
from autocompress.graph import analyse
from autocompress.graph.costs import profile
from autocompress.methods.alds.spectra import MEASURES
from autocompress.models.registry import model_factory
from autocompress.plugins import SearchSpace
from autocompress.surgery.translators import KINDS
from autocompress.task import LayerProfile, ModelProfile

pipeline = plugins.pipeline()


@pytest.fixture(scope="module")
def resnet20() -> ModelProfile:
    model = model_factory("resnet20", (3, 32, 32), 10)().eval()
    example = torch.randn(2, 3, 32, 32)
    return profile(model, example, analyse(model, example))


def nothing(trial: optuna.Trial, profile: ModelProfile) -> tuple[object, ...]:
    return ()


def of_methods(*names: str) -> dict[str, SearchSpace]:
    return {name: plugins.search_space(name) for name in names}


def alone(profile: ModelProfile, **others: Any) -> ac.Family:
    """A family of the reference alone."""
    reference = ac.Parent(0, 1.0, 0.9, profile)
    return ac.Family((reference,), {0: reference}, **others)


def attempt(number: int, parent: int, cost: float | None, **others: Any) -> ac.Attempt:
    usual = {"methods": ("alcn",), "score": 0.9, "feasible": True, "kept": True, "params": {"method": "alcn"}}
    return ac.Attempt(number, parent, cost=cost, **{**usual, **others})


def test_a_space_of_ones_own_may_return_a_sequence_and_have_any_name(resnet20: ModelProfile) -> None:
    def space(trial: optuna.Trial, profile: ModelProfile) -> tuple[object, ...]:
        return ac.Depth.Config(), ac.Alcn.Config(initial_ratio=trial.suggest_float("mine.ratio", 0.2, 0.5))

    study = optuna.create_study(sampler=optuna.samplers.RandomSampler(seed=0))
    study.enqueue_trial({"method": "a+b.py"})
    proposal = pipeline.suggest(study.ask(), alone(resnet20), {"a+b.py": SearchSpace(space)})
    assert [plugins.method_of(config) for config in proposal.configs] == ["depth", "alcn"]


def test_every_proposal_is_the_move_of_its_name_from_a_model_of_the_family(resnet20: ModelProfile) -> None:
    spaces = of_methods("alcn", "depth")
    reference = ac.Parent(0, 1.0, 0.9, resnet20)
    better = ac.Parent(5, 0.5, 0.92, resnet20)
    family = ac.Family((reference, better), {0: reference, 5: better})
    study = optuna.create_study(sampler=optuna.samplers.RandomSampler(seed=0))
    seen = set()
    for _ in range(80):
        trial = study.ask()
        proposal = pipeline.suggest(trial, family, spaces)
        names = [plugins.method_of(config) for config in proposal.configs]
        assert proposal.parent == (5 if trial.params["parent"] > 0.5 else 0)
        only_trained = trial.params["only_train"] > 0.9 and proposal.parent == 5
        assert names == ([] if only_trained else [trial.params["method"]])
        taught = trial.params["teacher"] == "best"
        assert (proposal.distill_weight > 0) == taught
        assert proposal.teacher == (5 if taught else 0)
        seen.add((proposal.parent, bool(names), taught))
    assert len(seen) == 6


def test_no_trial_is_taught_where_none_is_to_be(resnet20: ModelProfile) -> None:
    spaces, study = of_methods("alcn", "lc"), optuna.create_study()
    untaught = alone(resnet20, left=8, distill=False)
    for family, names in ((untaught, set()), (alone(resnet20, left=8), {"teacher", "distill_weight"})):
        guided = pipeline.guided(family, spaces).params
        study.enqueue_trial(dict(guided))
        proposal = pipeline.suggest(trial := study.ask(), family, spaces)
        for params in (guided, trial.params):
            assert {"teacher", "distill_weight"} & params.keys() == names
        assert (proposal.distill_weight > 0) == bool(names)
    coded = pipeline.guided(alone(resnet20, left=0, metric="weight_bytes", distill=False), spaces)
    assert coded is not None
    assert "teacher" not in coded.params


def test_moves_of_a_run_without_teachers_can_be_made_by_one_with_them(resnet20: ModelProfile) -> None:
    spaces = of_methods("alcn")
    study = optuna.create_study()
    pipeline.suggest(trial := study.ask(), alone(resnet20, distill=False), spaces)
    assert "teacher" not in trial.params
    assert pipeline.can_suggest(trial.params, alone(resnet20), spaces)


def test_a_move_that_a_parent_does_not_suit_starts_from_what_the_parent_came_from(
    resnet20: ModelProfile,
) -> None:
    reference = ac.Parent(0, 1.0, 0.9, resnet20)
    bare = ac.Parent(5, 0.5, 0.92, ModelProfile(10, 10, ()))
    family = ac.Family((reference, bare), {0: reference, 5: bare})
    study = optuna.create_study(sampler=optuna.samplers.RandomSampler(seed=0))
    for only_train, parent in ((0.0, 0), (1.0, 5)):
        study.enqueue_trial({"parent": 1.0, "only_train": only_train})
        assert pipeline.suggest(study.ask(), family, of_methods("alcn")).parent == parent


def way_down(profile: ModelProfile, trials: int) -> list[float]:
    """What trials aim at, each reaching it, until one fills a gap."""
    reference = ac.Parent(0, 1.0, 0.9, profile)
    front, costs = (reference,), [1.0]
    for number in range(1, trials + 1):
        ended = tuple(attempt(i, i - 1, cost) for i, cost in enumerate(costs) if i)
        aimed = pipeline.aim(ac.Family(front, dict(enumerate(front)), ended, left=trials + 1 - number))
        if aimed is None or aimed.cost >= costs[-1]:
            break
        costs.append(aimed.cost)
        front += (ac.Parent(number, aimed.cost, 0.9 - 0.001 * number, profile),)
    return costs


@pytest.mark.parametrize("trials", [2, 5, 12, 24])
def test_guided_trials_go_down_in_steps_that_get_smaller_and_end_at_the_floor(
    trials: int, resnet20: ModelProfile
) -> None:
    costs = way_down(resnet20, trials)
    steps = [math.log(above / below) for above, below in itertools.pairwise(costs)]
    assert len(steps) == trials
    assert steps == sorted(steps, reverse=True)
    assert costs[-1] == pytest.approx(0.01)


@pytest.mark.parametrize("trials", [48, 200])
def test_large_budgets_go_down_in_as_many_trials_as_small_ones_and_fill_gaps_then(
    trials: int, resnet20: ModelProfile
) -> None:
    costs, few = way_down(resnet20, trials), way_down(resnet20, 24)
    assert costs[:18] == pytest.approx(few[:18])
    assert len(few) <= len(costs) <= len(few) + 5
    assert costs[-1] == pytest.approx(0.01)


def test_trials_that_run_side_by_side_from_the_reference_are_spread(resnet20: ModelProfile) -> None:
    running: list[ac.Running] = []
    for _ in range(64):
        aimed = pipeline.aim(alone(resnet20, left=640 - len(running), running=tuple(running)))
        running.append(ac.Running(0, aimed.cost))
    costs = sorted(other.cost for other in running)
    assert costs[0] == pytest.approx(0.1, rel=0.05)
    assert all(1 < above / below < 1.1 for below, above in itertools.pairwise(costs))


def test_a_method_that_found_nothing_to_cut_gives_way_until_the_model_is_smaller(
    resnet20: ModelProfile,
) -> None:
    spaces = of_methods("alcn", "alds", "autoplastic")
    free = {"method": "autoplastic"}
    before = [attempt(1, 0, 0.5, params=free, saved=0.7, lost=0.0, asked=0.3)]

    def method(cost: float, *idle: ac.Attempt) -> str:
        front = (ac.Parent(0, 1.0, 0.9, resnet20), ac.Parent(2, cost, 0.89, resnet20))
        family = ac.Family(front, {0: front[0], 2: front[1]}, (*before, *idle), left=30)
        return str(pipeline.guided(family, spaces).params["method"])

    idle = attempt(2, 1, 0.5, params=free, saved=0.0, lost=-0.02, asked=0.3)
    assert method(0.5) == "autoplastic"
    assert method(0.5, idle) != "autoplastic"
    assert method(0.4, idle) == "autoplastic"


def test_a_trial_out_of_bounds_that_saved_nothing_does_not_end_the_way_down(resnet20: ModelProfile) -> None:
    front = (ac.Parent(0, 1.0, 0.9, resnet20), ac.Parent(2, 0.1, 0.85, resnet20))
    kept, left = {0: front[0], 2: front[1]}, 5
    outside = attempt(3, 2, 0.1, saved=0.0, lost=0.3, asked=0.1, feasible=False)
    aimed = pipeline.aim(ac.Family(front, kept, (outside,), left=left))
    assert aimed == pipeline.aim(ac.Family(front, kept, left=left))
    assert aimed.keep > 0.4


def after_a_setback(profile: ModelProfile, *later: ac.Attempt, left: int = 17) -> ac.Family:
    """Six steps that lost little, and one of `alds` that lost much; and what came then."""
    costs = [0.8**number for number in range(8)]
    steps = [attempt(n, n - 1, costs[n], saved=0.2, lost=0.01, asked=0.2) for n in range(1, 7)]
    setback = attempt(7, 6, costs[7], params={"method": "alds"}, saved=0.2, lost=0.08, asked=0.2)
    attempts = [*steps, setback, *later]
    scores = {0: 0.9}
    for each in attempts:
        scores[each.number] = scores[each.parent] - each.lost
    costs += [each.cost or 0.0 for each in later]
    kept = {number: ac.Parent(number, costs[number], score, profile) for number, score in scores.items()}
    front = [
        p for p in kept.values() if not any(o.cost <= p.cost and o.score > p.score for o in kept.values())
    ]
    return ac.Family(tuple(sorted(front, key=lambda p: -p.cost)), kept, tuple(attempts), left=left)


def test_what_lost_far_more_than_steps_do_is_not_gone_on_from(resnet20: ModelProfile) -> None:
    spaces = of_methods("alcn", "alds")
    family = after_a_setback(resnet20)
    again = pipeline.guided(family, spaces)
    assert again.params["method"] == "alcn"
    assert family.at(again.params["parent"]).number == 6
    assert again.cost < family.front[-2].cost
    # A little costlier than the setback, which stays the cheapest.
    better = attempt(8, 6, 1.02 * family.front[-1].cost, saved=0.2, lost=0.01, asked=0.2)
    assert pipeline.aim(after_a_setback(resnet20, better)).parent.number == 8
    # Where what it was made of is gone, as after damage, the setback is all there is.
    cheapest = family.front[-1]
    assert pipeline.aim(replace(family, front=(cheapest,), kept={7: cheapest})).parent is cheapest
    few = after_a_setback(resnet20, better, left=3)
    assert pipeline.aim(few).parent.number == 7


def test_what_loses_much_by_other_methods_too_is_no_setback(resnet20: ModelProfile) -> None:
    family = after_a_setback(resnet20)
    cost = 1.02 * family.front[-1].cost
    as_bad = attempt(8, 6, cost, saved=0.2, lost=0.07, asked=0.2)
    without_result = attempt(8, 6, None, score=None, kept=False, asked=0.2)
    assert pipeline.aim(after_a_setback(resnet20, as_bad)).parent.number == 7
    assert pipeline.aim(replace(family, attempts=(*family.attempts, without_result))).parent.number == 7


def test_methods_whose_steps_were_setbacks_are_not_tried_for_their_rareness(resnet20: ModelProfile) -> None:
    better = attempt(8, 6, 0.21, saved=0.2, lost=0.01, asked=0.2)
    later = [attempt(n, n - 1, 0.21 * 0.9 ** (n - 8), saved=0.1, lost=0.01, asked=0.1) for n in range(9, 12)]
    family = after_a_setback(resnet20, better, *later, left=13)
    assert len(family.attempts) == 11  # every sixth trial tries what was tried least
    assert pipeline.guided(family, of_methods("alcn", "alds")).params["method"] == "alcn"
    tried = tuple(replace(a, lost=0.01) for a in family.attempts)
    assert (
        pipeline.guided(replace(family, attempts=tried), of_methods("alcn", "alds")).params["method"]
        == "alds"
    )


def test_where_one_method_leaves_the_bounds_others_go_on_from_the_same_model(resnet20: ModelProfile) -> None:
    front = (ac.Parent(0, 1.0, 0.9, resnet20), ac.Parent(2, 0.1, 0.85, resnet20))
    kept = {0: front[0], 2: front[1]}
    outside = attempt(3, 2, 0.09, params={"method": "alcn"}, saved=0.1, lost=0.3, asked=0.1, feasible=False)
    many = ac.Family(front, kept, (outside,), left=30)
    move = pipeline.guided(many, of_methods("alcn", "alds"))
    assert (move.params["parent"], move.params["method"]) == (1.0, "alds")
    assert move.cost < 0.09
    few = pipeline.guided(replace(many, left=5), of_methods("alcn", "alds"))
    assert few.params["parent"] == 0.0


def test_a_trial_goes_a_little_further_than_those_that_run(resnet20: ModelProfile) -> None:
    family = partial(alone, resnet20, left=8)
    first, second = pipeline.aim(family()), pipeline.aim(family(running=(ac.Running(0, 0.5),)))
    assert math.log(second.cost / 0.01) / math.log(0.5 / 0.01) == pytest.approx(
        math.log(first.cost / 0.01) / math.log(1 / 0.01)
    )


@pytest.mark.parametrize(
    ("trials", "workers", "text"),
    [
        (10, 1, "10 trials: {smaller}; too few to try autoplastic, alds, depth"),
        (24, 1, "24 trials: {smaller}; every sixth tries autoplastic, alds, depth"),
        (
            100,
            8,
            "100 trials: {smaller} (8 at a time, so that 13 follow each other); "
            "every sixth tries autoplastic, alds, depth",
        ),
    ],
)
def test_a_budget_is_spent_on_what_it_pays_for(trials: int, workers: int, text: str) -> None:
    spaces = of_methods("alcn", "alds", "autoplastic", "depth", "lc")
    text = text.format(smaller="alcn makes the smallest so far smaller, in ever smaller steps")
    codes = "; from a quarter on the front is stored as codes too, by lc, beside the budget"
    assert pipeline.plan(trials, spaces, "weight_bytes").text(workers) == text + codes
    assert pipeline.plan(trials, spaces, "macs").text(workers) == text


@pytest.mark.parametrize(("trials", "methods"), [(10, {"alcn"}), (24, {"alcn", "alds", "depth"})])
def test_guided_trials_use_the_methods_of_the_plan(
    trials: int, methods: set[str], resnet20: ModelProfile
) -> None:
    spaces, tried = of_methods("alcn", "alds", "depth"), []
    for number in range(1, trials + 1):
        family = alone(resnet20, left=trials + 1 - number, attempts=tuple(tried))
        params = pipeline.guided(family, spaces).params
        lost = 0.01 if params["method"] == "alcn" else 0.05
        tried.append(attempt(number, 0, 0.8, params=params, saved=0.2, lost=lost, asked=0.2))
    used = [each.params["method"] for each in tried]
    assert set(used) == methods
    assert used.count("alcn") >= trials - trials // 6


def test_what_trains_for_a_file_is_tried_where_others_are_and_costs_nothing(resnet20: ModelProfile) -> None:
    spaces = of_methods("alcn", "qat")
    assert pipeline.plan(24, spaces, "weight_bytes").text().endswith("; every sixth tries qat")
    assert pipeline.plan(12, spaces, "weight_bytes").text().endswith("; too few to try qat")
    alone_text = pipeline.plan(24, of_methods("qat"), "weight_bytes").text()
    assert alone_text == "24 trials: proposed by the sampler"
    tried: list[ac.Attempt] = []
    for number in range(1, 7):
        family = alone(resnet20, left=25 - number, attempts=tuple(tried))
        move = pipeline.guided(family, spaces)
        assert move.params["method"] == ("qat" if number == 6 else "alcn")
        tried.append(attempt(number, 0, 0.8, params=move.params, saved=0.2, asked=0.2))
    assert (move.cost, move.asked) == (1.0, 0.0)
    study = optuna.create_study()
    study.enqueue_trial(dict(move.params))
    assert pipeline.suggest(study.ask(), family, spaces).configs == (ac.Qat.Config(),)
    assert pipeline.guided(alone(resnet20, left=24), of_methods("qat")) is None


def test_a_budget_of_one_method_is_all_its_own_and_of_codes_alone_the_samplers() -> None:
    alone = pipeline.plan(24, of_methods("alcn"), "macs")
    assert alone.text() == "24 trials: alcn makes the smallest so far smaller, in ever smaller steps"
    assert not any(alone.explores(ended) for ended in range(24))
    assert pipeline.plan(24, of_methods("lc"), "macs").text() == "24 trials: proposed by the sampler"


def test_guided_trials_turn_back_where_bounds_end(resnet20: ModelProfile) -> None:
    reference, half = ac.Parent(0, 1.0, 0.9, resnet20), ac.Parent(1, 0.5, 0.9, resnet20)
    members = {0: reference, 1: half}
    tried = (attempt(1, 0, 0.5), attempt(2, 1, 0.125, feasible=False, kept=False))
    aimed = pipeline.aim(ac.Family((reference, half), members, tried, left=5))
    assert aimed.parent is half
    assert aimed.cost == pytest.approx(0.25)


def test_what_is_too_costly_for_the_bounds_goes_there_in_few_steps(resnet20: ModelProfile) -> None:
    costs = [pipeline.aim(alone(resnet20, left=20, bound=0.2)).cost]
    for _ in range(2):
        cheapest = ac.Parent(1, costs[-1], 0.9, resnet20)
        reference = ac.Parent(0, 1.0, 0.91, resnet20)
        family = ac.Family((reference, cheapest), {0: reference, 1: cheapest}, left=20, bound=0.2)
        costs.append(pipeline.aim(family).cost)
    assert costs == pytest.approx([0.5, 0.25, 0.19])


def rate_after(profile: ModelProfile, *attempts: ac.Attempt) -> float:
    """The rate of the next trial from the reference, as none of these attempts is on the front."""
    family = alone(profile, left=20, attempts=attempts)
    rate: float = pipeline.guided(family, of_methods("alcn")).params["lr_scale"]
    return rate


def at_rate(
    number: int, parent: int, rate: float, cost: float | None = 0.8, lost: float = 0.01
) -> ac.Attempt:
    params = {"method": "alcn", "lr_scale": rate}
    done = (
        {"saved": 0.2, "lost": lost}
        if cost
        else {"score": None, "kept": False, "failed": True, "diverged": True}
    )
    return attempt(number, parent, cost, params=params, asked=0.2, **done)


def test_rates_from_one_that_diverged_on_are_left(resnet20: ModelProfile) -> None:
    rates = partial(rate_after, resnet20)
    assert rates(at_rate(1, 5, 4.0, None)) == 2.0
    assert rates(at_rate(1, 5, 4.0), at_rate(2, 5, 8.0, None)) == 4.0
    assert rates(at_rate(1, 5, 2.0), at_rate(2, 5, 2.0, None), at_rate(3, 5, 4.0)) == 1.0
    # Never less than what may be suggested.
    assert rates(at_rate(1, 5, 0.25, None), at_rate(2, 5, 4.0)) == 0.2


def test_what_loses_far_too_much_from_the_start_is_tried_at_lower_rates(resnet20: ModelProfile) -> None:
    spaces = of_methods("alcn", "alds")
    at = partial(at_rate, parent=0, cost=0.6)
    family = alone(resnet20, left=12, margin=0.09)
    first = pipeline.guided(family, spaces)
    assert first.params["lr_scale"] == 8.0
    params = dict(first.params) | {"alcn.own": 0.25}
    bad = replace(at(1, rate=8.0, lost=0.2), params=params, asked=first.asked, feasible=False, kept=False)
    again = pipeline.guided(replace(family, attempts=(bad,)), spaces)
    assert again == pipeline.Guided({**params, "lr_scale": 2.0}, first.cost, first.asked)
    assert (
        pipeline.guided(replace(family, attempts=(replace(bad, feasible=True, lost=0.04),)), spaces) == again
    )
    running = (ac.Running(0, again.cost, again.params),)
    # Not twice; the sampler proposes meanwhile.
    assert pipeline.guided(replace(family, attempts=(bad,), running=running), spaces) is None
    better = replace(bad, number=2, params=again.params, lost=0.1)
    assert pipeline.guided(replace(family, attempts=(bad, better)), spaces).params["lr_scale"] == 0.5
    as_bad = replace(better, lost=0.2)
    assert pipeline.guided(replace(family, attempts=(bad, as_bad)), spaces).params["method"] == "alds"


def test_rates_that_others_lost_little_at_are_not_what_is_to_blame(resnet20: ModelProfile) -> None:
    spaces = of_methods("alcn")
    good, bad = at_rate(1, 0, 8.0, 0.8), at_rate(2, 1, 8.0, 0.5, lost=0.05)
    family = alone(resnet20, left=12, margin=0.09, attempts=(good, bad))
    assert pipeline.guided(family, spaces).params["lr_scale"] != 2.0
    assert pipeline.guided(replace(family, attempts=(bad,)), spaces) is not None


# Number, rate and loss of moves of one kind.
LOST_AT = [(1, 8.0, 0.2), (2, 2.0, 0.05), (3, 0.5, 0.06)]


def test_a_lower_rate_that_did_not_help_is_not_tried_from_other_models(resnet20: ModelProfile) -> None:
    first, better, lowest = (at_rate(n, 0, rate, 0.6, lost=lost) for n, rate, lost in LOST_AT)
    next_one = replace(at_rate(4, 2, 2.0, 0.4, lost=0.2), feasible=False, kept=False)
    front = (ac.Parent(0, 1.0, 0.9, resnet20), ac.Parent(2, 0.6, 0.85, resnet20))
    family = ac.Family(front, {0: front[0], 2: front[1]}, left=8, margin=0.09)
    known = pipeline.guided(replace(family, attempts=(first, better, lowest, next_one)), of_methods("alcn"))
    assert known.params["lr_scale"] > 0.5
    open_yet = pipeline.guided(replace(family, attempts=(first, better, next_one)), of_methods("alcn"))
    assert open_yet.params["lr_scale"] == 0.5


def test_a_lower_rate_that_helped_is_kept_to(resnet20: ModelProfile) -> None:
    bad, better = at_rate(1, 0, 8.0, 0.6, lost=0.2), at_rate(2, 0, 0.5, 0.6, lost=0.02)
    front = (ac.Parent(0, 1.0, 0.9, resnet20), ac.Parent(2, 0.6, 0.88, resnet20))
    family = ac.Family(front, {0: front[0], 2: front[1]}, (bad, better), left=10, margin=0.09)
    move = pipeline.guided(family, of_methods("alcn"))
    assert (family.at(move.params["parent"]).number, move.params["lr_scale"]) == (2, 0.5)


def test_what_failed_for_another_reason_says_nothing_of_rates_and_is_not_tried_again_from_there(
    resnet20: ModelProfile,
) -> None:
    params = {"method": "alcn", "lr_scale": 8.0}
    failed = attempt(1, 0, None, score=None, kept=False, params=params, asked=0.2, failed=True)
    after = alone(resnet20, left=8, attempts=(failed,))
    guided = pipeline.guided(after, of_methods("alcn", "alds"))
    assert guided is not None
    assert guided.params["method"] == "alds"
    assert pipeline.guided(after, of_methods("alcn")) is None
    diverged, stopped_early = replace(failed, diverged=True), replace(failed, failed=False)
    again = pipeline.guided(replace(after, attempts=(diverged,)), of_methods("alcn"))
    assert again is not None
    assert again.params["lr_scale"] < 8.0
    assert pipeline.guided(replace(after, attempts=(stopped_early,)), of_methods("alcn")) is not None


def test_alds_proposes_no_budget_below_what_ranks_of_one_leave() -> None:
    torch.manual_seed(0)
    net = nn.Sequential(nn.Linear(12, 32), nn.ReLU(), nn.Linear(32, 3)).eval()
    example = torch.zeros(2, 12)
    small = profile(net, example, analyse(net, example))
    least = {"alds.limit": "budget", "alds.keep": 0.2, "alds.penalty": False, "alds.cascade": 1}
    least |= {"alds.measure": "frobenius", "alds.max_slices": 1, "alds.schemes": "first"}
    least |= {f"alds.rank_cap{i}": 1.0 for i in range(3)}
    batches = [(torch.randn(16, 12), torch.arange(16) % 3)]
    task = ac.Task(lambda: net, batches, val=batches)
    for cost in ("macs", "params"):
        trial: Any = optuna.trial.FixedTrial({**least, "alds.cost": cost})
        config: Any = plugins.search_space("alds").suggest(trial, small)
        ac.Alds(config).start(copy.deepcopy(net), task)  # which refuses budgets that cannot be met


def test_alds_does_not_move_where_factors_of_rank_one_cost_too_much(resnet20: ModelProfile) -> None:
    space = plugins.search_space("alds")
    assert space.move(resnet20, 0.7) is not None
    layers = tuple(replace(layer, rank_one=0.8) for layer in resnet20.layers)
    assert space.move(replace(resnet20, layers=layers), 0.7) is None
    assert space.move(replace(resnet20, layers=layers), 0.9) is not None


def test_gaps_are_filled_where_most_score_is_lost_for_most_cost(resnet20: ModelProfile) -> None:
    front = tuple(
        ac.Parent(number, cost, score, resnet20)
        for number, (cost, score) in enumerate([(1.0, 0.90), (0.5, 0.899), (0.2, 0.85), (0.19, 0.80)])
    )
    members = {parent.number: parent for parent in front}
    beyond = (attempt(9, 3, 0.18, feasible=False, kept=False),)
    aimed = pipeline.aim(ac.Family(front, members, beyond, left=5))
    assert aimed.parent is front[1]
    assert aimed.cost == pytest.approx((0.5 * 0.2) ** 0.5)
    past = pipeline.aim(ac.Family(front, members, beyond, running=(ac.Running(1, 0.31),) * 3, left=5))
    assert past.parent is front[2]
    assert past.cost == pytest.approx(0.8 * 0.2)


def test_what_did_not_help_counts_for_less_and_is_left_when_each_rate_was_tried(
    resnet20: ModelProfile,
) -> None:
    front = (
        ac.Parent(0, 1.0, 0.9, resnet20),
        ac.Parent(1, 0.5, 0.8, resnet20),
        ac.Parent(2, 0.3, 0.75, resnet20),
    )
    tried = [attempt(9, 2, 0.29, feasible=False, kept=False)]
    seen = []
    for number in range(10, 17):
        aimed = pipeline.aim(ac.Family(front, dict(enumerate(front)), tuple(tried), left=5))
        if aimed is None:
            break
        seen.append(aimed.parent.number)
        tried.append(attempt(number, aimed.parent.number, 0.9 * aimed.parent.cost, asked=0.1, kept=False))
    assert seen == [0, 0, 1, 0, 1, 1]


def test_trials_that_run_side_by_side_differ_in_rate_and_method(resnet20: ModelProfile) -> None:
    running: list[ac.Running] = []
    for _ in range(12):
        family = alone(resnet20, left=64 - len(running), running=tuple(running))
        move = pipeline.guided(family, of_methods("alcn", "alds"))
        running.append(ac.Running(0, move.cost, move.params))
    rates = [other.params["lr_scale"] for other in running]
    assert all(2 <= rates.count(rate) <= 6 for rate in set(rates))
    assert len(set(rates)) == 3
    assert {other.params["method"] for other in running} == {"alcn", "alds"}
    assert len({other.cost for other in running}) == len(running)


def test_gaps_that_are_out_of_bounds_are_left(resnet20: ModelProfile) -> None:
    front = tuple(
        ac.Parent(number, cost, score, resnet20)
        for number, (cost, score) in enumerate([(1.0, 0.9), (0.5, 0.7), (0.1, 0.69), (0.05, 0.65)])
    )
    beyond = (attempt(9, 3, 0.049, feasible=False, kept=False),)

    def aimed(**others: Any) -> Any:
        members = {parent.number: parent for parent in front}
        return pipeline.aim(ac.Family(front, members, beyond, left=5, **others))

    assert aimed().parent is front[0]
    assert aimed(bound=0.2).cost == pytest.approx((0.1 * 0.05) ** 0.5)
    assert aimed(bound=0.2, metric="weight_bytes").parent is front[0]


@pytest.mark.parametrize("method", ["alcn", "alds", "autoplastic", "depth", "lc", "qat"])
def test_what_a_space_moves_by_can_be_suggested_whole(method: str, resnet20: ModelProfile) -> None:
    space = plugins.search_space(method)
    configs = []
    for keep in (0.5, 0.8):
        params = space.move(resnet20, keep)
        assert params is not None
        study = optuna.create_study(sampler=optuna.samplers.RandomSampler(seed=0))
        study.enqueue_trial(dict(params))
        trial = study.ask()
        configs.append(space.suggest(trial, resnet20))
        assert plugins.method_of(configs[-1]) == method
        assert {name: trial.params[name] for name in params} == params
    assert configs[0] != configs[1] or method in ("lc", "qat")


def test_guided_trials_ask_for_more_where_a_method_went_less_far_than_it_was_told(
    resnet20: ModelProfile,
) -> None:
    spaces = of_methods("alcn")
    usual = pipeline.guided(alone(resnet20, left=8), spaces)
    shy = attempt(1, 0, 0.8, saved=0.2, asked=0.4)
    asked = pipeline.guided(alone(resnet20, left=8, attempts=(shy,)), spaces)
    assert asked.asked == pytest.approx(2 * usual.asked)
    assert asked.cost == pytest.approx(usual.cost)


def test_where_latency_counts_widths_are_those_that_hardware_computes_at_once(resnet20: ModelProfile) -> None:
    spaces = of_methods("alcn")
    for metric, multiple in (("latency", 8), ("macs", 1), ("weight_bytes", 1)):
        params = pipeline.guided(alone(resnet20, left=8, metric=metric), spaces).params
        assert params["alcn.round_to"] == multiple


def test_models_of_the_front_are_stored_as_codes_once_the_budget_is_used_up(resnet20: ModelProfile) -> None:
    spaces = of_methods("alcn", "lc")
    reference, half = ac.Parent(0, 1.0, 0.9, resnet20), ac.Parent(1, 0.5, 0.89, resnet20)

    def guided(*attempts: ac.Attempt, **others: Any) -> Any:
        usual = {"left": 0, "metric": "weight_bytes", **others}
        family = ac.Family((reference, half), {0: reference, 1: half}, attempts, **usual)
        return pipeline.guided(family, spaces)

    def coded(parent: int, bits: int, kept: bool) -> ac.Attempt:
        asked = -math.log(bits / 32)
        return attempt(9, parent, 0.1, methods=("lc",), asked=asked, trained=False, kept=kept)

    def aimed(move: Any) -> tuple[float, float]:
        assert not move.trained
        return move.params["parent"], move.params["lc.bits"]

    assert guided(left=5).trained
    assert guided(metric="macs") is None
    assert aimed(guided()) == (0.0, 5)
    assert aimed(guided(coding=(0,))) == (1.0, 5)
    assert aimed(guided(coded(0, 5, kept=True))) == (0.0, 4)
    assert aimed(guided(coded(0, 5, kept=True), coded(0, 4, kept=True))) == (0.0, 3)
    assert aimed(guided(coded(0, 5, kept=True), coded(0, 4, kept=False))) == (1.0, 5)
    last = guided(coded(0, 5, kept=False))
    assert (last.params["parent"], last.params["lc.1.scheme"]) == (0.0, "half")
    assert aimed(guided(coded(0, 5, kept=False), coded(0, 16, kept=False))) == (1.0, 5)
    every = [coded(parent, bits, kept=True) for parent in (0, 1) for bits in (5, 4, 3)]
    assert guided(*every) is None


def test_from_a_quarter_of_the_budget_on_what_comes_to_the_front_is_stored_as_codes(
    resnet20: ModelProfile,
) -> None:
    spaces, budget = of_methods("alcn", "lc"), 12
    front = tuple(ac.Parent(n, 0.5**n, 0.9 - 0.01 * n, resnet20) for n in range(budget))
    ended: list[ac.Attempt] = []
    coded: list[tuple[int, list[tuple[int, float]]]] = []
    for trained in range(budget):
        present = front[: trained + 1]
        early: list[tuple[int, float]] = []
        while True:
            kept = {parent.number: parent for parent in present}
            family = ac.Family(present, kept, tuple(ended), left=budget - trained, metric="bytes")
            move = pipeline.guided(family, spaces)
            if move.trained:
                break
            early.append((family.at(move.params["parent"]).number, move.params["lc.bits"]))
            codes = {"methods": ("lc",), "asked": 2.0, "trained": False}
            ended.append(attempt(100 + len(ended), early[-1][0], 0.1, **codes))
        coded.append((trained, early))
        ended.append(attempt(trained + 1, trained, 0.5 ** (trained + 1)))

    def each(*numbers: int) -> list[tuple[int, float]]:
        return [(number, bits) for number in numbers for bits in (5, 4, 3)]

    assert coded[:3] == [(0, []), (1, []), (2, [])]
    assert coded[3:] == [(3, each(0, 1, 2, 3)), *((n, each(n)) for n in range(4, budget))]


def test_the_sampler_takes_over_where_two_trials_in_a_row_had_no_result(resnet20: ModelProfile) -> None:
    failed = tuple(attempt(n, 0, None, score=None, kept=False, feasible=False) for n in (1, 2))
    assert pipeline.guided(alone(resnet20, left=8, attempts=failed), of_methods("alcn")) is None


def test_a_space_that_cannot_say_how_to_move_is_named(resnet20: ModelProfile) -> None:
    def move(profile: ModelProfile, keep: float) -> dict[str, float]:
        raise KeyError("width")

    with pytest.raises(
        ac.UsageError, match=r"^space 'mine' must say by move\(profile, keep\) .* KeyError: 'width'$"
    ):
        pipeline.guided(alone(resnet20, left=8), {"mine": SearchSpace(nothing, move)})


def test_where_a_trial_did_not_help_the_other_rates_are_tried_and_what_lost_least_is_kept(
    resnet20: ModelProfile,
) -> None:
    rates, tried = [], []
    for number, lost in enumerate((0.03, 0.01, 0.02), start=1):
        rates.append(rate_after(resnet20, *tried))
        tried.append(at_rate(number, 0, rates[-1], lost=lost))
    assert rates == [8.0, 4.0, 2.0]
    elsewhere = (replace(ended, parent=5) for ended in tried)
    assert rate_after(resnet20, *elsewhere) == 4.0


def test_trials_from_different_models_say_nothing_of_their_rates(resnet20: ModelProfile) -> None:
    easy, hard = at_rate(1, 5, 4.0, lost=0.0), at_rate(2, 6, 8.0, lost=0.1)
    assert rate_after(resnet20, easy, hard) == 8.0


def test_depth_proposes_disjoint_cuts_that_can_be_bridged(resnet20: ModelProfile) -> None:
    suggest = plugins.search_space("depth").suggest
    study = optuna.create_study(sampler=optuna.samplers.RandomSampler(seed=0))
    seen, heads, choices = set(), set(), set()
    for _ in range(50):
        trial = study.ask()
        config = suggest(trial, resnet20)
        choices.add(trial.params["depth.choose"])
        assert config.cuts
        assert all(b in resnet20.cut_points[a].partners for a, b in config.cuts)
        seen.add(len(config.cuts))
        heads.add((config.freeze, config.head_width > 0))
    assert seen == {1, 2, 3}
    assert choices == {"blocks", "ends"}
    # A head of its own comes with a frozen backbone.
    assert heads == {("none", False), ("backbone", True)}


@pytest.mark.parametrize(
    ("count", "kept", "cuts"),
    [
        # Stage by stage the same MACs, but four times the parameters.
        (1, "first", ((2, 3),)),
        (3, "first", ((1, 3), (5, 6))),
        (3, "last", ((0, 2), (4, 5))),
    ],
)
def test_depth_drops_blocks_that_cost_most_for_each_parameter_and_keeps_every_stage(
    resnet20: ModelProfile, count: int, kept: str, cuts: tuple[tuple[int, int], ...]
) -> None:
    fixed = {"depth.choose": "blocks", "depth.drop": count, "depth.kept": kept}
    fixed |= {"depth.freeze": False, "depth.translator": "linear", "depth.refine_steps": 0}
    trial = optuna.trial.FixedTrial(fixed)
    assert plugins.search_space("depth").suggest(trial, resnet20).cuts == cuts


def test_alds_proposes_budgets_that_can_be_met() -> None:
    layers = (
        LayerProfile("a", "Linear", 600, 600, True),
        LayerProfile("b", "Conv2d", 300, 300, False, product=False),
    )
    model = ModelProfile(1000, 900, (), layers=layers)
    study = optuna.create_study(sampler=optuna.samplers.RandomSampler(seed=0))
    configs = [plugins.search_space("alds").suggest(study.ask(), model) for _ in range(30)]
    assert {config.epsilon > 0 for config in configs} == {False, True}
    for config in (config for config in configs if not config.epsilon):
        rest = {"params": 400 / 1000, "macs": 300 / 900}[config.cost]
        assert rest + 0.2 * (1 - rest) <= config.keep <= rest + 0.9 * (1 - rest)


def test_alds_counts_parameters_where_no_layer_with_macs_can_be_two() -> None:
    layers = (LayerProfile("e", "Embedding", 600, 0, True), LayerProfile("r.w", "LSTM", 300, 900, False))
    model = ModelProfile(1000, 900, (), layers=layers)
    space = plugins.search_space("alds")
    study = optuna.create_study(sampler=optuna.samplers.RandomSampler(seed=0))
    configs = [space.suggest(study.ask(), model) for _ in range(10)]
    assert {config.cost for config in configs} == {"params"}
    move = space.move(model, 0.5)
    assert move["alds.cost"] == "params"
    assert move["alds.keep"] == pytest.approx(1 - 0.5 / 0.9)


@pytest.mark.parametrize(("method", "param", "values"), [
    ("depth", "depth.translator", KINDS),
    ("alds", "alds.measure", MEASURES),
])  # fmt: skip
def test_a_space_offers_every_kind_that_its_method_knows(
    method: str, param: str, values: tuple[str, ...], resnet20: ModelProfile
) -> None:
    trial = optuna.create_study(sampler=optuna.samplers.RandomSampler(seed=0)).ask()
    plugins.search_space(method).suggest(trial, resnet20)
    assert trial.distributions[param] == optuna.distributions.CategoricalDistribution(values)


def test_the_slopes_that_are_drawn_stay_in_range(resnet20: ModelProfile) -> None:
    for share in (-0.5, 0.5):
        for ratio in (0.1, 0.95):
            fixed = {"alcn.initial_ratio": ratio, "alcn.slope_share": share, "alcn.cost": "macs"}
            fixed |= {"alcn.round_to": 1, "alcn.lambda_sparse": 0.1, "alcn.lambda_ratio": 0.1}
            fixed["alcn.held"] = True
            config = plugins.search_space("alcn").suggest(optuna.trial.FixedTrial(fixed), resnet20)
            assert config.ratio_slope == pytest.approx(share * 2 * min(ratio - 0.05, 1 - ratio))
            assert config.budget == pytest.approx(ratio**2)


def shallow(trial: optuna.Trial, profile: ModelProfile) -> object:
    return ac.Depth.Config()


def narrow(trial: optuna.Trial, profile: ModelProfile) -> object:
    return ac.Alcn.Config(initial_ratio=trial.suggest_float("narrow.ratio", 0.2, 0.3))


def begun(trial: optuna.Trial, profile: ModelProfile) -> object:
    return narrow(trial, profile)


begun.move = lambda profile, keep: {"narrow.ratio": keep}  # type: ignore[attr-defined]


class Sized:
    """A space with a setting of its own."""

    def __init__(self, most: float) -> None:
        self.most = most

    def __call__(self, trial: optuna.Trial, profile: ModelProfile) -> object:
        return ac.Alcn.Config(initial_ratio=trial.suggest_float("ratio", 0.2, self.most))


def sized(trial: optuna.Trial, profile: ModelProfile, most: float) -> object:
    return Sized(most)(trial, profile)


MINE = "import autocompress as ac\ndef suggest(trial, profile):\n    return ac.Alcn.Config()\n"
# The working folder comes first, as for a console script of ours.
PROGRAM = """
import json, os, sys
sys.path.insert(0, "")
from autocompress import plugins
own = [plugins.search_space(place).module for place in ("search_spaces.mine", "search_spaces/mine.py")]
files = [os.path.abspath(module.__file__) for module in own]
print(json.dumps([sorted(plugins.search_spaces()), files, callable(plugins.pipeline().suggest)]))
"""


def test_a_function_is_a_space_and_may_say_how_to_move(resnet20: ModelProfile) -> None:
    assert plugins.search_space(narrow) == SearchSpace(narrow)
    assert plugins.search_space(begun).move(resnet20, 0.25) == {"narrow.ratio": 0.25}
    guided = pipeline.guided(alone(resnet20, left=8), {"begun": plugins.search_space(begun)})
    assert guided.params["narrow.ratio"] == pytest.approx(guided.cost)


@pytest.mark.parametrize(("space", "name"), [
    (narrow, "narrow"),
    (partial(sized, most=0.3), "sized"),
    (Sized(0.3), "Sized"),
    ("path/to/own.py", "own"),
    ("package.space", "package.space"),
])  # fmt: skip
def test_a_space_is_called_by_its_name(space: str | Callable[..., object], name: str) -> None:
    assert plugins.space_name(space) == name


@pytest.mark.parametrize(("text", "message"), [
    ("other = 3", "space '{}' must define suggest(trial, profile) but does not."),
    ("suggest = 3", "space '{}' must be called as suggest(trial, profile) but: 3 is not a callable object."),
    (
        "def suggest(trial): pass",
        "space '{}' must be called as suggest(trial, profile) but: too many positional arguments.",
    ),
    ("1 / 0", "module '{}' must be importable but: ZeroDivisionError: division by zero"),
])  # fmt: skip
def test_a_space_that_cannot_be_called_is_refused_before_anything_is_trained(
    text: str, message: str, tmp_path: Path
) -> None:
    file = tmp_path / "own.py"
    file.write_text(text)
    with pytest.raises(ac.UsageError) as refusal:
        plugins.search_space(str(file))
    assert str(refusal.value) == message.format(file)


def test_a_folder_of_the_same_name_hides_no_built_in_space(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "search_spaces").mkdir()
    for name in ("__init__.py", "alcn.py", "pipeline.py"):
        (tmp_path / "search_spaces" / name).write_text("raise RuntimeError('the wrong one')\n")
    (tmp_path / "search_spaces" / "__init__.py").write_text("")
    (tmp_path / "search_spaces" / "mine.py").write_text(MINE)
    done = subprocess.run(
        [sys.executable, "-c", PROGRAM], capture_output=True, text=True, check=False, cwd=tmp_path
    )
    assert done.returncode == 0, done.stderr
    assert json.loads(done.stdout) == [
        ["alcn", "alds", "autoplastic", "depth", "lc", "qat"],
        [str(tmp_path / "search_spaces" / "mine.py")] * 2,
        True,
    ]
