"""Which gradients are clipped, and which are not."""

from __future__ import annotations

import math
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

import autocompress as ac
from autocompress.methods.alcn import Alcn
from autocompress.methods.base import ParamGroup
from autocompress.training.clipping import backward, greatest_norm
from autocompress.training.loop import Plain, Trainer
from autocompress.training.optimization import begin
from autocompress.trial import Measuring, train_reference


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
    task = replace(residual_task, loss=loss, recipe=ac.Recipe(**options))
    optimizer = begin(task, [ParamGroup([nn.Parameter(torch.zeros(1))])], {}, 1.0, 1).optimizer
    assert greatest_norm(task, optimizer) == wanted
    # The reference trains exactly as the recipe says.
    assert greatest_norm(task, optimizer, reference=True) == options.get("grad_clip", math.inf)


def test_the_reference_is_not_clipped_and_trials_are(
    residual_task: ac.Task, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    norms: list[float] = []

    def recorded(loss: Tensor, penalty: Tensor, clipped: list[nn.Parameter], clip: float) -> None:
        norms.append(clip)
        backward(loss, penalty, clipped, clip)

    monkeypatch.setattr("autocompress.training.loop.backward", recorded)
    task = residual_task.with_recipe(optimizer="sgd", lr=0.01, epochs=1)
    reference = train_reference(task, tmp_path / "reference", Measuring())
    assert set(norms) == {math.inf}
    norms.clear()
    ac.compress(task.model(), task, Alcn())
    assert set(norms) == {1.0}
    assert reference.path.is_dir()


def test_clipping_holds_the_loss_and_not_the_penalty(residual_task: ac.Task) -> None:
    class Pulled(Plain):
        def penalty(self) -> Tensor:
            return 100 * next(self.model.parameters()).sum()

    torch.manual_seed(0)
    task = replace(residual_task, loss=lambda outputs, targets: 50 * outputs.square().sum())
    task = task.with_recipe(optimizer="sgd", momentum=0.0, weight_decay=0.0, warmup=0.0, grad_clip=0.5)
    inputs, targets = next(iter(task.train))
    task, model = replace(task, train=[(inputs, targets)]), task.model()
    task.loss(model.train()(inputs), targets).backward()
    clipped = 0.5 / torch.cat([p.grad.flatten() for p in model.parameters()]).norm()
    assert clipped < 0.1
    before = [p.detach().clone() for p in model.parameters()]
    wanted = [p.grad * clipped for p in model.parameters()]
    wanted[0] += 100
    Trainer(task, 1).fit(model, 1, Pulled(model))
    for old, new, gradient in zip(before, model.parameters(), wanted, strict=True):
        torch.testing.assert_close(new.detach(), old - task.recipe.lr * gradient, rtol=1e-4, atol=1e-6)
