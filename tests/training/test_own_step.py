"""Training steps of the user's own: what they are given, what they may return, and what a teacher sees."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.utils.data import DataLoader, TensorDataset

import autocompress as ac
from autocompress.errors import TaskError
from autocompress.graph import analyse
from autocompress.training.distillation import Distillation
from autocompress.training.loop import Trainer
from autocompress.training.own_step import carried, loss_of, recorded, taken
from autocompress.training.trying import try_training
from tests.conftest import Residual


def step(model: nn.Module, batch: Any) -> Tensor:
    return F.cross_entropy(model(batch[0]), batch[1])


@dataclass
class Returned:
    loss: Tensor


LOSS = torch.tensor(2.0, requires_grad=True)


@pytest.mark.parametrize(
    "returned",
    [LOSS, LOSS[None], {"loss": LOSS, "logits": torch.ones(3)}, (LOSS, torch.ones(3)), Returned(LOSS)],
)
def test_a_loss_is_found_in_what_steps_return(returned: Any) -> None:
    loss = loss_of(returned)
    assert loss.shape == ()
    assert loss.item() == 2
    assert loss.requires_grad


@pytest.mark.parametrize("returned", [None, {"total": LOSS}, (), torch.ones(2), 2.0, "loss"])
def test_what_holds_no_loss_is_refused(returned: Any) -> None:
    with pytest.raises(TaskError, match=r"^step must return a scalar tensor, or a mapping with one as"):
        loss_of(returned)


def test_an_own_step_trains_as_the_recipe_does_where_it_computes_the_same(residual_task: ac.Task) -> None:
    trained = []
    for task in (residual_task, replace(residual_task, step=step)):
        torch.manual_seed(0)
        Trainer(task.with_recipe(accumulate=2), 2).fit(model := task.model(), 2)
        trained.append(model.state_dict())
    assert all(torch.equal(trained[0][name], tensor) for name, tensor in trained[1].items())


def test_a_step_gets_batches_as_they_are_and_keeps_what_is_no_tensor(residual_task: ac.Task) -> None:
    seen: list[Any] = []

    def own(model: nn.Module, batch: Any) -> dict[str, Tensor]:
        seen.append(batch)
        return {"loss": F.cross_entropy(model(batch["pictures"][0]), batch["labels"])}

    batches = [
        {"pictures": [x], "labels": y, "names": ["a"] * len(x), "sizes": (8, 8)}
        for x, y in residual_task.train
    ]
    task = replace(residual_task, train=batches, step=own)
    Trainer(task, 1).fit(task.model(), 1)
    assert [batch.keys() for batch in seen] == [batch.keys() for batch in batches]
    assert seen[0]["names"] == ["a"] * 32
    assert seen[0]["sizes"] == (8, 8)
    assert isinstance(seen[0]["pictures"], list)


def test_a_batch_that_knows_how_gets_to_the_device_itself() -> None:
    class Graphs:
        """A batch of another library."""

        device = "cpu"

        def to(self, device: torch.device, non_blocking: bool = False) -> Graphs:
            moved = Graphs()
            moved.device = str(device)
            return moved

    meta = torch.device("meta")
    packed = nn.utils.rnn.pack_sequence([torch.ones(3, 2), torch.ones(2, 2)])
    moved = carried({"graphs": [Graphs()], "packed": packed, "x": torch.ones(2), "name": "a", "n": 3}, meta)
    assert moved["graphs"][0].device == "meta"
    assert (moved["packed"].data.device, moved["packed"].batch_sizes.device.type) == (meta, "cpu")
    assert moved["x"].device == meta
    assert (moved["name"], moved["n"]) == ("a", 3)


def test_a_step_runs_under_autocast_and_its_parameters_are_trained_along(residual_task: ac.Task) -> None:
    seen: list[torch.dtype] = []

    class Step(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.scale = nn.Parameter(torch.ones(()))

        def forward(self, model: nn.Module, batch: Any) -> Tensor:
            outputs = model(batch[0])
            seen.append(outputs.dtype)
            return F.cross_entropy(self.scale * outputs, batch[1])

    task = replace(residual_task, step=Step()).with_recipe(mixed_precision=True)
    trainer = Trainer(task, 1)
    trainer.fit(task.model(), 1)
    assert set(seen) == {torch.bfloat16}
    assert trainer.criterion.scale != 1
    assert task.step.scale == 1


def test_a_step_that_fails_on_a_batch_says_how_in_one_line(residual_task: ac.Task) -> None:
    def broken(model: nn.Module, batch: Any) -> Tensor:
        return batch["labels"]

    task = replace(residual_task, step=broken)
    with pytest.raises(TaskError, match=r"^step must take each batch but failed on one: TypeError: "):
        Trainer(task, 1).fit(task.model(), 1)


def test_only_calls_of_the_whole_model_with_gradients_are_recorded() -> None:
    model = nn.Sequential(nn.Linear(2, 2), nn.ReLU())
    with recorded(model) as calls:
        model[0](torch.ones(1, 2))
        with torch.no_grad():
            model(torch.ones(1, 2))
        outputs = model(input=torch.full((1, 2), 3.0))
    model(torch.ones(1, 2))
    assert len(calls) == 1
    assert calls[0].args == ()
    assert calls[0].outputs is outputs
    assert torch.equal(calls[0].kwargs["input"], torch.full((1, 2), 3.0))


def test_a_teacher_is_called_as_the_model_was_each_time(residual_task: ac.Task) -> None:
    torch.manual_seed(0)
    student, teacher = Residual(), Residual().eval()

    def twice(model: nn.Module, batch: Any) -> Tensor:
        first, second = model(batch[0]), model(x=batch[0].flip(-1))
        return F.cross_entropy(first, batch[1]) + F.mse_loss(first, second)

    batch = next(iter(residual_task.train))
    task, distillation = replace(residual_task, step=twice), Distillation(teacher, 0.4, 3.0)
    own, calls = taken(task.step, student, batch)
    loss = distillation.of_calls(task, calls, own)
    alone = [
        distillation(task, inputs, call.outputs, torch.zeros(()))
        for call, inputs in zip(calls, (batch[0], batch[0].flip(-1)), strict=True)
    ]
    assert loss.item() == pytest.approx((0.6 * own + sum(alone) / 2).item(), rel=1e-6)
    # The same as the recipe's where the step computes the same.
    single, calls = taken(step, student, batch)
    assert torch.equal(
        distillation.of_calls(task, calls, single), distillation(task, batch[0], calls[0].outputs, single)
    )


@pytest.mark.parametrize("name", ["label_smoothing", "mixup", "augment"])
def test_what_the_recipe_does_to_batches_is_refused_beside_a_step(residual_task: ac.Task, name: str) -> None:
    recipe = ac.Recipe(**{name: "crop-flip" if name == "augment" else 0.1})
    with pytest.raises(
        TaskError, match=rf"^{name} of the recipe must not be given beside a step of the task's"
    ):
        replace(residual_task, step=step, recipe=recipe)


def test_what_outputs_are_is_told_by_the_loss_or_by_accuracy_as_the_metric(residual_task: ac.Task) -> None:
    own = replace(residual_task, step=step, loss=None)
    assert own.loss is None
    assert own.cross_entropy
    error = {"error": lambda outputs, targets: 0.5}
    assert not replace(own, metrics=error).cross_entropy
    assert replace(own, metrics=error, loss=nn.CrossEntropyLoss()).cross_entropy
    assert isinstance(replace(own, step=None).loss, nn.CrossEntropyLoss)


class Encoder(Residual):
    """A model whose class has more than `forward`."""

    def encode(self, x: Tensor) -> Tensor:
        return self.stem(x).mean((2, 3))


def contrast(model: nn.Module, batch: Any) -> Tensor:
    return step(model, batch) + model.encode(batch[0]).square().mean()


HEAD = nn.Linear(5, 5)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"step": lambda model, batch: model(batch[0]).argmax(1)}, "step must return a scalar tensor, or a "),
        ({"step": lambda model, batch: batch[0].mean()}, "step must call the model that it is given"),
        ({"step": lambda model, batch: model.forward(batch[0]).mean()}, "step must call the model that it i"),
        ({"step": lambda model, batch: model(batch[0]).detach().mean()}, "step must return a loss with a gr"),
        ({"step": lambda model, batch: model(batch[7]).mean()}, "failed on one: IndexError: "),
        (
            {"step": lambda model, batch: F.cross_entropy(HEAD(model(batch[0])), batch[1])},
            r"step must be an nn\.Module where it has parameters to train but uses 2 of shape",
        ),
        (
            {"optimizer": lambda groups: torch.optim.SGD([p for g in groups for p in g["params"]], 0.1)},
            "keep",
        ),
        (
            {"optimizer": lambda groups: NeedsClosure(groups, {"lr": 0.1})},
            "must take steps without a closure",
        ),
        ({"scheduler": lambda optimizer, steps: 1 / 0}, "but failed: division by zero"),
    ],
)
def test_training_that_cannot_work_is_found_before(
    options: dict[str, Callable[..., Any]], message: str, residual_task: ac.Task
) -> None:
    task = replace(residual_task, **options)
    model = task.model()
    with pytest.raises(TaskError, match=message) as refused:
        try_training(task, model, analyse(model, task.example()))
    assert "\n" not in str(refused.value)


class NeedsClosure(torch.optim.Optimizer):
    def step(self, closure: Callable[[], float]) -> float:  # type: ignore[override]
        return closure()


def test_a_step_is_tried_without_a_trace(residual_task: ac.Task) -> None:
    rows = TensorDataset(torch.randn(40, 3, 8, 8), torch.randint(5, (40,)))
    loader = DataLoader(rows, 16, shuffle=True, generator=torch.Generator())
    task = replace(residual_task, step=step, train=loader)
    model = task.model()
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    analysis = analyse(model, task.example())
    state, drawn = torch.random.get_rng_state(), loader.generator.get_state()
    tried = try_training(task, model, analysis)
    assert (tried.on_graphs, tried.taught) == (None, None)
    assert torch.equal(state, torch.random.get_rng_state())
    assert torch.equal(drawn, loader.generator.get_state())
    assert all(torch.equal(before[name], tensor) for name, tensor in model.state_dict().items())
    assert all(parameter.grad is None for parameter in model.parameters())


def test_a_step_that_needs_the_models_class_is_found_to(residual_task: ac.Task) -> None:
    task = replace(residual_task, model=Encoder, step=contrast)
    model = task.model()
    tried = try_training(task, model, analyse(model, task.example()))
    assert tried.taught is None
    assert tried.on_graphs is not None
    assert "has no attribute 'encode'" in tried.on_graphs
