"""Layers that are to stay: how they are named, and what stays with them."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence

import pytest
import torch
from torch import Tensor, nn

from autocompress.errors import SettingsError, TaskError
from autocompress.task.limits import Limits, check_limits, check_something_left, settle


class Block(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.conv, self.norm, self.act = nn.Conv2d(4, 4, 3, padding=1), nn.BatchNorm2d(4), nn.ReLU()

    def forward(self, x: Tensor) -> Tensor:
        return x + self.act(self.norm(self.conv(x)))


class Small(nn.Conv2d):
    """A convolution of a class of the user's own."""


class Net(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.stem = Small(3, 4, 1)
        self.layer1, self.layer2 = nn.Sequential(Block(), Block()), nn.Sequential(Block())
        self.scale, self.fc = nn.Parameter(torch.ones(4)), nn.Linear(4, 2)

    def forward(self, x: Tensor) -> Tensor:
        return self.fc(self.layer2(self.layer1(self.stem(x))).mean((2, 3)) * self.scale)


class Tied(nn.Module):
    """An embedding whose weight makes the outputs as well."""

    def __init__(self) -> None:
        super().__init__()
        self.embed, self.body, self.head = nn.Embedding(9, 6), nn.Linear(6, 6), nn.Linear(6, 9)
        self.head.weight = self.embed.weight

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.body(self.embed(x).mean(1)))


EVERY = [name for name, _ in Net().named_parameters()]


def staying(limits: Limits, model: nn.Module) -> list[str]:
    return [name for name, _ in model.named_parameters() if limits.why_tensor(name) is not None]


@pytest.mark.parametrize(
    ("exclude", "prefixes"),
    [
        (["fc"], ["fc."]),
        (["layer1"], ["layer1."]),
        (["layer1.*"], ["layer1."]),
        (["layer?.0.conv", "scale"], ["layer1.0.conv.", "scale", "layer2.0.conv."]),
        (["BatchNorm2d"], ["layer1.0.norm.", "layer1.1.norm.", "layer2.0.norm."]),
        (["Block"], ["layer1.", "layer2."]),
        # A class is also named by those that it is derived from.
        (["Conv2d"], ["stem.", "layer1.0.conv.", "layer1.1.conv.", "layer2.0.conv."]),
        (["Small"], ["stem."]),
        (["*.bias"], [name for name in EVERY if name.endswith(".bias")]),
        (["Net"], [""]),
    ],
)
def test_layers_are_named_by_module_pattern_or_class(exclude: Sequence[str], prefixes: Sequence[str]) -> None:
    expected = [name for name in EVERY if any(name.startswith(prefix) for prefix in prefixes)]
    assert staying(settle(Net(), exclude), Net()) == expected


def test_the_pattern_is_the_reason() -> None:
    limits = settle(Net(), ["layer1.*", "layer1.0"])
    assert limits.why_layer("layer1.0.conv") == "excluded by 'layer1.*'"
    assert limits.why_layer("fc") is None


def test_what_stands_in_a_layers_place_stays_too() -> None:
    limits = settle(Net(), ["fc"], {"stem": 0.5})
    assert limits.why_tensor("fc.0.weight") == "excluded by 'fc'"
    assert limits.why_tensor("fc2.weight") is None
    assert limits.share("stem.1") == 0.5


@pytest.mark.parametrize(
    ("exclude", "message"),
    [
        (["layer3"], r"'layer3' names none \(did you mean 'layer[12]' or "),
        (["fcc.*"], r"'fcc.\*' names none \(did you mean 'fc' or "),
        (["Conv3d"], r"'Conv3d' names none \(did you mean 'Conv2d' or "),
        (["layer1.0.act"], "'layer1.0.act' names none that has a parameter or a buffer"),
        (["ReLU"], "'ReLU' names none that has a parameter or a buffer"),
        (["stem", ""], "'' names none"),
    ],
)
def test_a_pattern_that_names_nothing_is_refused_with_the_nearest_names(
    exclude: Sequence[str], message: str
) -> None:
    with pytest.raises(SettingsError, match=f"^exclude must name layers of the model but {message}"):
        settle(Net(), exclude)
    with pytest.raises(SettingsError, match=f"^at_least must name layers of the model but {message}"):
        settle(Net(), at_least=dict.fromkeys(exclude, 0.5))


@pytest.mark.parametrize(
    ("exclude", "at_least", "message"),
    [
        ("fc", {}, "exclude must be a list of names, patterns or classes but got 'fc'."),
        ([3], {}, "exclude must be a list of names, patterns or classes but got [3]."),
        ([], ["fc"], "at_least must map names, patterns or classes to shares but got ['fc']."),
        ([], {"fc": 1.5}, "at_least must be in [0, 1] but got 1.5 for 'fc'."),
        ([], {"fc": -0.1}, "at_least must be in [0, 1] but got -0.1 for 'fc'."),
        ([], {"fc": float("nan")}, "at_least must be in [0, 1] but got nan for 'fc'."),
        ([], {"fc": "half"}, "at_least must be in [0, 1] but got 'half' for 'fc'."),
    ],
)
def test_what_no_limits_can_be_made_of_is_refused(exclude: object, at_least: object, message: str) -> None:
    with pytest.raises(SettingsError, match=re.escape(message)):
        check_limits(exclude, at_least)


def test_what_shares_a_tensor_with_what_stays_stays_too() -> None:
    limits = settle(Tied(), ["embed"])
    assert limits.why_tensor("head.weight") == "it is shared with 'embed.weight': excluded by 'embed'"
    assert limits.why_layer("head") is not None
    assert limits.why_tensor("head.bias") is None
    assert limits.why_layer("body") is None
    assert limits.excludes("head.weight")
    assert not limits.excludes("head.bias")
    assert settle(Tied(), at_least={"embed": 0.5}).at_least == {"embed": 0.5, "head": 0.5}


def test_a_module_that_goes_by_two_names_stays_under_both() -> None:
    model = Net()
    model.layer2 = model.layer1
    limits = settle(model, ["layer2.1"])
    assert limits.why_layer("layer1.1.conv") is not None
    assert limits.why_layer("layer1.0.conv") is None


def test_frozen_parameters_stay_with_all_that_is_frozen_around_them() -> None:
    model = Net()
    model.layer1.requires_grad_(False)
    model.fc.bias.requires_grad_(False)
    limits = settle(model)
    reason = "its parameters are frozen (requires_grad=False)"
    inside = ["", ".0", ".0.conv", ".0.norm", ".1", ".1.conv", ".1.norm"]
    assert dict(limits.modules) == {f"layer1{name}": reason for name in inside}
    assert dict(limits.tensors) == {"fc.bias": reason}
    assert limits.why_layer("fc") == reason
    assert limits.why_tensor("fc.weight") is None
    assert not limits.excludes("layer1.0.conv.weight")


def test_numbers_that_cannot_train_are_not_frozen() -> None:
    model = Net()
    model.places = nn.Parameter(torch.arange(4), requires_grad=False)
    assert settle(model) == Limits()


class HeldByItself(Net):
    """Keeps a normalisation in evaluation, as one with batches too small for statistics."""

    def train(self, mode: bool = True) -> HeldByItself:
        super().train(mode)
        self.layer1[0].norm.eval()
        return self


def in_evaluation() -> nn.Module:
    model = Net()
    model.layer1[0].norm.eval()
    return model


def frozen_affine() -> nn.Module:
    model = Net()
    model.layer1[0].norm.requires_grad_(False)
    return model


@pytest.mark.parametrize("make", [HeldByItself, in_evaluation, frozen_affine])
def test_statistics_that_are_kept_in_evaluation_or_frozen_are_steady(make: type[nn.Module]) -> None:
    model = make()
    modes = [module.training for module in model.modules()]
    assert settle(model).steady == {"layer1.0.norm"}
    assert [module.training for module in model.modules()] == modes


def test_a_model_that_is_made_in_evaluation_says_nothing_of_its_layers() -> None:
    assert settle(Net().eval()).steady == frozenset()


@pytest.mark.parametrize(
    ("at_least", "shares"),
    [
        ({"fc": 0.5}, {"fc": 0.5}),
        ({"layer2": 0.25}, {"layer2.0.conv": 0.25, "layer2.0.norm": 0.25}),
        ({"Conv2d": 0.1, "layer?.0.conv": 0.5, "layer1.1.conv": 0}, None),
        ({"fc": 0.0}, {}),
    ],
)
def test_of_several_shares_the_largest_counts(
    at_least: Mapping[str, float], shares: Mapping[str, float] | None
) -> None:
    convolutions = {"stem": 0.1, "layer1.1.conv": 0.1, "layer1.0.conv": 0.5, "layer2.0.conv": 0.5}
    assert settle(Net(), at_least=at_least).at_least == (convolutions if shares is None else shares)


def test_units_are_counted_against_those_that_there_were() -> None:
    limits = settle(nn.Sequential(nn.Linear(8, 12)), at_least={"0": 0.5})
    assert limits.least_units("0.weight", 0, 12, 12) == 6
    # Of a layer that has lost a quarter of its units, a part of them.
    assert limits.least_units("0.weight", 0, 9, 3) == 2
    assert limits.least_units("0.weight", 0, 5, 5) == 5
    # Two factors in its place have other units.
    assert limits.least_units("0.1.weight", 0, 12, 12) == 12
    assert limits.least_units("1.weight", 0, 12, 12) == 1
    assert limits.least_rank("0.weight", (12, 8), 8) == 4
    assert limits.least_rank("0.weight", (9, 4), 4) == 4


def test_a_model_of_which_nothing_trains_is_refused() -> None:
    model = Net().requires_grad_(False)
    with pytest.raises(
        TaskError, match=r"^the model must have a parameter that trains but all \d+ are frozen"
    ):
        check_something_left(model, settle(model))


def test_limits_that_leave_nothing_are_refused() -> None:
    model = Net()
    model.layer1.requires_grad_(False)
    check_something_left(model, settle(model, ["layer2", "stem", "scale"]))
    with pytest.raises(SettingsError, match=r"^exclude must leave something to compress but names all "):
        check_something_left(model, settle(model, ["layer2", "stem", "scale", "fc"]))
