"""What int8 files are calibrated and judged by: training rows, as validation rows judge what comes of it."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from autocompress.checkpoint.quantize import Control, Difference
from autocompress.checkpoint.store import UNQUANTISED
from autocompress.task import Task
from autocompress.task.inputs import rows, split_rows
from autocompress.trial.measuring import Measuring

# Training rows that ranges are read off, and as many by which the cost is judged.
_ROWS = 256


def int8_data(task: Task, measuring: Measuring) -> tuple[list[Any], Control | None]:
    """Batches to calibrate on, and the control that says of others what int8 costs; none of other artefacts.

    Args:
        task: whose training rows are used.
        measuring: where latency is measured by the user's own function, nothing is timed here.
    """
    if measuring.artifact not in UNQUANTISED:
        return [], None
    batches = task.calibration(2 * _ROWS)
    half = min(_ROWS, -(-sum(map(rows, batches)) // 2))
    calibrating: list[Any] = []
    judging: list[Any] = []
    seen = 0
    for piece in [piece for batch in batches for piece in split_rows(batch, half)]:
        (calibrating if seen < half else judging).append(piece)
        seen += rows(piece)
    timed = measuring.latency.by is None
    return calibrating, Control(judging or calibrating, _difference(task), timed=timed)


def _difference(task: Task) -> Difference:
    """How much answers differ: of classes, the share of rows, or of places, where another one is greatest; of
    numbers, the squared error relative to how much they vary."""

    def of_classes(expected: Sequence[Any], given: Sequence[Any]) -> float:
        before, after = (
            torch.cat([_greatest(task, outputs) for outputs in side]) for side in (expected, given)
        )
        return float((before != after).float().mean())

    def of_numbers(expected: Sequence[Any], given: Sequence[Any]) -> float:
        before, after = (
            torch.cat([task.answer(outputs).reshape(-1).double() for outputs in side])
            for side in (expected, given)
        )
        return float((before - after).square().mean() / before.var(correction=0).clamp_min(1e-12))

    return of_classes if task.cross_entropy else of_numbers


def _greatest(task: Task, outputs: Any) -> Tensor:
    """The class of each row, or place, `(n,)`; of one number, whether it is positive."""
    answer = task.answer(outputs)
    several = answer.dim() > 1 and answer.shape[1] > 1
    return answer.argmax(1).reshape(-1) if several else answer.reshape(-1) > 0
