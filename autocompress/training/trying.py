"""The user's own training is tried once, before anything is trained."""

from __future__ import annotations

import copy
from dataclasses import dataclass, replace

import torch
from torch import nn

from autocompress.errors import TaskError, TrialError, one_line
from autocompress.graph import Analysis
from autocompress.graph.bridging import bridge
from autocompress.methods.base import ParamGroup
from autocompress.surgery import groups_to_rewrite
from autocompress.task import Batch, Limits, Task, moved
from autocompress.task.checks import refuse_untrained
from autocompress.task.criterion import leaves_of, own_copy, trained_parameters
from autocompress.task.random_state import random_state_kept
from autocompress.training.distillation import Distillation
from autocompress.training.optimization import begin
from autocompress.training.own_step import Call, carried, taken


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


def has_own_training(task: Task) -> bool:
    """Whether a task brings more to train with than a loss."""
    return any(own is not None for own in (task.step, task.optimizer, task.scheduler))


def try_training(task: Task, model: nn.Module, analysis: Analysis) -> Tried:
    """Take one step with the optimiser, the schedule and the step of a task's own, as far as there are any.

    Args:
        task: of the model.
        model: on any device; not changed.
        analysis: of the model.

    Raises:
        TaskError: the step, the optimiser or the schedule fails on the model itself.
    """
    if not has_own_training(task):
        return Tried()
    with random_state_kept():
        own = copy.deepcopy(model).train()
        if task.step is None:
            _try_optimizer(task, own)
            return Tried()
        batch = carried(task.first_batch(), next(model.parameters()).device)
        calls = _try_step(task, own, batch)
        _try_optimizer(task, own)
        return Tried(_on_graphs(task, model, analysis, batch), _taught(task, own, calls))


def within_class(task: Task, model: nn.Module, analysis: Analysis, tried: Tried) -> Limits:
    """The limits of a task's model; where its step does not train the model's graph, all channels stay that
    cannot be cut within the model's class.

    Args:
        task: of the model.
        model: not changed.
        analysis: of the model.
        tried: what its training cannot do.
    """
    limits = task.limits_of(model)
    if tried.on_graphs is None:
        return limits
    example = moved(task.example(), next(model.parameters()).device)
    rewritten = groups_to_rewrite(model, analysis, example)
    layers = {m.layer for name in rewritten for m in analysis.group(name).members if m.role != "in"}
    reason = "the model's code fixes their number, and the task's own step does not train its graph"
    return replace(limits, whole=dict.fromkeys(sorted(layers), reason))


def _try_step(task: Task, model: nn.Module, batch: Batch) -> list[Call]:
    """The calls of the model that a step makes; it leaves gradients."""
    criterion = own_copy(task.step)
    # A step may change its batch.
    loss, calls = taken(criterion, model, copy.deepcopy(batch))
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
