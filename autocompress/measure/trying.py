"""Metrics are tried before a search, on what they will get in it."""

from __future__ import annotations

from collections.abc import Callable
from itertools import chain
from typing import Any

import torch
from torch import nn

from autocompress.errors import TaskError, one_line
from autocompress.measure.evaluation import score_split
from autocompress.score import SCORE
from autocompress.task import Inputs, Task, call
from autocompress.task.inputs import shapes
from autocompress.task.opening import passed

# What is measured of every model beside its task metrics.
TAKEN = ("bytes", "weight_bytes", "latency", "latency_spread", "memory", "macs", "params", SCORE)
# Signs that tell a metric's name from what is said of it, in objectives and constraints.
_SIGNS = ":|<>=,"


def check_metrics(task: Task, model: nn.Module) -> None:
    """Run validation and test through the model and the metrics, without standard errors.

    Metrics of the user's own are tried on the whole validation split, because that is what they get in every
    trial: an AUC may need all classes, of which the first batch has one. Otherwise, and on the test split,
    the first batch is enough where the metrics accept it; where they do not, the whole split decides.

    Args:
        task: whose splits are tried.
        model: with the task's weights where there are any.

    Raises:
        TaskError: a split is empty or does not suit the model, or a metric its outputs.
    """
    _check_names(task)
    for split in ("val", "test"):
        batches = getattr(task, split)
        if batches is None:
            continue
        rest = passed(batches, split)
        first = next(rest, None)
        if first is None:
            raise TaskError(f"{split} must yield at least one batch but it is empty.")
        program = _naming(split, model.eval())
        # Where the model does not take the first batch, no other would mend that.
        with torch.no_grad():
            program(task.inputs_of(first))
        if split == "val" and task.metrics is not None:
            score_split(program, chain([first], rest), task, resampled=False)
            continue
        try:
            score_split(program, [first], task, resampled=False)
        except TaskError:
            score_split(program, chain([first], rest), task, resampled=False)


def _check_names(task: Task) -> None:
    """Names that are free, of what can be a metric."""
    for name, metric in (task.metrics or {}).items():
        if not name.strip() or any(sign in name for sign in _SIGNS):
            raise TaskError(f"metrics must have names without {' '.join(_SIGNS)} but one is {name!r}.")
        if name in TAKEN:
            raise TaskError(f"metrics must not be named as what is measured of every model but {name!r} is.")
        if isinstance(metric, type) or not callable(metric):
            given = f"the class {metric.__name__}" if isinstance(metric, type) else repr(metric)
            raise TaskError(
                f"metric {name!r} must be a function of outputs and targets, or a torchmetrics object, "
                f"but is {given}."
            )


def _naming(split: str, model: nn.Module) -> Callable[[Inputs], Any]:
    """A model whose failures name the split that they are on."""

    def program(inputs: Inputs) -> Any:
        try:
            return call(model, inputs)
        except Exception as error:
            raise TaskError(
                f"{split} must yield inputs for the model but its forward failed on "
                f"{shapes(inputs)}: {one_line(error)}"
            ) from error

    return program
