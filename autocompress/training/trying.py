"""The user's own training is tried once, before anything is trained."""

from __future__ import annotations

import copy
from dataclasses import dataclass

import torch
from torch import nn

from autocompress.errors import TaskError, TrialError, one_line
from autocompress.graph import Analysis
from autocompress.graph.bridging import bridge
from autocompress.methods.base import ParamGroup
from autocompress.task import Batch, Task
from autocompress.task.checks import refuse_untrained
from autocompress.task.criterion import leaves_of, own_copy, trained_parameters
from autocompress.task.random_state import random_state_kept
from autocompress.training.distillation import Distillation
from autocompress.training.optimization import begin
from autocompress.training.own_step import Call, taken


@dataclass(frozen=True)
class Tried:
    """What the user's own training cannot do.

    Args:
        on_graphs: why its step does not train the model's graph, as some methods leave it; None where it
            does.
        taught: why no trial can learn from a teacher beside it; None where they can.
    """

    on_graphs: str | None = None
    taught: str | None = None


def try_training(task: Task, model: nn.Module, analysis: Analysis) -> Tried:
    """Take one step with the optimiser, the schedule and the step of a task's own, as far as there are any.

    Args:
        task: of the model.
        model: on the CPU; not changed.
        analysis: of the model.

    Raises:
        TaskError: the step, the optimiser or the schedule fails on the model itself.
    """
    if task.step is None and task.optimizer is None and task.scheduler is None:
        return Tried()
    with random_state_kept():
        own = copy.deepcopy(model).train()
        if task.step is None:
            _try_optimizer(task, own)
            return Tried()
        batch = copy.deepcopy(task.first_batch())  # which a step may change
        calls = _try_step(task, own, batch)
        _try_optimizer(task, own)
        return Tried(_on_graphs(task, model, analysis, batch), _taught(task, own, calls))


def _try_step(task: Task, model: nn.Module, batch: Batch) -> list[Call]:
    """The calls of the model that a step makes; it leaves gradients."""
    criterion = own_copy(task.step)
    loss, calls = taken(criterion, model, batch)
    if not calls:
        raise TaskError(
            "step must call the model that it is given, as model(...), but called none or only parts of it, "
            "which says nothing of the model as a whole."
        )
    leaves = {id(leaf) for leaf in leaves_of(loss)}
    if not any(id(parameter) in leaves for parameter in model.parameters()):
        raise TaskError("step must return a loss with a gradient but it depends on no weight of the model.")
    refuse_untrained("step", loss, [*model.parameters(), *trained_parameters(criterion).values()])
    loss.backward()  # type: ignore[no-untyped-call]
    return calls


def _try_optimizer(task: Task, model: nn.Module) -> None:
    """An optimiser step with groups of several rates, as methods have them, and the schedule's next."""
    named = {name: p for name, p in model.named_parameters() if p.requires_grad}
    first, *others = named.values()
    groups = [ParamGroup([first]), ParamGroup(others, lr_scale=2.0, weight_decay=0.0)]
    optimization = begin(task, groups, {id(p): name for name, p in named.items()}, 1.0, steps=100, done=1)
    try:
        optimization.step()
    except Exception as error:
        raise TaskError(
            f"optimizer must take steps without a closure but its step failed: {one_line(error)}"
        ) from error


def _on_graphs(task: Task, model: nn.Module, analysis: Analysis, batch: Batch) -> str | None:
    """Why a step does not train the model's graph, which has its layers but not its class."""
    try:
        graph = bridge(copy.deepcopy(model), analysis, []).train()
        _try_step(task, graph, batch)
    except (TaskError, TrialError) as error:
        return one_line(error)
    return None


def _taught(task: Task, model: nn.Module, calls: list[Call]) -> str | None:
    """Why what a step called the model with says nothing of how it compares with a teacher."""
    teacher = copy.deepcopy(model).eval()
    try:
        Distillation(teacher, 0.5, 2.0).of_calls(task, calls, torch.zeros(()))
    except Exception as error:
        # The user's model, called in evaluation with what training calls it with.
        return f"{type(error).__name__}: {one_line(error)}"
    return None
