"""Cross entropy is told by what it computes, and treated alike however it is written."""

from __future__ import annotations

import functools
from dataclasses import replace
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

import autocompress as ac
from autocompress.data import TensorBatches
from autocompress.task import InputSpec
from autocompress.task.checks import check_labels
from autocompress.task.losses import ignored_label, is_cross_entropy
from autocompress.training.clipping import greatest_norm
from autocompress.training.distillation import Distillation
from autocompress.training.loop import smoothed


class Own(nn.Module):
    """Cross entropy of one's own class."""

    def forward(self, outputs: Tensor, targets: Tensor) -> Tensor:
        return F.nll_loss(outputs.log_softmax(1), targets)


SGD = torch.optim.SGD([nn.Parameter(torch.zeros(1))], lr=0.1)
FORMS: dict[str, Any] = {
    "module": nn.CrossEntropyLoss(),
    "function": F.cross_entropy,
    "lambda": lambda outputs, targets: F.cross_entropy(outputs, targets),
    "partial": functools.partial(F.cross_entropy, ignore_index=7),
    "own class": Own(),
}


@pytest.mark.parametrize("name", FORMS)
def test_every_form_of_cross_entropy_is_treated_alike(residual_task: ac.Task, name: str) -> None:
    torch.manual_seed(0)
    recipe = ac.Recipe(optimizer="sgd", label_smoothing=0.1)
    task = replace(residual_task, loss=FORMS[name], recipe=recipe)
    standard = replace(residual_task, recipe=recipe)
    outputs, targets, inputs = torch.randn(6, 5), torch.randint(0, 5, (6,)), torch.randn(6, 3)
    assert is_cross_entropy(task.loss)
    assert greatest_norm(task, SGD) == 1.0
    wanted = smoothed(standard.loss, 0.1)(outputs, targets)
    torch.testing.assert_close(smoothed(task.loss, 0.1)(outputs, targets), wanted)
    distil = Distillation(nn.Linear(3, 5), 0.7, 3.0)
    torch.testing.assert_close(
        distil(task, inputs, outputs, wanted), distil(standard, inputs, outputs, wanted)
    )


@pytest.mark.parametrize("name", FORMS)
def test_labels_are_checked_for_every_form(name: str) -> None:
    spec = InputSpec((3,), "float32")
    x = torch.randn(4, 3).numpy()
    batches = TensorBatches(x, torch.tensor([0, 1, 9, 0]).numpy(), spec, 2)
    task = ac.Task(model=lambda: nn.Linear(3, 2), train=batches, loss=FORMS[name])
    with pytest.raises(ac.AutocompressError, match=r"labels of the train split must be in \[0, 1\]"):
        check_labels(task, nn.Linear(3, 2))


def test_labels_that_a_loss_ignores_are_not_faults() -> None:
    batches = TensorBatches(
        torch.randn(3, 3).numpy(), torch.tensor([0, 7, 1]).numpy(), InputSpec((3,), "float32"), 3
    )
    for loss in (FORMS["partial"], nn.CrossEntropyLoss(ignore_index=7)):
        assert ignored_label(loss) == 7
        check_labels(ac.Task(model=lambda: nn.Linear(3, 2), train=batches, loss=loss), nn.Linear(3, 2))
    assert ignored_label(F.cross_entropy) == ignored_label(Own()) == -100


@pytest.mark.parametrize(
    "loss",
    [
        nn.MSELoss(),
        nn.NLLLoss(),
        nn.BCEWithLogitsLoss(),
        nn.L1Loss(),
        lambda outputs, targets: 2 * F.cross_entropy(outputs, targets),
        lambda outputs, targets: F.cross_entropy(outputs, targets, reduction="none"),
        lambda outputs, targets: 0.5,
    ],
)
def test_other_losses_are_not_cross_entropy(loss: Any) -> None:
    assert not is_cross_entropy(loss)


def test_a_loss_is_tried_but_once_for_each_task(residual_task: ac.Task) -> None:
    calls = []

    def counted(outputs: Tensor, targets: Tensor) -> Tensor:
        calls.append(len(outputs))
        return F.cross_entropy(outputs, targets)

    task = replace(residual_task, loss=counted)
    assert task.cross_entropy
    assert greatest_norm(task.with_recipe(optimizer="sgd"), SGD) == 1.0
    tried = len(calls)
    for _ in range(3):
        assert task.cross_entropy
    assert len(calls) == tried == 2
