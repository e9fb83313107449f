"""Pipelines of methods, and what the spaces of depth propose."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Callable
from functools import partial
from pathlib import Path

import optuna
import pytest
import torch

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


def test_pipelines_go_from_structure_to_storage() -> None:
    spaces = of_methods("alcn", "depth") | {"mine": SearchSpace(nothing)}
    assert list(pipeline.pipelines(spaces)) == ["alcn", "depth", "depth+alcn", "mine"]
    assert pipeline.pipelines({"alcn": spaces["alcn"]}) == {"alcn": ("alcn",)}
    names = pipeline.pipelines(of_methods("alcn", "depth", "alds", "lc"))
    assert len(names) == 4 + 6
    assert {"depth+alds", "depth+lc", "alcn+alds", "alcn+lc", "alds+lc"} <= names.keys()


def test_a_space_of_ones_own_may_return_a_sequence_and_have_any_name(resnet20: ModelProfile) -> None:
    def space(trial: optuna.Trial, profile: ModelProfile) -> tuple[object, ...]:
        return ac.Depth.Config(), ac.Alcn.Config(initial_ratio=trial.suggest_float("mine.ratio", 0.2, 0.5))

    study = optuna.create_study(sampler=optuna.samplers.RandomSampler(seed=0))
    proposal = pipeline.suggest(study.ask(), resnet20, {"a+b.py": SearchSpace(space)})
    assert [plugins.method_of(config) for config in proposal.configs] == ["depth", "alcn"]


def test_every_proposal_has_the_stages_of_its_name(resnet20: ModelProfile) -> None:
    spaces = of_methods("alcn", "depth")
    study = optuna.create_study(sampler=optuna.samplers.RandomSampler(seed=0))
    for _ in range(20):
        trial = study.ask()
        proposal = pipeline.suggest(trial, resnet20, spaces)
        names = [plugins.method_of(config) for config in proposal.configs]
        assert "+".join(names) == trial.params["method"]
        assert 0.3 <= proposal.distill_weight <= 0.9


def test_the_first_trials_go_through_all_pipelines_in_turn(resnet20: ModelProfile) -> None:
    spaces = of_methods("alcn", "depth")
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
    spaces = of_methods("depth")
    assert len(pipeline.starts(resnet20, spaces, 1)) == 1
    assert len(pipeline.starts(resnet20, spaces, 100)) == 4
    both = spaces | of_methods("alcn")
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
            config = plugins.search_space("alcn").suggest(optuna.trial.FixedTrial(fixed), resnet20)
            assert config.ratio_slope == pytest.approx(share * 2 * min(ratio - 0.05, 1 - ratio))


def shallow(trial: optuna.Trial, profile: ModelProfile) -> object:
    return ac.Depth.Config()


def narrow(trial: optuna.Trial, profile: ModelProfile) -> object:
    return ac.Alcn.Config(initial_ratio=trial.suggest_float("narrow.ratio", 0.2, 0.3))


def begun(trial: optuna.Trial, profile: ModelProfile) -> object:
    return narrow(trial, profile)


begun.starts = lambda profile: [{"narrow.ratio": 0.25}]  # type: ignore[attr-defined]


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


def test_a_function_is_a_space_and_may_say_what_to_start_with(resnet20: ModelProfile) -> None:
    assert plugins.search_space(narrow) == SearchSpace(narrow)
    first = pipeline.starts(resnet20, {"begun": plugins.search_space(begun)}, 2)
    assert [params["narrow.ratio"] for params in first] == [0.25]


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
        ["alcn", "alds", "autoplastic", "depth", "lc"],
        [str(tmp_path / "search_spaces" / "mine.py")] * 2,
        True,
    ]
