"""An optimiser over what trains, with its schedule and the factors on its rates."""

from __future__ import annotations

import inspect
import math
import warnings
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
from torch.optim.lr_scheduler import LambdaLR

from autocompress.errors import TaskError, one_line
from autocompress.methods.base import ParamGroup
from autocompress.task import Task
from autocompress.task.optimizers import make_optimizer, param_group


@dataclass
class Optimization:
    """Takes optimiser steps at the rates of a schedule, each times its group's factor.

    Args:
        optimizer: over all that trains; its groups hold the schedule's own rates between steps.
        scheduler: of the optimiser, at the step that is next.
        factors: on the rates of the optimiser's groups. A schedule may compute the next rate from the last,
            or know of no other rate than its own, so they are applied to each step alone.
        left: steps that the schedule is made for yet.
    """

    optimizer: torch.optim.Optimizer
    scheduler: Any
    factors: Sequence[float]
    left: int

    def step(self) -> None:
        """Take one with the gradients that there are."""
        groups = self.optimizer.param_groups
        rates = [group["lr"] for group in groups]
        for group, rate, factor in zip(groups, rates, self.factors, strict=True):
            group["lr"] = rate * factor
        self.optimizer.step()
        for group, rate in zip(groups, rates, strict=True):
            group["lr"] = rate
        if self.left > 0:
            next_rates(self.scheduler)
            self.left -= 1


def begin(
    task: Task,
    groups: Sequence[ParamGroup],
    names: Mapping[int, str],
    lr_scale: float,
    steps: int,
    done: int = 0,
    steps_per_epoch: int = 1,
) -> Optimization:
    """An optimisation whose schedule is where it would be after the steps that are done.

    Args:
        task: whose optimiser and schedule it is, or whose recipe's.
        groups: what trains.
        names: of the parameters, by their ids.
        lr_scale: factor on every rate.
        steps: that the schedule spans.
        done: of these.
        steps_per_epoch: that a schedule may ask for by that name.

    Raises:
        TaskError: the task's own optimiser or schedule cannot be used.
    """
    groups = [group for group in groups if group.params]
    described = []
    for group in groups:
        entry = param_group(group.params, [names.get(id(p), "") for p in group.params])
        described.append(
            entry if group.weight_decay is None else entry | {"weight_decay": group.weight_decay}
        )
    optimizer = make_optimizer(task, described)
    factors = [lr_scale * factor for factor in _factors(optimizer, groups)]
    scheduler = _scheduler(task, optimizer, steps, steps_per_epoch)
    return Optimization(optimizer, _gone_on(scheduler, done), factors, steps - done)


def _factors(optimizer: torch.optim.Optimizer, groups: Sequence[ParamGroup]) -> list[float]:
    """Of each of an optimiser's groups, whose parameters are of groups that have one."""
    factor_of = {id(parameter): group.lr_scale for group in groups for parameter in group.params}
    factors = []
    for group in optimizer.param_groups:
        own = {factor_of.get(id(parameter), 1.0) for parameter in group["params"]}
        if len(own) > 1:
            raise TaskError(
                "optimizer must keep apart the parameter groups that it is given, which train at different "
                "rates, but puts some into one (pass them on as they are)."
            )
        factors.append(next(iter(own), 1.0))
    return factors


def _scheduler(task: Task, optimizer: torch.optim.Optimizer, steps: int, steps_per_epoch: int) -> Any:
    """The schedule of an optimiser, at its first step."""
    if task.scheduler is None:
        return LambdaLR(optimizer, partial(scheduled, warmup=task.recipe.warmup, steps=steps))
    make = task.scheduler
    if "steps_per_epoch" in _parameters(make):
        make = partial(make, steps_per_epoch=steps_per_epoch)
    try:
        scheduler = make(optimizer, steps)
    except Exception as error:
        raise TaskError(
            "scheduler must make one of an optimizer and the number of its steps but failed: "
            f"{one_line(error)}"
        ) from error
    if not callable(getattr(scheduler, "step", None)):
        raise TaskError(f"scheduler must make an object with a step() but made a {type(scheduler).__name__}.")
    return scheduler


def _parameters(function: Any) -> Collection[str]:
    try:
        return inspect.signature(function).parameters
    except (TypeError, ValueError):  # Compiled code need not have one.
        return ()


def _gone_on(scheduler: Any, steps: int) -> Any:
    """A schedule after so many steps."""
    with warnings.catch_warnings():
        # That the optimiser did not take these steps.
        warnings.simplefilter("ignore")
        for _ in range(steps):
            next_rates(scheduler)
    return scheduler


def next_rates(scheduler: Any) -> None:
    """A schedule's next step.

    Raises:
        TaskError: the user's own scheduler fails.
    """
    try:
        scheduler.step()
    except Exception as error:
        raise TaskError(
            f"scheduler must go on by step() without arguments but {type(scheduler).__name__} failed: "
            f"{one_line(error)}"
        ) from error


def scheduled(step: int, warmup: float, steps: int) -> float:
    """The recipe's factor on the peak rate: linear warm-up from 1 %, then ½(1 + cos π·t), t from 0 to 1.

    Args:
        step: from 0.
        warmup: share of the steps.
        steps: in all.
    """
    progress = min(step / max(steps, 1), 1.0)
    if progress < warmup:
        return max(progress / warmup, 0.01)
    return 0.5 * (1 + math.cos(math.pi * (progress - warmup) / (1 - warmup)))
