"""What groups would lose: against each row's own gradient, and without a trace on what is probed."""

from __future__ import annotations

import copy
import random

import numpy as np
import pytest
import torch
from torch import Tensor, nn

import autocompress as ac
from autocompress.graph import analyse
from autocompress.graph.costs import profile
from autocompress.task import GroupProfile, ModelProfile
from autocompress.task.random_state import generators_of
from autocompress.trial import sensitivity
from autocompress.trial.sensitivity import loss_curve, unit_scores, with_losses

CPU = torch.device("cpu")


def small_net() -> nn.Sequential:
    torch.manual_seed(0)
    return nn.Sequential(
        nn.Conv2d(3, 6, 3, padding=1),
        nn.BatchNorm2d(6),
        nn.Tanh(),
        nn.Conv2d(6, 4, 3),
        nn.Tanh(),
        nn.Flatten(),
        nn.Linear(4 * 36, 5),
    ).eval()


def batch(rows: int) -> tuple[Tensor, Tensor]:
    rng = torch.Generator().manual_seed(1)
    return torch.randn(rows, 3, 8, 8, generator=rng), torch.randint(0, 5, (rows,), generator=rng)


def task_of(model: nn.Module, rows: int = 16) -> ac.Task:
    return ac.Task(model=lambda: copy.deepcopy(model), train=[batch(rows)])


def test_scores_are_the_mean_of_squared_slopes_of_single_rows(monkeypatch: pytest.MonkeyPatch) -> None:
    """Against finite differences: each unit's activations scaled up and down, row by row, in double."""
    monkeypatch.setattr(sensitivity, "_ROWS", 1)
    model = small_net()
    task = task_of(model)
    inputs, targets = task.train[0]
    scores = unit_scores(model, task, analyse(model, inputs), CPU)
    double = copy.deepcopy(model).double()
    step = 1e-5

    def losses(layer: int, unit: int, factor: float) -> Tensor:
        def scale(module: nn.Module, args: object, output: Tensor) -> Tensor:
            output = output.clone()
            output[:, unit] *= factor
            return output

        with double[layer].register_forward_hook(scale), torch.no_grad():
            return nn.functional.cross_entropy(double(inputs.double()), targets, reduction="none")

    for layer, own in zip((1, 3), scores, strict=True):
        expected = [
            ((losses(layer, unit, 1 + step) - losses(layer, unit, 1 - step)) / (2 * step)).square().mean()
            for unit in range(len(own))
        ]
        torch.testing.assert_close(own, torch.stack(expected), rtol=1e-3, atol=1e-9)


def test_scores_of_several_rows_at_a_time_are_those_of_single_ones_on_average() -> None:
    """Where rows repeat, 8 of them have 8 times the squared gradient of one."""
    model = small_net()
    inputs, targets = batch(1)
    alike = ac.Task(model=lambda: model, train=[(inputs.repeat(16, 1, 1, 1), targets.repeat(16))])
    lone = ac.Task(model=lambda: model, train=[(inputs, targets)])
    analysis = analyse(model, batch(2)[0])
    pairs = zip(
        unit_scores(model, alike, analysis, CPU), unit_scores(model, lone, analysis, CPU), strict=True
    )
    for several, single in pairs:
        torch.testing.assert_close(several, 8 * single, rtol=1e-3, atol=1e-9)


def test_a_curve_is_half_the_sum_of_the_least_scores() -> None:
    assert loss_curve(torch.tensor([4.0, 1.0, 2.0])) == (1.5, 0.5, 0.0)
    scores = torch.rand(40, dtype=torch.float64)
    curve = loss_curve(scores)
    group = GroupProfile("g", 40, 1, 1, curve)
    assert len(curve) == 16
    for level, lost in enumerate(curve):
        gone = 40 - group.width_at(level)
        assert lost == pytest.approx(0.5 * sum(sorted(scores.tolist())[:gone]), rel=1e-3)


def test_a_probe_leaves_model_and_random_state_as_they_were(residual_task: ac.Task) -> None:
    model = residual_task.model().train()
    model(residual_task.example()).sum().backward()
    example = residual_task.example()
    analysis = analyse(model, example)
    known = profile(model, example, analysis)
    state = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    slopes = [None if p.grad is None else p.grad.clone() for p in model.parameters()]
    classes = [type(module) for module in model.modules()]
    drawn = (random.getstate(), np.random.get_state()[1].tolist(), torch.get_rng_state())  # noqa: NPY002
    loaders = [generator.get_state() for generator in generators_of(residual_task.train)]
    first = with_losses(known, model, residual_task, analysis, CPU)
    assert model.training
    assert all(torch.equal(tensor, state[name]) for name, tensor in model.state_dict().items())
    for parameter, slope in zip(model.parameters(), slopes, strict=True):
        assert (parameter.grad is None and slope is None) or torch.equal(parameter.grad, slope)
    assert [type(module) for module in model.modules()] == classes
    assert random.getstate() == drawn[0]
    assert np.random.get_state()[1].tolist() == drawn[1]  # noqa: NPY002
    assert torch.equal(torch.get_rng_state(), drawn[2])
    for generator, before in zip(generators_of(residual_task.train), loaders, strict=True):
        assert torch.equal(generator.get_state(), before)
    assert with_losses(known, model, residual_task, analysis, CPU) == first
    assert all(group.losses[-1] == 0 < group.losses[0] for group in first.groups)


def test_without_a_gradient_nothing_is_known() -> None:
    class Constant(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.net = small_net()

        def forward(self, images: Tensor) -> Tensor:
            return self.net(images).detach()

    model = Constant().eval()
    task = task_of(model)
    analysis = analyse(model, task.example())
    known = profile(model, task.example(), analysis)
    assert known.groups
    assert with_losses(known, model, task, analysis, CPU) == known


def test_a_profile_of_losses_is_read_back_as_it_was_and_an_older_one_without() -> None:
    model = small_net()
    task = task_of(model)
    analysis = analyse(model, task.example())
    known = with_losses(profile(model, task.example(), analysis), model, task, analysis, CPU)
    stored = known.to_json()
    assert ModelProfile.from_json(stored) == known
    del stored["cost_terms"]
    for group in stored["groups"]:
        del group["losses"]
    older = ModelProfile.from_json(stored)
    assert older.cost_terms == ()
    assert {group.losses for group in older.groups} == {()}
