"""What a program makes of a split, as metrics see it: batch by batch, or all rows together.

Outputs and targets are tensors whose first dimension are the rows; lists of one entry a row, as detectors
have; or tuples and mappings of these.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from typing import Any

import torch
from torch import Tensor
from torch.utils import _pytree as pytree

from autocompress.errors import TaskError, one_line
from autocompress.task import Inputs, Split, Task
from autocompress.task.inputs import rows, shapes, sizes
from autocompress.task.opening import passed


def predictions(
    program: Callable[[Inputs], Any], batches: Split, task: Task, name: str = "val"
) -> Iterator[tuple[Any, Any, int]]:
    """What metrics see of one batch after the other, on the CPU, and how many rows it has.

    Args:
        program: takes the inputs of a batch where they are.
        batches: to predict.
        task: says what of a batch is what, and what metrics see.
        name: of the split, for messages.

    Raises:
        TaskError: the data fail, an output is complex, or `outputs` failed.
    """
    for batch in passed(batches, name):
        inputs = task.inputs_of(batch)
        # Not in inference mode, whose tensors a metric could not change in place.
        with torch.no_grad():
            returned = _returned(program, inputs, task)
            seen = _seen(task, returned)
        yield (
            pytree.tree_map_only(Tensor, _as_floats, seen),
            pytree.tree_map_only(Tensor, Tensor.cpu, task.targets_of(batch)),
            rows(inputs),
        )


def _returned(program: Callable[[Inputs], Any], inputs: Inputs, task: Task) -> Any:
    try:
        return program(inputs)
    except Exception as error:
        exported = task.example()
        if isinstance(error, TaskError) or sizes(inputs) == sizes(exported):
            raise
        raise TaskError(
            f"inputs must have the sizes of the first batches, {shapes(exported)} but for the batch, but some"
            f" have {shapes(inputs)} (say by dynamic= which vary): {one_line(error)}"
        ) from error


def _seen(task: Task, returned: Any) -> Any:
    if task.outputs is None:
        return task.seen(returned)
    try:
        return task.seen(returned)
    except Exception as error:
        raise TaskError(
            f"outputs must accept what the model returned, a {type(returned).__name__}, but failed: "
            f"{one_line(error)}"
        ) from error


def _as_floats(output: Tensor) -> Tensor:
    if output.is_complex():
        raise TaskError(f"the model must return tensors of real numbers but returned {output.dtype}.")
    output = output.detach().cpu()
    return output.float() if output.is_floating_point() else output


def predict(program: Callable[[Inputs], Any], batches: Split, task: Task) -> tuple[Any, Any]:
    """Outputs and targets of a whole split on the CPU."""
    outputs, targets = [], []
    for some_outputs, some_targets, _ in predictions(program, batches, task):
        outputs.append(some_outputs)
        targets.append(some_targets)
    return joined(outputs), joined(targets)


def row_count(values: Any) -> int | None:
    """How many rows outputs or targets have; None where they are no rows."""
    if isinstance(values, Tensor):
        return len(values) if values.dim() else None
    if isinstance(values, list):
        return len(values)
    parts = values.values() if isinstance(values, Mapping) else values if isinstance(values, tuple) else ()
    counts = {row_count(part) for part in parts}
    return counts.pop() if len(counts) == 1 else None


def selected(values: Any, index: Tensor) -> Any:
    """The rows of these positions, in this order."""
    if isinstance(values, Tensor):
        return values[index]
    if isinstance(values, list):
        return [values[position] for position in index.tolist()]
    if isinstance(values, Mapping):
        return {name: selected(part, index) for name, part in values.items()}
    return tuple(selected(part, index) for part in values)


def joined(pieces: list[Any]) -> Any:
    """The rows of all pieces; the list is emptied on the way, so that what is joined is not held twice.

    Raises:
        TaskError: tensors differ in more than their first dimension.
    """
    first = pieces[0]
    if isinstance(first, Tensor):
        return _joined_tensors(pieces)
    if isinstance(first, list):
        every = [row for piece in pieces for row in piece]
        pieces.clear()
        return every
    if isinstance(first, Mapping):
        columns = {name: [piece[name] for piece in pieces] for name in first}
        pieces.clear()
        return {name: joined(column) for name, column in columns.items()}
    if isinstance(first, tuple):
        parts = [list(column) for column in zip(*pieces, strict=True)]
        pieces.clear()
        return tuple(map(joined, parts))
    raise TaskError(
        f"outputs and targets must be tensors, or lists of one entry a row, for a metric that is a function "
        f"but are {type(first).__name__}: give a torchmetrics object."
    )


def _joined_tensors(pieces: list[Tensor]) -> Tensor:
    shapes = sorted({tuple(piece.shape[1:]) for piece in pieces})
    if len(shapes) != 1 or any(piece.dim() == 0 for piece in pieces):
        raise TaskError(
            "outputs and targets of all batches must have one shape for a metric that is a function, but "
            f"theirs without the rows are {shapes[:3]}: give a torchmetrics object, or batches of one shape."
        )
    # Memory is only taken as it is written, while the pieces are let go.
    total = torch.empty(sum(map(len, pieces)), *shapes[0], dtype=pieces[0].dtype)
    end = len(total)
    while pieces:
        piece = pieces.pop()
        total[end - len(piece) : end] = piece
        end -= len(piece)
    return total
