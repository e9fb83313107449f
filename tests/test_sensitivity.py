"""What groups would lose: against models that are cut, and without a trace on what is probed."""

from __future__ import annotations

import copy
import random

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import nn

import autocompress as ac
from autocompress.graph import analyse
from autocompress.graph.costs import profile
from autocompress.methods.shared.divergence import output_loss
from autocompress.surgery import keep_units
from autocompress.task import ModelProfile
from autocompress.task.random_state import generators_of
from autocompress.trial.sensitivity import group_widths, with_losses

CPU = torch.device("cpu")


def net() -> nn.Sequential:
    torch.manual_seed(0)
    layers = [nn.Conv2d(3, 20, 3), nn.BatchNorm2d(20), nn.ReLU(), nn.Conv2d(20, 4, 3), nn.ReLU()]
    return nn.Sequential(*layers, nn.Flatten(), nn.Linear(64, 5)).eval()


def task_of(model: nn.Module, loss: nn.Module | None = None) -> ac.Task:
    rng = torch.Generator().manual_seed(1)
    inputs, labels = torch.randn(96, 3, 8, 8, generator=rng), torch.randint(0, 5, (96,), generator=rng)
    targets = labels if loss is None else torch.randn(96, 5, generator=rng)
    return ac.Task(
        model=lambda: copy.deepcopy(model), train=[(inputs, targets)], loss=loss or nn.CrossEntropyLoss()
    )


def probed(model: nn.Module, task: ac.Task) -> ModelProfile:
    analysis = analyse(model, task.example())
    return with_losses(profile(model, task.example(), analysis), model, task, analysis, CPU)


@pytest.mark.parametrize("loss", [None, nn.MSELoss()], ids=["classes", "numbers"])
def test_losses_are_those_of_models_whose_weakest_units_are_cut(loss: nn.Module | None) -> None:
    """Against models that are cut by hand and PyTorch's own divergence; the weakest units are those whose
    activation times the weights that read it has the least RMS."""
    model = net()
    task = task_of(model, loss)
    known, analysis, example = probed(model, task), analyse(model, task.example()), task.example()
    inputs = task.train[0][0][:16]
    with torch.no_grad():
        expected = model(inputs)
        strength = model[:3](inputs).square().mean((0, 2, 3)) * model[3].weight.square().sum((0, 2, 3))
        group, order = known.groups[0], strength.argsort(descending=True)
        lost = []
        for width in group_widths(group.width):
            keep = {group.name: sorted(order[:width].tolist())}
            outputs = keep_units(model, analysis, keep, example).model(inputs)
            if loss is None:
                logs = [F.log_softmax(values, 1) for values in (outputs, expected)]
                lost.append(F.kl_div(*logs, reduction="batchmean", log_target=True).item())
            else:
                variance = (expected - expected.mean(0)).square().mean()
                lost.append((0.5 * F.mse_loss(outputs, expected) / variance).item())
        falling = np.maximum.accumulate(lost[::-1])[::-1]
        assert group.losses == pytest.approx(falling.tolist(), rel=1e-2, abs=1e-6)
        assert falling[0] > 10 * falling[-2] > 0


def test_widths_are_eight_shares_or_each_there_is() -> None:
    assert group_widths(3) == [1, 2, 3]
    assert group_widths(20) == [3, 5, 8, 10, 13, 15, 18, 20]
    known = probed(net(), task_of(net()))
    for group in known.groups:
        assert [group.width_at(level) for level in range(len(group.losses))] == group_widths(group.width)


def test_a_model_that_is_no_longer_finite_has_no_losses() -> None:
    model = net()
    with torch.no_grad():
        model[6].weight[0, 0] = float("nan")
    assert {group.losses for group in probed(model, task_of(model)).groups} == {()}


def test_a_probe_leaves_model_and_random_state_as_they_were(residual_task: ac.Task) -> None:
    model = residual_task.model().train()
    model(residual_task.example()).sum().backward()
    state = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    slopes = [None if p.grad is None else p.grad.clone() for p in model.parameters()]
    classes = [type(module) for module in model.modules()]
    analysis = analyse(model, residual_task.example())
    known = profile(model, residual_task.example(), analysis)
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


def test_equal_outputs_lose_nothing() -> None:
    outputs = torch.randn(4, 5, generator=torch.Generator().manual_seed(0))
    assert output_loss(outputs, outputs, True) == output_loss(outputs, outputs, False) == 0
    assert output_loss(outputs, outputs.roll(1, 0), True) > 0


def test_a_profile_of_losses_is_read_back_as_it_was_and_an_older_one_without() -> None:
    model = net()
    known = probed(model, task_of(model))
    stored = known.to_json()
    assert ModelProfile.from_json(stored) == known
    del stored["cost_terms"]
    for group in stored["groups"]:
        del group["losses"]
    older = ModelProfile.from_json(stored)
    assert older.cost_terms == ()
    assert {group.losses for group in older.groups} == {()}
