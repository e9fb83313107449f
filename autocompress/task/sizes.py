"""Sizes of inputs that vary beside the batch, as far as the first batches show them."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from typing import Any

from torch import Tensor
from torch.utils import _pytree as pytree

from autocompress.errors import TaskError, one_line
from autocompress.task.inputs import Inputs, rows, runs_over_batch, shapes
from autocompress.task.task import SPLITS, Batch, Task

# Batches of each split that are looked at.
_FIRST = 2


def with_varying_sizes(task: Task) -> Task:
    """The task with those sizes as `dynamic` in which the first batches of its splits differ, unless it says
    itself which vary.

    Raises:
        TaskError: batches differ in more than sizes, so that no model that is exported takes all.
    """
    if task.dynamic is not None:
        return task
    seen = [
        (name, _inputs(task, name, batch))
        for name in SPLITS
        if getattr(task, name) is not None
        for batch in task.first_batches(lambda drawn: len(drawn) == _FIRST, name)
    ]
    if not seen:
        return task
    _, first = seen[0]
    for name, other in seen[1:]:
        _check_alike(name, first, other)
    structure = pytree.tree_structure(first)
    leaves = zip(*(_without_batch(inputs) for _, inputs in seen), strict=True)
    varying = [_varying(list(shapes_of_leaf)) for shapes_of_leaf in leaves]
    if not any(varying):
        return task
    return replace(task, dynamic=pytree.tree_unflatten(varying, structure))


def _inputs(task: Task, name: str, batch: Batch) -> Inputs:
    """What the model is called with of a split's batch; what is wrong with it is said of the split."""
    try:
        return task.inputs_of(batch)
    except TaskError as error:
        raise TaskError(f"{name}: {error}") from error
    except Exception as error:
        if task.inputs is None:
            raise
        raise TaskError(
            f"inputs must accept each batch but failed on one of {name}: {one_line(error)}"
        ) from error


def _check_alike(name: str, first: Inputs, other: Inputs) -> None:
    same = pytree.tree_structure(first) == pytree.tree_structure(other)
    if not same or [len(s) for s in _without_batch(first)] != [len(s) for s in _without_batch(other)]:
        raise TaskError(
            f"{name} must yield inputs of the form that train's first batch has, {_form(first)}, but yields "
            f"{_form(other)}."
        )


def _form(inputs: Inputs) -> str:
    names = f" of {', '.join(inputs)}" if isinstance(inputs, Mapping) else ""
    return f"{shapes(inputs)}{names}"


def _without_batch(inputs: Inputs) -> list[tuple[int, ...]]:
    count = rows(inputs)
    return [
        tuple(leaf.shape[runs_over_batch(leaf, count) :]) if isinstance(leaf, Tensor) else ()
        for leaf in pytree.tree_leaves(inputs)
    ]


def _varying(seen: list[tuple[int, ...]]) -> dict[int, Any]:
    """Dimensions, counted with the batch, in which shapes differ."""
    return {
        dim + 1: f"size_{dim + 1}" for dim, sizes in enumerate(zip(*seen, strict=True)) if len(set(sizes)) > 1
    }
