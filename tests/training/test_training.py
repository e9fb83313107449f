"""The training loop: schedule, divergence, batch-norm statistics."""

from __future__ import annotations

import math
import time
from collections.abc import Iterator
from dataclasses import replace
from itertools import islice
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn

import autocompress as ac
from autocompress.errors import DivergedError, SettingsError, TaskError
from autocompress.task import Batch
from autocompress.training.loop import (
    Distillation,
    Plain,
    Trainer,
    _compiled,
    _Losses,
    reestimate_batch_norm,
    smoothed,
)
from autocompress.trial import compressing_epochs


def test_a_method_is_timed_apart_from_optimiser_steps(residual_task: ac.Task) -> None:
    class Slow(Plain):
        def after_step(self, progress: float) -> None:
            time.sleep(0.02)

    trainer, plain = Trainer(residual_task, 2), Trainer(residual_task, 2)
    trainer.fit(model := residual_task.model(), 2, Slow(model))
    plain.fit(residual_task.model(), 2)
    assert 6 * 0.02 <= trainer.clock.method_seconds < trainer.clock.seconds
    assert plain.clock.method_seconds < 6 * 0.02


def test_an_epoch_that_a_method_ends_in_the_middle_of_goes_on_without_it(residual_task: ac.Task) -> None:
    class Heard(Plain):
        steps: list[float]
        epochs: list[float]

        def after_step(self, progress: float) -> None:
            self.steps.append(progress)

        def after_epoch(self, progress: float) -> dict[str, float]:
            self.epochs.append(progress)
            return {f"{self.name}/{progress:.2f}": progress}

    torch.manual_seed(0)
    model = residual_task.model()
    trainer = Trainer(residual_task, 3)
    assert trainer.steps_per_epoch == 3
    heard = {}
    for name, epochs in (("first", 1 / 3), ("second", 4 / 3), ("third", 4 / 3)):
        heard[name] = session = Heard(model)
        session.name, session.steps, session.epochs = name, [], []
        trainer.fit(model, epochs, session)
    assert [len(session.steps) for session in heard.values()] == [1, 4, 4]
    assert all(session.steps[-1] == 1 for session in heard.values())
    assert [session.epochs for session in heard.values()] == [[1], [0.5, 1], [0.25, 1]]
    told = [sorted(set(entry) - {"epoch", "loss"}) for entry in trainer.history]
    assert told == [["first/1.00", "second/0.50"], ["second/1.00", "third/0.25"], ["third/1.00"]]
    assert [entry["epoch"] for entry in trainer.history] == [1, 2, 3]
    assert trainer.steps == 9


def test_data_are_not_counted_for_a_trial_that_does_not_train(residual_task: ac.Task) -> None:
    class Unread:
        def __iter__(self) -> Iterator[Batch]:
            raise AssertionError("the data are passed over")

    trainer = Trainer(replace(residual_task, train=Unread()), 0)
    assert compressing_epochs(trainer, 0.5, stages=1) == 0
    trainer.fit(residual_task.model(), 0)
    assert trainer.steps == 0


class Numbered:
    """Batches told apart by their values, which log what was drawn, and where passes begin and end."""

    def __init__(self, count: int, said: int | None = None, passes: int = 99) -> None:
        self.count, self.said, self.passes = count, said, passes
        self.log: list[int | str] = []

    def __iter__(self) -> Iterator[Batch]:
        self.log.append("begin")
        self.passes -= 1
        try:
            for number in range(self.count if self.passes >= 0 else 0):
                self.log.append(number)
                yield torch.full((2, 3), float(number)), torch.zeros(2, dtype=torch.long)
        finally:
            self.log.append("end")

    def __len__(self) -> int:
        if self.said is None:
            raise TypeError("a stream has no length")
        return self.said


def trained(batches: Numbered, epochs: list[float], **recipe: Any) -> Trainer:
    """A trainer after one call for each of these numbers of epochs."""
    task = ac.Task(lambda: nn.Linear(3, 2), batches, recipe=ac.Recipe(**recipe))
    trainer, model = Trainer(task, round(sum(epochs))), task.model()
    for some in epochs:
        trainer.fit(model, some)
    return trainer


def test_a_stream_without_a_length_is_refused_and_not_passed_over() -> None:
    stream = Numbered(3)
    with pytest.raises(
        TaskError, match=r"train must have a length, or Recipe\(steps_per_epoch=.* a Numbered"
    ):
        trained(stream, [2])
    assert stream.log == []


@pytest.mark.parametrize("epochs", [[3], [1, 2], [0.5, 1, 1.5]])
def test_a_pass_goes_on_in_the_next_epoch_and_call_and_begins_again_at_its_end(epochs: list[float]) -> None:
    stream = Numbered(5)
    trainer = trained(stream, epochs, steps_per_epoch=4)
    assert trainer.steps == 12
    assert [entry["epoch"] for entry in trainer.history] == [1, 2, 3]
    # The last pass is closed with the training, although it had not ended.
    once = ["begin", 0, 1, 2, 3, 4, "end"]
    assert stream.log == [*once, *once, "begin", 0, 1, "end"]


def test_an_epoch_has_as_many_batches_however_many_are_a_step() -> None:
    stream = Numbered(5)
    trainer = trained(stream, [2], steps_per_epoch=7, accumulate=3)
    assert trainer.steps == 2 * 3  # of 3, 3 and 1 batches
    assert [entry for entry in stream.log if isinstance(entry, int)] == [n % 5 for n in range(14)]


@pytest.mark.parametrize("said", [2, 3, 4])
def test_an_epoch_has_as_many_batches_as_a_loader_says(said: int) -> None:
    loader = Numbered(3, said)
    trainer = trained(loader, [1, 1])
    assert trainer.steps == 2 * said
    assert [entry for entry in loader.log if isinstance(entry, int)] == [n % 3 for n in range(2 * said)]


def test_a_stream_that_has_ended_for_good_is_refused() -> None:
    with pytest.raises(TaskError, match="train must yield at least one batch in each pass but it is empty"):
        trained(Numbered(3, passes=2), [4], steps_per_epoch=2)


def test_what_the_data_raise_is_one_line() -> None:
    class Broken(Numbered):
        def __iter__(self) -> Iterator[Batch]:
            yield from islice(super().__iter__(), 2)
            raise OSError("the disk is gone")

    with pytest.raises(TaskError, match=r"^train must yield batches but failed: OSError: the disk is gone$"):
        trained(Broken(5, 5), [1])


def test_training_lowers_the_loss_and_reports_each_epoch(residual_task: ac.Task) -> None:
    torch.manual_seed(0)
    reported: list[float] = []
    trainer = Trainer(residual_task, 6, report=lambda entry: reported.append(entry["loss"]))
    trainer.fit(residual_task.model(), 6)
    assert len(reported) == 6
    assert reported[-1] < reported[0]
    assert trainer.clock.seconds > 0


def test_the_same_seed_trains_the_same_weights(residual_task: ac.Task) -> None:
    weights = []
    for _ in range(2):
        torch.manual_seed(5)
        model = residual_task.model()
        Trainer(residual_task, 1).fit(model, 1)
        weights.append(model.head.weight.detach())
    assert torch.equal(*weights)


class Video(nn.Module):
    """3-d convolutions over frames, then 2-d ones."""

    def __init__(self) -> None:
        super().__init__()
        self.frames, self.images = nn.Conv3d(1, 4, 3, padding=1), nn.Conv2d(4, 6, 3)
        self.head = nn.Linear(6, 3)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.images(torch.relu(self.frames(x)).mean(2)).mean((2, 3)))


def test_convolutions_of_3_dimensions_train_beside_channels_last_ones_of_2() -> None:
    layouts = []
    model = Video()
    model.images.register_forward_pre_hook(
        lambda layer, inputs: layouts.append(layer.weight.is_contiguous(memory_format=torch.channels_last))
    )
    Trainer(ac.Task(Video, [(torch.randn(4, 1, 3, 6, 6), torch.arange(4) % 3)]), 1).fit(model, 1)
    assert layouts == [True]
    assert all(parameter.is_contiguous() for parameter in model.parameters())


def test_a_loss_that_is_not_finite_ends_training_with_its_epoch(residual_task: ac.Task) -> None:
    task = replace(residual_task, loss=lambda outputs, targets: outputs.sum() * math.nan)
    with pytest.raises(DivergedError, match="the training loss became nan in epoch 1"):
        Trainer(task, 1).fit(task.model(), 1)


def test_reestimated_statistics_are_averages_over_the_batches(residual_task: ac.Task) -> None:
    torch.manual_seed(0)
    model = residual_task.model()
    batches = list(residual_task.val)
    reestimate_batch_norm(model, replace(residual_task, train=batches), 2)
    with torch.no_grad():
        outputs = [model.stem(x).numpy() for x, _ in batches[:2]]
    means = np.mean([o.mean((0, 2, 3)) for o in outputs], axis=0)
    variances = np.mean([o.transpose(1, 0, 2, 3).reshape(8, -1).var(1, ddof=1) for o in outputs], axis=0)
    assert np.allclose(model.norm.running_mean.numpy(), means, atol=1e-5)
    assert np.allclose(model.norm.running_var.numpy(), variances, atol=1e-4)
    assert model.norm.momentum == 0.1
    assert not model.training


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"epochs": 0}, "epochs must be at least 1 but got 0"),
        ({"reference_epochs": 0}, "reference_epochs must be at least 1 but got 0"),
        ({"lr": 0.0}, r"lr must be greater than 0 but got 0\.0"),
        ({"optimizer": "lion"}, "optimizer must be 'adamw' or 'sgd' but got 'lion'"),
        ({"weight_decay": -1.0}, r"weight_decay must be at least 0 but got -1\.0"),
        ({"momentum": 1.0}, r"momentum must be in \[0, 1\) but got 1\.0"),
        ({"grad_clip": 0.0}, r"grad_clip must be greater than 0 but got 0\.0"),
        ({"warmup": 1.0}, r"warmup must be in \[0, 1\) but got 1\.0"),
        ({"augment": "cutmix"}, "augment must be one of none, crop-flip, crop-flip-erase but got 'cutmix'"),
        ({"label_smoothing": 1.0}, r"label_smoothing must be in \[0, 1\) but got 1\.0"),
        ({"mixup": -0.1}, r"mixup must be at least 0 but got -0\.1"),
    ],
)
def test_recipes_refuse_values_out_of_range(options: dict[str, object], message: str) -> None:
    with pytest.raises(SettingsError, match=message):
        ac.Recipe(**options)


def test_smoothed_cross_entropy_equals_the_numpy_reference() -> None:
    torch.manual_seed(0)
    outputs, targets = torch.randn(6, 5), torch.randint(0, 5, (6,))
    wanted = np.full((6, 5), 0.1 / 5)
    wanted[np.arange(6), targets.numpy()] += 0.9
    logs = outputs.numpy() - np.log(np.exp(outputs.numpy()).sum(1, keepdims=True))
    loss = nn.CrossEntropyLoss()
    assert smoothed(loss, 0.1)(outputs, targets).item() == pytest.approx(
        -(wanted * logs).sum(1).mean(), rel=1e-5
    )
    assert loss.label_smoothing == 0


def test_label_smoothing_of_other_losses_is_refused(residual_task: ac.Task) -> None:
    with pytest.raises(ac.AutocompressError, match=r"label_smoothing must be 0 where the loss is not"):
        replace(residual_task, loss=nn.L1Loss(), recipe=ac.Recipe(label_smoothing=0.1))


def test_every_extra_of_the_recipe_trains(residual_task: ac.Task) -> None:
    torch.manual_seed(0)
    recipe = ac.Recipe(augment="crop-flip-erase", label_smoothing=0.1, mixup=0.2, mixed_precision=True)
    task = replace(residual_task, recipe=recipe)
    model, seen = task.model(), []
    model.head.register_forward_hook(lambda module, args, output: seen.append(output.dtype))
    trainer = Trainer(task, 4)
    trainer.fit(model, 4)
    assert set(seen) == {torch.bfloat16}
    assert trainer.history[-1]["loss"] < trainer.history[0]["loss"]
    assert next(model.parameters()).dtype == torch.float32


def test_distillation_equals_the_numpy_reference(residual_task: ac.Task) -> None:
    torch.manual_seed(0)
    outputs, targets = torch.randn(6, 5), torch.randint(0, 5, (6,))
    teacher = nn.Linear(3, 5)
    inputs = torch.randn(6, 3)

    def softened(logits: np.ndarray) -> np.ndarray:
        powers = np.exp(logits / 3.0)
        return powers / powers.sum(1, keepdims=True)

    wanted = softened(teacher(inputs).detach().numpy().astype(np.float64))
    soft = softened(outputs.numpy().astype(np.float64))
    kl = (wanted * np.log(wanted / soft)).sum(1).mean()
    own = torch.nn.functional.cross_entropy(outputs, targets).item()
    loss = Distillation(teacher, 0.7, 3.0)(
        residual_task, inputs, outputs, residual_task.loss(outputs, targets)
    )
    assert loss.item() == pytest.approx(0.3 * own + 0.7 * 9 * kl, rel=1e-5)


def test_distillation_of_other_losses_is_the_distance_of_the_outputs(residual_task: ac.Task) -> None:
    task = replace(residual_task, loss=nn.L1Loss())
    teacher = nn.Linear(3, 2)
    inputs, outputs, targets = torch.randn(4, 3), torch.randn(4, 2), torch.randn(4, 2)
    loss = Distillation(teacher, 1.0, 3.0)(task, inputs, outputs, task.loss(outputs, targets))
    assert loss.item() == pytest.approx((teacher(inputs) - outputs).square().mean().item(), rel=1e-5)


def test_losses_off_the_cpu_are_summed_there_and_looked_at_in_time() -> None:
    losses = _Losses(3, torch.device("cpu"))
    losses.between = 50
    for value in range(49):
        losses.add(torch.tensor(math.nan if value == 7 else 1.0))
    with pytest.raises(DivergedError, match="the training loss became nan in epoch 3"):
        losses.add(torch.tensor(1.0))
    with pytest.raises(DivergedError, match="epoch 3"):
        losses.mean()


def test_models_with_hooks_are_not_compiled(residual_task: ac.Task) -> None:
    model = residual_task.model()
    assert _compiled(model) is not model
    model.register_forward_pre_hook(lambda module, args: None)
    assert _compiled(model) is model
