"""Pipelines of methods, and what the spaces of depth propose."""

from __future__ import annotations

from types import SimpleNamespace

import optuna
import pytest
import torch

from autocompress import plugins
from autocompress.graph import analyse
from autocompress.graph.costs import profile
from autocompress.methods import alcn, depth
from autocompress.models.registry import model_factory
from autocompress.task import LayerProfile, ModelProfile

pipeline = plugins.load_module("search_spaces.pipeline")


@pytest.fixture(scope="module")
def resnet20() -> ModelProfile:
    model = model_factory("resnet20", (3, 32, 32), 10)().eval()
    example = torch.randn(2, 3, 32, 32)
    return profile(model, example, analyse(model, example))


def test_pipelines_go_from_structure_to_storage() -> None:
    spaces = dict.fromkeys(["alcn", "depth", "mine"], lambda trial, found: None)
    assert pipeline.pipelines(spaces) == ["alcn", "depth", "depth+alcn", "mine"]
    assert pipeline.pipelines({"alcn": spaces["alcn"]}) == ["alcn"]
    four = dict.fromkeys(["alcn", "depth", "alds", "lc"], lambda trial, found: None)
    names = pipeline.pipelines(four)
    assert len(names) == 4 + 6
    assert {"depth+alds", "depth+lc", "alcn+alds", "alcn+lc", "alds+lc"} <= set(names)


def test_a_space_of_ones_own_may_return_a_sequence(resnet20: ModelProfile) -> None:
    def space(trial: optuna.Trial, profile: ModelProfile) -> tuple[object, ...]:
        return depth.Config(), alcn.Config(initial_ratio=trial.suggest_float("mine.ratio", 0.2, 0.5))

    study = optuna.create_study(sampler=optuna.samplers.RandomSampler(seed=0))
    proposal = pipeline.suggest(study.ask(), resnet20, {"mine": SimpleNamespace(suggest=space)})
    assert [plugins.method_of(config) for config in proposal.configs] == ["depth", "alcn"]


def test_every_proposal_has_the_stages_of_its_name(resnet20: ModelProfile) -> None:
    spaces = {name: plugins.search_space(name) for name in ("alcn", "depth")}
    study = optuna.create_study(sampler=optuna.samplers.RandomSampler(seed=0))
    for _ in range(20):
        trial = study.ask()
        proposal = pipeline.suggest(trial, resnet20, spaces)
        names = [plugins.method_of(config) for config in proposal.configs]
        assert "+".join(names) == trial.params["method"]
        assert 0.3 <= proposal.distill_weight <= 0.9


def test_the_first_trials_go_through_all_pipelines_in_turn(resnet20: ModelProfile) -> None:
    spaces = {name: plugins.search_space(name) for name in ("alcn", "depth")}
    first = pipeline.starts(resnet20, spaces, 12)
    assert [params["method"] for params in first] == ["alcn", "depth", "depth+alcn"] * 2
    assert [params.get("depth.drop") for params in first] == [None, 3, 3, None, 1, 1]
    study = optuna.create_study(sampler=optuna.samplers.RandomSampler(seed=0))
    for params in first:
        study.enqueue_trial(params)
    for params in first:
        trial = study.ask()
        proposal = pipeline.suggest(trial, resnet20, spaces)
        assert proposal.lr_scale == 1.0
        assert {k: trial.params[k] for k in params} == params


def test_few_trials_of_one_method_begin_with_a_proven_proposal(resnet20: ModelProfile) -> None:
    spaces = {"depth": plugins.search_space("depth")}
    assert len(pipeline.starts(resnet20, spaces, 1)) == 1
    assert len(pipeline.starts(resnet20, spaces, 100)) == 4
    both = spaces | {"alcn": plugins.search_space("alcn")}
    assert [params["method"] for params in pipeline.starts(resnet20, both, 5)] == ["alcn", "depth"]


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
    layers = (LayerProfile("a", "Linear", 600, 600, True), LayerProfile("b", "Linear", 300, 300, False))
    model = ModelProfile(1000, 900, (), layers=layers)
    study = optuna.create_study(sampler=optuna.samplers.RandomSampler(seed=0))
    found = [plugins.search_space("alds").suggest(study.ask(), model) for _ in range(30)]
    assert {config.epsilon > 0 for config in found} == {False, True}
    for config in (one for one in found if not one.epsilon):
        rest = {"params": 400 / 1000, "macs": 300 / 900}[config.cost]
        assert rest + 0.2 * (1 - rest) <= config.keep <= rest + 0.9 * (1 - rest)
