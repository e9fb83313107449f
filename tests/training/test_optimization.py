"""Own optimisers and schedules: what they are given, and one schedule over all trainings of a trial."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import replace
from typing import Any

import pytest
import torch
from torch import nn
from torch.optim.lr_scheduler import CosineAnnealingLR, LambdaLR, OneCycleLR, ReduceLROnPlateau, StepLR
from torch.optim.optimizer import register_optimizer_step_pre_hook

import autocompress as ac
from autocompress.errors import TaskError
from autocompress.methods.base import ParamGroup
from autocompress.training.loop import Plain, Trainer
from autocompress.training.optimization import begin, scheduled


@pytest.fixture
def rates() -> Iterator[list[list[float]]]:
    """The rates of each optimiser step that is taken, by parameter group."""
    taken: list[list[float]] = []

    def before(optimizer: torch.optim.Optimizer, *_: object) -> None:
        taken.append([float(group["lr"]) for group in optimizer.param_groups])

    handle = register_optimizer_step_pre_hook(before)
    yield taken
    handle.remove()


def sgd(groups: list[dict[str, Any]]) -> torch.optim.Optimizer:
    return torch.optim.SGD(groups, lr=0.1)


def one_cycle(optimizer: torch.optim.Optimizer, steps: int) -> OneCycleLR:
    return OneCycleLR(optimizer, max_lr=0.2, total_steps=steps)


def compounding(optimizer: torch.optim.Optimizer, steps: int) -> CosineAnnealingLR:
    """Each rate follows from the one before."""
    return CosineAnnealingLR(optimizer, T_max=steps)


def test_the_recipes_schedule_warms_up_linearly_and_falls_as_a_cosine() -> None:
    factors = [scheduled(step, 0.2, 10) for step in (0, 1, 2, 6, 10, 12)]
    assert factors == pytest.approx([0.01, 0.5, 1.0, 0.5, 0.0, 0.0])


@pytest.mark.parametrize("warmup", [0.001, 0.005, 0.1, 0.0])
def test_the_rate_rises_to_its_peak_and_never_above_it(warmup: float) -> None:
    factors = [scheduled(step, warmup, round(100 / max(warmup, 1e-3))) for step in range(101)]
    rising = factors if warmup else factors[:1]
    assert rising == sorted(rising)
    assert max(factors) == 1.0
    assert factors[0] == (0.01 if warmup else 1.0)


@pytest.mark.parametrize("scheduler", [None, one_cycle, compounding])
def test_one_schedule_spans_all_trainings_and_each_has_its_factors(
    residual_task: ac.Task, rates: list[list[float]], scheduler: Callable[..., Any] | None
) -> None:
    class Gated(Plain):
        def param_groups(self) -> list[ParamGroup]:
            first, *others = self.model.parameters()
            return [ParamGroup(others), ParamGroup([first], lr_scale=5.0, weight_decay=0.0)]

    task = replace(residual_task, optimizer=sgd, scheduler=scheduler)
    trainer, model = Trainer(task, epochs=4, lr_scale=2.0), task.model()
    trainer.fit(model, 1.34, Gated(model))
    trainer.fit(model, 2.66)
    optimizer = torch.optim.SGD([nn.Parameter(torch.zeros(1))], lr=0.1)
    wanted = []
    made = LambdaLR(optimizer, lambda step: scheduled(step, 0.1, 12)) if scheduler is None else None
    made = made or scheduler(optimizer, 12)
    for _ in range(12):
        wanted.append(optimizer.param_groups[0]["lr"])
        optimizer.step()
        made.step()
    # The fixture saw those of this loop too.
    seen = rates[:12]
    assert [step[0] for step in seen] == pytest.approx([2 * rate for rate in wanted])
    assert [step[1:] for step in seen] == [[pytest.approx(10 * rate)] for rate in wanted[:4]] + [[]] * 8
    assert [entry["epoch"] for entry in trainer.history] == [1, 2, 3, 4]


def test_an_own_optimizer_is_given_named_groups_and_what_must_not_decay(residual_task: ac.Task) -> None:
    given: list[list[dict[str, Any]]] = []

    def optimizer(groups: list[dict[str, Any]]) -> torch.optim.Optimizer:
        given.append([dict(group) for group in groups])
        return torch.optim.AdamW(groups, lr=1e-3, weight_decay=0.3)

    task = replace(residual_task, optimizer=optimizer)
    session = ac.Alcn(initial_ratio=0.5).start(task.model(), task)
    Trainer(task, 1).fit(session.model, 1, session)
    layers, gates = given[0]
    assert [id(p) for p in layers["params"] + gates["params"]] == [
        id(p) for group in session.param_groups() for p in group.params
    ]
    assert layers.keys() == {"params", "param_names"}
    assert layers["param_names"] == [n for n, _ in session.model.named_parameters() if "alcn" not in n]
    assert gates["weight_decay"] == 0.0
    made = begin(task, session.param_groups(), {}, 1.0, 10).optimizer
    assert [group["weight_decay"] for group in made.param_groups] == [0.3, 0.0]


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (
            {"optimizer": lambda groups: None},
            r"optimizer must make a torch\.optim\.Optimizer but made a None",
        ),
        ({"optimizer": lambda groups: groups[7]}, "of parameter groups but failed: list index out of range"),
        (
            {"optimizer": lambda groups: torch.optim.SGD(groups[0]["params"][:3], 0.1)},
            r"leaves out 5 of 8, such as '2\.weight' \(requires_grad=False freezes one\)",
        ),
        (
            {"optimizer": lambda groups: torch.optim.SGD([p for g in groups for p in g["params"]], 0.1)},
            "optimizer must keep apart the parameter groups that it is given",
        ),
        ({"scheduler": lambda optimizer, steps: steps}, r"with a step\(\) but made a int"),
        ({"scheduler": lambda optimizer: optimizer}, "number of its steps but failed: "),
        (
            {"scheduler": lambda optimizer, steps: ReduceLROnPlateau(optimizer)},
            "ReduceLROnPlateau failed: .* missing",
        ),
    ],
)
def test_what_cannot_be_used_is_refused_in_one_line(
    options: dict[str, Any], message: str, residual_task: ac.Task
) -> None:
    model = nn.Sequential(*(nn.Linear(2, 2) for _ in range(4)))
    first, *others = model.parameters()
    names = {id(parameter): name for name, parameter in model.named_parameters()}
    task = replace(residual_task, **options)
    with pytest.raises(TaskError, match=message) as refused:
        begin(
            task,
            [ParamGroup([first, *others[:1], *others[2:]]), ParamGroup([others[1]], 5.0)],
            names,
            1,
            9,
            1,
        )
    assert "\n" not in str(refused.value)


def test_settings_of_the_recipe_that_have_no_effect_are_refused_by_name(residual_task: ac.Task) -> None:
    with pytest.raises(TaskError, match=r"^lr of the recipe must not be given beside an optimizer of the ta"):
        replace(residual_task, optimizer=sgd, recipe=ac.Recipe(lr=0.1))
    with pytest.raises(TaskError, match=r"^warmup of the recipe must not be given beside a scheduler of "):
        replace(residual_task, scheduler=one_cycle, recipe=ac.Recipe(warmup=0.0))


def test_batches_are_accumulated_into_steps_of_their_mean(
    residual_task: ac.Task, rates: list[list[float]]
) -> None:
    """Three batches of 32 rows, by steps of two batches and one, as by batches of 64 rows and 32."""
    task = replace(residual_task, train=replace(residual_task.train, shuffle=False))
    task = task.with_recipe(epochs=2, optimizer="sgd", grad_clip=0.05, lr=0.1)
    wide = replace(task, train=replace(task.train, batch_size=64))
    narrow = task.with_recipe(accumulate=2)
    trained = []
    for each in (wide, narrow):
        torch.manual_seed(0)
        # Without batch norm, whose statistics are those of a batch.
        model = nn.Sequential(nn.Flatten(), nn.Linear(192, 16), nn.ReLU(), nn.Linear(16, 5))
        heard: list[float] = []

        class Heard(Plain):
            def penalty(self) -> torch.Tensor:
                return self.model[1].weight.square().sum()

            def after_step(self, progress: float, heard: list[float] = heard) -> None:
                heard.append(progress)

        trainer = Trainer(each, 2)
        assert trainer.steps_per_epoch == 2
        trainer.fit(model, 2, Heard(model))
        assert heard == [0.25, 0.5, 0.75, 1.0]
        trained.append([parameter.detach() for parameter in model.parameters()])
    assert rates[:4] == rates[4:]
    for first, second in zip(*trained, strict=True):
        torch.testing.assert_close(first, second, rtol=1e-4, atol=1e-6)


def test_a_schedule_of_epochs_is_told_how_many_steps_they_have(
    residual_task: ac.Task, rates: list[list[float]]
) -> None:
    def halved(optimizer: torch.optim.Optimizer, steps: int, steps_per_epoch: int) -> StepLR:
        assert steps == 3 * steps_per_epoch
        return StepLR(optimizer, step_size=steps_per_epoch, gamma=0.5)

    task = replace(residual_task, optimizer=sgd, scheduler=halved)
    trainer, model = Trainer(task, 3), task.model()
    trainer.fit(model, 1.34)
    trainer.fit(model, 1.66)
    assert [step[0] for step in rates] == pytest.approx([0.1] * 3 + [0.05] * 3 + [0.025] * 3)
