"""What is excluded, frozen or to stay in part does so by every method, on children of children too."""

from __future__ import annotations

import copy
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import pytest
import torch
from torch import Tensor, nn

import autocompress as ac
from autocompress.errors import SettingsError, TaskError, TrialError
from autocompress.methods.base import Finished, Method, Session
from autocompress.models.autoplastic import MixingBlock
from autocompress.surgery import KeepChannels, KeptPositions
from autocompress.task.limits import settle
from tests.conftest import image_batches


class Net(nn.Module):
    """A branch of convolutions, then one that halves the image, and two linear layers."""

    def __init__(self) -> None:
        super().__init__()
        self.stem, self.norm = nn.Conv2d(3, 12, 3, padding=1), nn.BatchNorm2d(12)
        self.wide, self.narrow = nn.Conv2d(12, 16, 3, padding=1), nn.Conv2d(16, 12, 3, padding=1)
        self.down = nn.Conv2d(12, 16, 3, stride=2, padding=1)
        self.down_norm = nn.BatchNorm2d(16)
        self.hidden, self.head = nn.Linear(16, 24), nn.Linear(24, 5)

    def forward(self, x: Tensor) -> Tensor:
        x = torch.relu(self.norm(self.stem(x)))
        x = x + self.narrow(torch.relu(self.wide(x)))
        x = torch.relu(self.down_norm(self.down(x)))
        return self.head(torch.relu(self.hidden(x.mean((2, 3)))))


# Settings that would change every layer that they may.
HARD: dict[str, Callable[[], Method]] = {
    "alcn": lambda: ac.Alcn(initial_ratio=0.3),
    "alds": lambda: ac.Alds(keep=0.5),
    "lc": lambda: ac.Lc(schemes={"*": ac.Codebook(k=2)}, steps=4),
    # All gates start shut, so that all goes that may.
    "autoplastic": lambda: ac.Autoplastic(p_init=0.05, c_init=0.05, add_attention=True),
    "depth": lambda: ac.Depth(cuts=((2, 3),)),  # the layer `hidden`
}


@pytest.fixture
def task() -> ac.Task:
    batches = image_batches()
    return ac.Task(
        model=Net,
        train=batches,
        val=image_batches(shuffle=False),
        recipe=ac.Recipe(epochs=2),
        input=batches.spec,
    )


def compress(task: ac.Task, method: Method, **limits: Any) -> nn.Module:
    torch.manual_seed(0)
    return ac.compress(task.model(), task, method, **limits).model


def shapes(model: nn.Module) -> dict[str, torch.Size]:
    return {name: p.shape for name, p in model.named_parameters()}


@pytest.mark.parametrize("method", sorted(HARD))
@pytest.mark.parametrize("excluded", [("stem", "down*"), ("wide", "BatchNorm2d")])
def test_excluded_layers_are_as_they_were_and_others_are_not(
    method: str, excluded: tuple[str, ...], task: ac.Task
) -> None:
    model = compress(task, HARD[method](), exclude=list(excluded))
    plain, layers = task.model(), dict(model.named_modules())
    limits = settle(plain, excluded)
    staying = [n for n, layer in plain.named_modules() if limits.why_layer(n) and list(layer.parameters())]
    for name in staying:
        before, after = plain.get_submodule(name), layers[name]
        assert type(after) is type(before)
        assert shapes(after) == shapes(before)
        assert after.weight.dim() == 1 or after.weight.unique().numel() > 0.9 * before.weight.numel()
    assert len(staying) > 2
    assert shapes(model) != shapes(plain)


@pytest.mark.parametrize("method", sorted(HARD))
def test_frozen_layers_are_as_they_were_to_the_last_digit(method: str, task: ac.Task) -> None:
    def make() -> nn.Module:
        torch.manual_seed(3)
        model = Net()
        for frozen in (model.stem, model.norm, model.wide):
            frozen.requires_grad_(False)
        return model

    frozen = {name: p for name, p in make().named_parameters() if not p.requires_grad}
    model = compress(replace(task, model=make), HARD[method]())
    after = {name: p for name, p in model.named_parameters() if not p.requires_grad}
    assert after.keys() == frozen.keys()
    assert all(torch.equal(after[name], p) for name, p in frozen.items())
    # Statistics of what is frozen belong to it.
    assert torch.equal(model.get_buffer("norm.running_mean"), make().norm.running_mean)
    assert not torch.equal(model.get_buffer("down_norm.running_mean"), make().down_norm.running_mean)


class KeptInEvaluation(Net):
    """A user's own way to keep statistics."""

    def train(self, mode: bool = True) -> KeptInEvaluation:
        super().train(mode)
        self.norm.eval()
        return self


def in_evaluation() -> Net:
    model = Net()
    model.norm.eval()
    return model


@pytest.mark.parametrize("make", [KeptInEvaluation, in_evaluation])
@pytest.mark.parametrize("method", ["lc", "alds", "depth"])
def test_statistics_that_are_kept_in_evaluation_stay(
    method: str, make: Callable[[], Net], task: ac.Task
) -> None:
    def with_statistics() -> Net:
        model = make()
        model.norm.running_mean.fill_(0.25)
        return model

    model = compress(replace(task, model=with_statistics), HARD[method]())
    assert torch.equal(model.get_buffer("norm.running_mean"), torch.full((12,), 0.25))
    assert not torch.equal(model.get_buffer("down_norm.running_mean"), torch.zeros(16))


def test_channels_of_what_is_kept_in_evaluation_may_go(task: ac.Task) -> None:
    model = compress(replace(task, model=KeptInEvaluation), HARD["alcn"]())
    assert len(model.get_buffer("norm.running_mean")) < 12


@pytest.mark.parametrize(
    "method",
    [
        ac.Alcn(initial_ratio=0.2, lambda_sparse=1.0),
        ac.Alcn(initial_ratio=0.2, round_to=8, budget=0.1),
        ac.Autoplastic(p_init=0.05, c_init=0.05),
        ac.Autoplastic(rule="published", p_init=0.05, c_init=0.05),
    ],
    ids=["alcn", "alcn-rounded", "autoplastic", "autoplastic-published"],
)
def test_a_share_of_the_channels_stays_however_often_they_are_cut(method: Method, task: ac.Task) -> None:
    model = compress(task, method, at_least={"stem": 0.75, "down_norm": 0.5, "wide": 1.0})
    widths = {n: len(model.get_parameter(f"{n}.weight")) for n in ("stem", "down", "wide", "hidden")}
    assert widths["stem"] >= 9
    assert widths["down"] >= 8
    assert widths["wide"] == 16
    assert widths["hidden"] <= 8


@pytest.mark.parametrize("excluded", [(), ("wide",)])
def test_layers_whose_weights_norms_compute_keep_their_share(
    excluded: tuple[str, ...], task: ac.Task
) -> None:
    """Norms are folded first; the names that limits go by are then those of the plain weights."""

    def normed() -> nn.Module:
        model = Net()
        for layer in (model.stem, model.down, model.wide):
            nn.utils.parametrizations.weight_norm(layer)
        return model

    limits: dict[str, Any] = {"at_least": {"stem": 0.75, "down": 0.5}, "exclude": excluded}
    model = compress(replace(task, model=normed), ac.Alcn(initial_ratio=0.2, lambda_sparse=1.0), **limits)
    widths = {n: len(model.get_parameter(f"{n}.weight")) for n in ("stem", "down", "wide", "hidden")}
    # What an excluded layer reads is coupled with it, and stays whole.
    assert widths["stem"] == 12 if excluded else 9 <= widths["stem"] < 12
    assert 8 <= widths["down"] < 16
    assert widths["wide"] == 16 if excluded else widths["wide"] < 8
    assert widths["hidden"] <= 8


def test_a_child_of_a_child_keeps_a_share_of_what_the_first_had(task: ac.Task) -> None:
    methods = [ac.Alcn(initial_ratio=0.6), ac.Depth(cuts=((2, 3),)), ac.Alcn(initial_ratio=0.2)]
    model = compress(task, methods, at_least={"stem": 0.5})  # type: ignore[arg-type]
    assert 6 <= len(model.get_parameter("stem.weight")) <= 7
    assert len(model.get_parameter("down.weight")) < 8


def test_a_share_of_the_rank_stays(task: ac.Task) -> None:
    def rank(**limits: Any) -> int:
        method = ac.Alds(keep=0.5, max_slices=1, schemes="first")
        layer = compress(task, method, **limits).get_submodule("narrow")
        return layer[0].out_channels if isinstance(layer, nn.Sequential) else 12

    assert rank() < 7
    assert 7 <= rank(at_least={"narrow": 0.55}) < 12
    # So many ranks cost more than the layer has.
    assert rank(at_least={"narrow": 0.95}) == 12


def test_a_budget_is_of_what_may_change(task: ac.Task) -> None:
    """What must stay would else have to be paid for by the rest, or be too much by itself."""

    def params(model: nn.Module, *names: str) -> int:
        return sum(p.numel() for n, p in model.named_parameters() if n.startswith(names))

    method = ac.Alds(keep=0.5, cost="params", max_slices=1, schemes="first")
    whole = params(task.model(), "")
    excluded = compress(task, method, exclude=["wide", "narrow"])
    staying = params(task.model(), "wide.w", "narrow.w")
    assert 0.4 * (whole - staying) < params(excluded, "") - staying <= 0.5 * (whole - staying)
    kept = compress(task, method, at_least={"wide": 0.6, "narrow": 0.6})
    ranks = 10 * (16 + 12 * 9) + 8 * (12 + 16 * 9)
    assert params(kept, "wide.0", "wide.1.w", "narrow.0", "narrow.1.w") >= ranks
    assert 0.4 * (whole - ranks) < params(kept, "") - ranks <= 0.5 * (whole - ranks)


def test_factors_of_a_layer_of_which_a_share_stays_are_not_cut_further(task: ac.Task) -> None:
    methods = [ac.Alds(keep=0.4, cost="params"), ac.Alcn(initial_ratio=0.2)]
    model = compress(task, methods, at_least={"narrow": 0.1})  # type: ignore[arg-type]
    first = compress(task, methods[0], at_least={"narrow": 0.1})
    factors = {name: p.shape for name, p in first.named_parameters() if name.startswith("narrow.")}
    assert isinstance(first.get_submodule("narrow"), nn.Sequential)
    after = {name: p.shape for name, p in model.named_parameters() if name.startswith("narrow.")}
    assert after["narrow.1.weight"] == factors["narrow.1.weight"]


@pytest.mark.parametrize("limits", [{"exclude": ["down"]}, {"at_least": {"down": 0.01}}])
def test_depth_deletes_no_block_with_a_layer_that_stays(limits: dict[str, Any], task: ac.Task) -> None:
    with pytest.raises(
        TrialError, match=r"^cuts \(0, 3\) cannot be bridged: what lies between must stay, 'down': "
    ):
        compress(task, ac.Depth(cuts=((0, 3),)), **limits)
    with pytest.raises(TrialError, match=r"^head_width must be 0 where a new head cannot be put: "):
        compress(task, ac.Depth(cuts=((0, 1),), head_width=4), exclude=["head"])


class Mixed(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.stem, self.first, self.second = nn.Conv2d(3, 8, 1), MixingBlock(8, 8, 1), MixingBlock(8, 8, 1)
        self.head = nn.Linear(8, 5)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.second(self.first(self.stem(x))).mean((2, 3)))


def test_paths_and_gates_of_an_excluded_mixing_block_stay(task: ac.Task) -> None:
    method = ac.Autoplastic(p_init=0.9, alpha_init=0.97, alpha_threshold=0.3)
    model = compress(replace(task, model=Mixed), method, exclude=["first.mixing.attention.value"])
    layers = {name.rpartition(".")[0] for name, _ in model.named_parameters()}
    assert {"first.mixing.attention.value", "first.mixing.conv.0", "first.mixing.conv_share"} <= layers
    assert "second.mixing.attention.value" not in layers


class Careless(Method):
    """A plug-in that knows no limits: it cuts the first unit of the hidden layer."""

    Config = ac.Depth.Config

    def start(self, model: nn.Module, task: ac.Task) -> Session:
        return CarelessSession(model)


class CarelessSession(Session):
    def __init__(self, model: nn.Module) -> None:
        self.model = model

    def finish(self) -> Finished:
        kept = (KeptPositions.of("hidden.weight", 0, 24, [0]), KeptPositions.of("hidden.bias", 0, 24, [0]))
        cut = KeepChannels((*kept, KeptPositions.of("head.weight", 1, 24, [0])))
        smaller = cut.apply(copy.deepcopy(self.model), torch.zeros(2, 3, 8, 8))
        return Finished(smaller, (cut,), smaller)


def test_a_method_that_knows_no_limits_is_found_out(task: ac.Task) -> None:
    assert compress(task, Careless()).get_submodule("hidden").out_features == 23
    with pytest.raises(
        TrialError,
        match=r"surgery by Careless must leave 'head.weight' as it is \(excluded by 'head'\) but it is cut",
    ):
        compress(task, Careless(), exclude=["head"])


@pytest.mark.parametrize("method", ["alcn", "autoplastic", "depth"])
def test_a_method_that_has_nothing_left_says_so_and_leaves_the_model_as_it_is(
    method: str, task: ac.Task
) -> None:
    with pytest.warns(UserWarning, match="changes nothing: without what is excluded or frozen, "):
        model = compress(task, HARD[method](), exclude=["stem", "wide", "narrow", "down", "hidden"])
    assert shapes(model) == shapes(Net())


@pytest.mark.parametrize(
    ("limits", "error", "message"),
    [
        (
            {"exclude": ["nothing"]},
            SettingsError,
            "exclude must name layers of the model but 'nothing'",
        ),
        ({"exclude": "stem"}, SettingsError, "exclude must be a list of names"),
        ({"at_least": {"stem": 2}}, SettingsError, r"at_least must be in \[0, 1\] but got 2 for 'stem'"),
        ({"exclude": ["*"]}, SettingsError, "exclude must leave something to compress"),
    ],
)
def test_limits_that_cannot_be_are_refused_before_anything_trains(
    limits: dict[str, Any], error: type[Exception], message: str, task: ac.Task
) -> None:
    model = Net()
    before = copy.deepcopy(model.state_dict())
    with pytest.raises(error, match=message):
        ac.compress(model, task, HARD["alcn"](), **limits)
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())


def test_a_model_that_is_frozen_as_a_whole_is_refused(task: ac.Task) -> None:
    with pytest.raises(TaskError, match=r"must have a parameter that trains but all \d+ are frozen"):
        ac.compress(Net().requires_grad_(False), task, HARD["lc"]())
