"""Wrappers of training come off, and lazy layers get their parameters."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from torch import Tensor, nn
from torch.nn.parameter import is_lazy
from torch.optim.swa_utils import AveragedModel

import autocompress as ac
from autocompress.errors import TaskError
from autocompress.task.checks import make_model
from autocompress.task.ready import ready


def example() -> Tensor:
    return torch.ones(2, 6)


def unasked() -> Tensor:
    raise AssertionError("only lazy layers need an example")


@pytest.mark.parametrize(
    "wrap",
    [
        torch.compile,
        nn.DataParallel,
        AveragedModel,
        lambda module: nn.DataParallel(torch.compile(module)),
        lambda module: module,
    ],
)
def test_what_wrappers_are_around_is_taken(wrap: Callable[[nn.Module], nn.Module]) -> None:
    wrapped = wrap(nn.Linear(6, 3))
    assert type(ready(wrapped, unasked)) is nn.Linear


def test_lazy_layers_get_their_parameters_and_the_mode_stays() -> None:
    model = ready(nn.Sequential(nn.LazyLinear(4), nn.LazyBatchNorm1d(), nn.LazyLinear(3)).train(), example)
    assert [tuple(p.shape) for p in model.parameters()] == [(4, 6), (4,), (4,), (4,), (3, 4), (3,)]
    assert model.training
    assert int(model[1].num_batches_tracked) == 0


def test_every_new_model_of_a_task_is_ready() -> None:
    task = ac.Task(lambda: torch.compile(nn.LazyLinear(3)), [(example(), torch.tensor([0, 1]))])
    models = [make_model(task) for _ in range(2)]
    assert not any(is_lazy(parameter) for model in models for parameter in model.parameters())
    assert models[0].state_dict().keys() == models[1].state_dict().keys() == {"weight", "bias"}


class Forgetting(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.used, self.forgotten = nn.LazyLinear(3), nn.LazyLinear(3)

    def forward(self, x: Tensor) -> Tensor:
        return self.used(x)


@pytest.mark.parametrize(
    ("model", "message"),
    [
        (Forgetting(), "lazy layers must be called by forward but that of 'forgotten.weight' was not"),
        (nn.Sequential(nn.Linear(5, 4), nn.LazyLinear(3)), "lazy layers must get their parameters from the"),
    ],
)
def test_lazy_layers_that_get_none_are_refused(model: nn.Module, message: str) -> None:
    with pytest.raises(TaskError, match=message):
        ready(model, example)
