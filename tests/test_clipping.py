"""Which gradients are clipped, and which are not."""

from __future__ import annotations

import math
from dataclasses import replace
from typing import Any

import pytest
import torch
from torch import Tensor, nn

import autocompress as ac
from autocompress.clipping import greatest_norm
from autocompress.training import Plain, Trainer, make_optimizer


@pytest.mark.parametrize(
    ("options", "loss", "wanted"),
    [
        ({"optimizer": "sgd"}, nn.CrossEntropyLoss(), 1.0),
        ({"optimizer": "sgd", "grad_clip": 5.0}, nn.CrossEntropyLoss(), 5.0),
        ({"optimizer": "sgd"}, nn.MSELoss(), math.inf),
        ({"optimizer": "adamw"}, nn.CrossEntropyLoss(), math.inf),
    ],
)
def test_only_sgd_on_cross_entropy_clips_unasked(
    residual_task: ac.Task, options: dict[str, Any], loss: nn.Module, wanted: float
) -> None:
    assert greatest_norm(replace(residual_task, loss=loss, recipe=ac.Recipe(**options))) == wanted


def test_clipping_holds_the_loss_and_not_the_penalty(residual_task: ac.Task) -> None:
    class Pulled(Plain):
        def penalty(self) -> Tensor:
            return 100 * next(self.model.parameters()).sum()

    torch.manual_seed(0)
    task = replace(residual_task, loss=lambda outputs, targets: 50 * outputs.square().sum())
    task = task.with_recipe(optimizer="sgd", momentum=0.0, weight_decay=0.0, warmup=0.0, grad_clip=0.5)
    model = task.model()
    hooks, (inputs, targets) = Pulled(model), next(iter(task.train))
    task.loss(model.train()(inputs), targets).backward()
    clipped = 0.5 / torch.cat([p.grad.flatten() for p in model.parameters()]).norm()
    assert clipped < 0.1
    before = [p.detach().clone() for p in model.parameters()]
    wanted = [p.grad * clipped for p in model.parameters()]
    wanted[0] += 100
    trainer = Trainer(task, 1)
    trainer._step(model, make_optimizer(hooks, task.recipe, 1.0), hooks, inputs, targets)
    for old, new, gradient in zip(before, model.parameters(), wanted, strict=True):
        torch.testing.assert_close(new.detach(), old - task.recipe.lr * gradient, rtol=1e-4, atol=1e-6)
