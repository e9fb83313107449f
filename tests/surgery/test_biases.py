"""Biases in front of batch norm."""

from __future__ import annotations

import copy

import pytest
import torch
from torch import Tensor, nn

from autocompress.surgery import absorb_biases
from autocompress.task import Limits


def settled(model: nn.Module, x: Tensor) -> nn.Module:
    """With running statistics that are not those that it starts with."""
    model.train()
    for _ in range(3):
        model(x)
    return model.eval()


def of_images() -> tuple[nn.Module, Tensor]:
    torch.manual_seed(0)
    model = nn.Sequential(
        nn.Conv2d(3, 6, 3), nn.BatchNorm2d(6), nn.ReLU(), nn.Conv2d(6, 4, 3), nn.ReLU(), nn.BatchNorm2d(4)
    )
    x = torch.randn(4, 3, 8, 8)
    return settled(model, x), x


def test_a_bias_in_front_of_batch_norm_moves_into_its_mean_and_others_stay() -> None:
    model, x = of_images()
    expected, other = model(x), model[3].bias.detach().clone()
    assert absorb_biases(model, x) == ["0"]
    assert torch.equal(model[0].bias, torch.zeros(6))
    assert torch.equal(model[3].bias, other)
    assert torch.allclose(model(x), expected, atol=1e-6)
    assert absorb_biases(model, x) == []


def test_what_is_absorbed_trains_as_before() -> None:
    model, x = of_images()
    before = copy.deepcopy(model)
    absorb_biases(model, x)
    assert torch.allclose(model.train()(x), before.train()(x), atol=1e-5)
    model(x).sum().backward()
    torch.optim.SGD(model.parameters(), 0.1).step()
    changed = {name for name, p in model.named_parameters() if not torch.equal(p, before.get_parameter(name))}
    assert "0.bias" in changed


class Twice(nn.Module):
    """A layer whose output is used beside its batch norm too."""

    def __init__(self) -> None:
        super().__init__()
        self.layer, self.norm = nn.Linear(5, 5), nn.BatchNorm1d(5)

    def forward(self, x: Tensor) -> Tensor:
        y = self.layer(x)
        return y + self.norm(y)


class Shared(nn.Module):
    """A layer that is called twice."""

    def __init__(self) -> None:
        super().__init__()
        self.layer, self.norm = nn.Linear(5, 5), nn.BatchNorm1d(5)

    def forward(self, x: Tensor) -> Tensor:
        return self.norm(self.layer(torch.relu(self.layer(x))))


def frozen() -> nn.Module:
    model = nn.Sequential(nn.Linear(5, 5), nn.BatchNorm1d(5))
    model[0].bias.requires_grad_(False)
    return model


@pytest.mark.parametrize(
    "make",
    [
        Twice,
        Shared,
        frozen,
        lambda: nn.Sequential(nn.Linear(5, 5), nn.BatchNorm1d(5, track_running_stats=False)),
        lambda: nn.Sequential(nn.Linear(5, 5, bias=False), nn.BatchNorm1d(5)),
    ],
)
def test_what_is_used_elsewhere_shared_frozen_or_not_there_stays(make: type[nn.Module]) -> None:
    torch.manual_seed(0)
    x = torch.randn(16, 5)
    model = settled(make(), x)
    before = copy.deepcopy(model.state_dict())
    assert absorb_biases(model, x) == []
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())


@pytest.mark.parametrize("limits", [Limits(modules={"0": "excluded"}), Limits(steady=frozenset("1"))])
def test_what_limits_leave_alone_stays(limits: Limits) -> None:
    model, x = of_images()
    before = copy.deepcopy(model.state_dict())
    assert absorb_biases(model, x, limits) == []
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())


def test_the_mode_and_the_hooks_of_a_model_stay() -> None:
    model, x = of_images()
    absorb_biases(model, x)
    assert not model.training
    assert not any(m._forward_hooks or m._forward_pre_hooks for m in model.modules())
