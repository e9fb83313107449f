"""Norms of weights are folded and blocks switched, on every model alike, without a change of outputs."""

from __future__ import annotations

import copy
import json
from collections.abc import Callable
from functools import partial

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.nn.utils import parametrizations, parametrize, prune, spectral_norm, weight_norm

from autocompress.errors import CheckpointError, ProofError, TaskError
from autocompress.graph import analyse
from autocompress.surgery import apply, edits_from_json
from autocompress.surgery.deployed import Deploy
from autocompress.surgery.plain_weights import FoldWeight, PlainLayer
from autocompress.surgery.preparation import described, prepare_model

X = torch.randn(3, 4, 20, generator=torch.Generator().manual_seed(0))


def convolutions(norm: Callable[[nn.Module], nn.Module]) -> nn.Module:
    return nn.Sequential(
        norm(nn.Conv1d(4, 8, 5)),
        nn.ReLU(),
        norm(nn.Conv1d(8, 8, 3)),
        nn.ReLU(),
        nn.Flatten(),
        nn.Linear(112, 3),
    )


NORMS: dict[str, Callable[[nn.Module], nn.Module]] = {
    "weight norm, as a hook": weight_norm,
    "weight norm": parametrizations.weight_norm,
    "weight norm of inputs": partial(parametrizations.weight_norm, dim=1),
    "spectral norm, as a hook": spectral_norm,
    "spectral norm": parametrizations.spectral_norm,
    "pruning mask": partial(prune.random_unstructured, name="weight", amount=0.5),
}
# PyTorch's notice that hooks are the older way.
older = pytest.mark.filterwarnings("ignore:`torch.nn.utils.weight_norm` is deprecated:FutureWarning")


def rebuilt(fresh: nn.Module, edits: tuple[object, ...], model: nn.Module, x: Tensor) -> nn.Module:
    again = apply(fresh, edits_from_json(json.loads(json.dumps([edit.to_json() for edit in edits]))), x)
    again.load_state_dict(model.state_dict())
    return again.eval()


@older
@pytest.mark.parametrize("name", NORMS)
def test_norms_are_folded_into_weights_that_channels_can_be_cut_from(name: str) -> None:
    torch.manual_seed(0)
    model = convolutions(NORMS[name])
    model[2].requires_grad_(False)
    # Spectral norms are as far as training took them.
    for _ in range(3):
        model.train()(X)
    expected = model.eval()(X).detach()
    weight = model[0].weight.detach().clone()
    prepared, edits = prepare_model(model, X)
    norm = name.partition(",")[0].removesuffix(" of inputs")
    assert edits == (FoldWeight("0", "weight", norm), FoldWeight("2", "weight", norm))
    assert described(edits) == f"{norm} folded into 2 weights"
    assert torch.allclose(prepared(X), expected, atol=1e-6)
    assert torch.allclose(prepared[0].weight, weight, atol=1e-6)
    assert type(prepared[0]) is nn.Conv1d
    assert not prepared[0]._forward_pre_hooks
    assert {n: p.requires_grad for n, p in prepared.named_parameters() if n.startswith(("0", "2"))} == {
        "0.weight": True, "0.bias": True, "2.weight": False, "2.bias": False,
    }  # fmt: skip
    assert [group.width for group in analyse(copy.deepcopy(prepared), X).groups] == [8, 8]
    again = rebuilt(convolutions(NORMS[name]), edits, prepared, X)
    assert torch.equal(again(X), prepared(X))
    assert prepare_model(again, X)[1] == ()


@older
def test_a_recurrent_layers_norm_is_folded_too() -> None:
    series = X.mT
    layer = nn.LSTM(4, 6, batch_first=True)
    model = nn.Sequential(weight_norm(weight_norm(layer, "weight_hh_l0"), "weight_ih_l0"))
    expected = model(series)[0].detach()
    prepared, edits = prepare_model(model, series)
    assert {edit.parameter for edit in edits if isinstance(edit, FoldWeight)} == {
        "weight_hh_l0",
        "weight_ih_l0",
    }
    assert torch.allclose(copy.deepcopy(prepared)(series)[0], expected, atol=1e-6)
    with torch.no_grad():
        prepared[0].weight_hh_l0.zero_()
    assert not torch.allclose(prepared(series)[0], expected, atol=1e-3)


class Symmetric(nn.Module):
    def forward(self, weight: Tensor) -> Tensor:
        return weight.triu() + weight.triu(1).mT


def test_parametrizations_of_the_users_own_stay() -> None:
    layer = nn.Linear(20, 20)
    parametrize.register_parametrization(layer, "weight", Symmetric())
    twice = parametrizations.weight_norm(nn.Linear(20, 20))
    parametrize.register_parametrization(twice, "weight", Symmetric())
    model, edits = prepare_model(nn.Sequential(layer, twice), X)
    assert edits == ()
    assert parametrize.is_parametrized(model[0], "weight")


class Standardised(nn.Conv1d):
    def forward(self, x: Tensor) -> Tensor:
        mean, std = self.weight.mean((1, 2), keepdim=True), self.weight.std((1, 2), keepdim=True)
        return F.conv1d(
            x, (self.weight - mean) / std, self.bias, self.stride, self.padding, self.dilation, self.groups
        )


class Attentive(nn.Conv1d):
    """A weight that depends on the input."""

    def forward(self, x: Tensor) -> Tensor:
        return F.conv1d(x, self.weight * x.mean(), self.bias, self.stride, self.padding)


class Normalising(nn.Conv1d):
    """Inputs that are changed before they are convolved."""

    def forward(self, x: Tensor) -> Tensor:
        return F.conv1d(x / x.norm(), self.weight / 2, self.bias, self.stride, self.padding)


class Plain(nn.Conv1d):
    """A forward of its own that convolves with the parameter as it is."""

    def forward(self, x: Tensor) -> Tensor:
        return F.conv1d(x, self.weight, self.bias, self.stride, self.padding)


def test_convolutions_that_standardise_their_weight_become_plain_ones_and_others_stay() -> None:
    torch.manual_seed(0)

    def make() -> nn.Module:
        return nn.Sequential(
            Standardised(4, 8, 3, stride=2, padding=1, groups=2),
            Standardised(8, 6, 3, dilation=2, bias=False),
            Attentive(6, 6, 1), Normalising(6, 6, 1), Plain(6, 6, 1),
        )  # fmt: skip

    model = make().eval()
    model[1].weight.requires_grad_(False)
    expected = model(X).detach()
    prepared, edits = prepare_model(model, X)
    assert edits == (PlainLayer("0"), PlainLayer("1"))
    assert described(edits) == "weight standardisation folded into 2 weights"
    assert [type(layer) for layer in prepared] == [nn.Conv1d, nn.Conv1d, Attentive, Normalising, Plain]
    assert torch.allclose(prepared(X), expected, atol=1e-5)
    assert [prepared[0].weight.requires_grad, prepared[1].weight.requires_grad] == [True, False]
    assert torch.equal(rebuilt(make(), edits, prepared, X)(X), prepared(X))


class Branches(nn.Module):
    """As RepVGG has them: two convolutions and the input itself, which one convolution computes alike."""

    def __init__(self, wrong: float = 0.0) -> None:
        super().__init__()
        self.wide, self.narrow = nn.Conv1d(4, 4, 3, padding=1), nn.Conv1d(4, 4, 1)
        self.wrong, self.merged = wrong, None

    def forward(self, x: Tensor) -> Tensor:
        return self.wide(x) + self.narrow(x) + x if self.merged is None else self.merged(x)

    def reparameterize(self) -> None:
        if self.merged is not None:
            return
        self.merged = nn.Conv1d(4, 4, 3, padding=1)
        self.merged.weight.data = self.wide.weight + F.pad(self.narrow.weight, (1, 1))
        self.merged.weight.data[:, :, 1] += torch.eye(4) + self.wrong
        self.merged.bias.data = self.wide.bias + self.narrow.bias
        del self.wide, self.narrow


class Returning(Branches):
    """The same by a method that gives the merged layer."""

    reparameterize = None

    def fuse(self) -> nn.Module:
        Branches.reparameterize(self)
        return self.merged


class FoldingNorm(nn.Sequential):
    """A batch norm that its method folds, which is no merging of branches."""

    def fuse(self) -> nn.Module:
        return nn.utils.fusion.fuse_conv_bn_eval(self[0], self[1])


class Outer(nn.Module):
    """A block that leaves those within to themselves."""

    def __init__(self) -> None:
        super().__init__()
        self.inner, self.extra = Branches(), nn.Conv1d(4, 4, 1)

    def forward(self, x: Tensor) -> Tensor:
        return self.inner(x) if self.extra is None else self.inner(x) + 0 * self.extra(x)

    def switch_to_deploy(self) -> None:
        self.extra = None


class Unlike(nn.Module):
    """Methods that are called like switches and are none."""

    def __init__(self) -> None:
        super().__init__()
        self.layer = nn.Conv1d(4, 4, 1)

    def fuse(self, other: nn.Module) -> nn.Module:
        return other

    def switch_to_deploy(self) -> None:
        raise NotImplementedError

    def forward(self, x: Tensor) -> Tensor:
        return self.layer(x)


def test_blocks_are_switched_to_the_form_that_they_are_deployed_in() -> None:
    torch.manual_seed(0)

    def make() -> nn.Module:
        return nn.Sequential(
            Branches(), Branches(), Returning(), FoldingNorm(nn.Conv1d(4, 4, 1), nn.BatchNorm1d(4)),
            Outer(), Unlike(),
        )  # fmt: skip

    model = make()
    for parameter in model[1].parameters():
        parameter.requires_grad_(False)
    model.train()(X)
    expected = model.eval()(X).detach()
    prepared, edits = prepare_model(model.train(), X)
    assert edits == (
        Deploy("reparameterize", ("0", "1")), Deploy("fuse", ("2",)), Deploy("switch_to_deploy", ("4",)),
        Deploy("reparameterize", ("4.inner",)),
    )  # fmt: skip
    assert described(edits) == (
        "3 blocks merged by reparameterize(), 1 block merged by fuse(), 1 block merged by switch_to_deploy()"
    )
    assert all(module.training for module in prepared.modules())
    assert torch.allclose(prepared.eval()(X), expected, atol=1e-5)
    assert isinstance(prepared[2], nn.Conv1d)
    assert isinstance(prepared[3][1], nn.BatchNorm1d)
    assert [p.requires_grad for p in prepared[1].parameters()] == [False, False]
    assert all(p.requires_grad for p in prepared[0].parameters())
    assert torch.equal(rebuilt(make(), edits, prepared, X)(X), prepared(X))


def test_a_switch_that_changes_outputs_is_left_alone_and_others_are_not() -> None:
    torch.manual_seed(0)
    model = nn.Sequential(Branches(), Branches(wrong=0.1), Branches())
    expected = model.eval()(X).detach()
    prepared, edits = prepare_model(model, X)
    assert edits == (Deploy("reparameterize", ("0",)), Deploy("reparameterize", ("2",)))
    assert torch.allclose(prepared(X), expected, atol=1e-5)


def test_what_nothing_is_to_be_done_to_is_as_it_was(residual: nn.Module, images: Tensor) -> None:
    before = {name: tensor.clone() for name, tensor in residual.state_dict().items()}
    prepared, edits = prepare_model(residual, images)
    assert prepared is residual
    assert edits == ()
    assert all(torch.equal(tensor, before[name]) for name, tensor in prepared.state_dict().items())


class Scaled(nn.Module):
    """A layer with weight norm, and what becomes of its outputs."""

    def __init__(self, scale: Callable[[Scaled], float]) -> None:
        super().__init__()
        self.layer, self.scale, self.calls = parametrizations.weight_norm(nn.Linear(20, 3)), scale, 0

    def forward(self, x: Tensor) -> Tensor:
        self.calls += 1
        return self.layer(x) * self.scale(self)


def test_a_model_that_computes_something_else_without_its_norm_is_refused() -> None:
    peeking = Scaled(lambda model: 2.0 if parametrize.is_parametrized(model.layer) else 1.0)
    with pytest.raises(ProofError, match="preparing the model must leave outputs as they are"):
        prepare_model(peeking, X)
    # That it never computes the same is for others to say.
    prepare_model(Scaled(lambda model: float(model.calls)), X)


def test_a_model_that_does_not_run_is_refused_with_the_place() -> None:
    broken = Scaled(lambda model: 1 / 0)
    with pytest.raises(TaskError, match=r"ZeroDivisionError: .* in <lambda>: `broken = "):
        prepare_model(broken, X)


def test_modules_stay_in_the_mode_that_they_are_in() -> None:
    model = nn.Sequential(Branches(), nn.BatchNorm1d(4), parametrizations.weight_norm(nn.Conv1d(4, 4, 1)))
    model.train()[1].eval()
    prepared, edits = prepare_model(model, X)
    assert len(edits) == 2
    assert [module.training for module in prepared] == [True, False, True]


@pytest.mark.parametrize(("edit", "message"), [
    (FoldWeight("0", "weight", "weight norm"), "must be one whose weight has a weight norm but got '0'"),
    (FoldWeight("9", "weight", "weight norm"), "must be one whose weight has a weight norm but got '9'"),
    (PlainLayer("0"), "must be a convolution that computes its weight but got '0'"),
    (Deploy("fuse", ("0",)), r"must have a method fuse\(\) but '0' has none"),
])  # fmt: skip
def test_edits_are_refused_by_models_that_they_are_not_of(edit: object, message: str) -> None:
    with pytest.raises(CheckpointError, match=message):
        apply(nn.Sequential(nn.Conv1d(4, 8, 3)), (edit,), X)


def test_standardised_convolutions_of_timm_become_plain_ones_padded_alike() -> None:
    layers = pytest.importorskip("timm.layers")
    model = nn.Sequential(
        layers.StdConv2d(3, 8, 3), layers.ScaledStdConv2d(8, 8, 3, groups=2),
        layers.StdConv2dSame(8, 8, 3, 2), layers.ScaledStdConv2dSame(8, 8, 3, 2, bias=True),
        layers.Conv2dSame(8, 8, 3, 2),
    )  # fmt: skip
    images = torch.randn(2, 3, 23, 18)
    expected = model(images).detach()
    prepared, edits = prepare_model(model, images)
    assert [edit.layer for edit in edits if isinstance(edit, PlainLayer)] == ["0", "1", "2", "3"]
    assert [type(layer) for layer in prepared] == [nn.Conv2d, nn.Conv2d, *[layers.Conv2dSame] * 3]
    assert torch.allclose(prepared(images), expected, atol=1e-5)


@pytest.mark.parametrize("name", ["repvgg_a0", "repghostnet_050"])
def test_models_of_timm_are_prepared_and_made_again(name: str) -> None:
    timm = pytest.importorskip("timm")
    model = timm.create_model(name, num_classes=4).eval()
    x = torch.randn(2, 3, 64, 64)
    with torch.no_grad():
        expected = model(x)
        prepared, edits = prepare_model(model, x)
        assert edits
        assert float((prepared(x) - expected).abs().max() / expected.abs().max()) < 1e-4
        again = rebuilt(timm.create_model(name, num_classes=4), edits, prepared, x)
        assert torch.equal(again(x), prepared(x))
    from timm.utils.model import reparameterize_model

    fused = reparameterize_model(timm.create_model(name, num_classes=4).eval())
    assert sum(isinstance(m, nn.Conv2d) for m in prepared.modules()) <= sum(
        isinstance(m, nn.Conv2d) for m in fused.modules()
    )
