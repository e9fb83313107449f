"""The metrics of a task over a split, in one pass over its batches."""

from __future__ import annotations

import math
import warnings
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, TypeGuard

from torch import Tensor, nn

from autocompress.errors import DivergedError, TaskError, one_line
from autocompress.measure.accuracy import Accuracy, ignored_target
from autocompress.measure.per_class import ClassCounts
from autocompress.measure.predictions import joined, predictions, row_count, selected
from autocompress.measure.resampling import REPLICATES, Resamples, Score, repeated, score_of
from autocompress.task import Inputs, MetricFn, Split, Task
from autocompress.task.inputs import described

if TYPE_CHECKING:
    from torchmetrics import Metric


@dataclass(frozen=True)
class SplitScores:
    """A task's metrics over a split.

    Args:
        values: by name.
        errors: standard error of each; NaN where it is not known, see `score_of`.
        replicates: each metric's values over resamples, see `Score`; empty where there are none.
        rows: of the split.
        classes: of each class of a classifier, the targets that are right and all of them; else empty.
    """

    values: dict[str, float]
    errors: dict[str, float]
    replicates: dict[str, list[float]]
    rows: int
    classes: list[tuple[int, int]] = field(default_factory=list)


def task_metrics(task: Task) -> Mapping[str, MetricFn | Metric | Accuracy]:
    """The task's own metrics; top-1 accuracy where it names none."""
    return task.metrics if task.metrics is not None else {"accuracy": Accuracy(ignored_target(task.loss))}


def measure_split(
    program: Callable[[Inputs], Any], batches: Split, task: Task, resampled: bool = True, name: str = "val"
) -> SplitScores:
    """The task's metrics over a split, with standard errors by bootstrap over its rows.

    The default accuracy and `torchmetrics` objects see one batch after the other, and none is kept. The
    outputs of the whole split are held, once, where a metric is a function. For its replicates a function is
    called `REPLICATES` times more, and an object is updated as often with the rows of each batch, unless
    these are not wanted (`resampled=False`).

    Raises:
        DivergedError: a metric is NaN or infinite.
        TaskError: the data or a metric failed, or returned something else than a number.
    """
    scores = score_split(program, batches, task, resampled, name)
    for name, value in scores.values.items():
        if not math.isfinite(value):
            raise DivergedError(f"metric {name} is {value}.")
    return scores


def score_split(
    program: Callable[[Inputs], Any],
    batches: Split,
    task: Task,
    resampled: bool = True,
    name: str = "val",
) -> SplitScores:
    """A task's metrics over a split, whatever their values.

    Args:
        program: what makes outputs of inputs.
        batches: the split.
        task: whose metrics count.
        resampled: whether replicates and errors are wanted. There are none either where the outputs or
            targets of a batch are no rows, that is, do not have the same first dimension.
        name: of the split, for messages.

    Raises:
        TaskError: the data or a metric failed, or returned something else than a number.
    """
    metrics = task_metrics(task)
    updated = {name: _updated(name, m, resampled) for name, m in metrics.items() if not _is_function(m)}
    functions = {name: metric for name, metric in metrics.items() if _is_function(metric)}
    resamples, rows, kept = Resamples(), 0, _Kept()
    by_class = ClassCounts(ignored_target(task.loss)) if task.cross_entropy else None
    for outputs, targets, count in predictions(program, batches, task, name):
        resampled = resampled and row_count(outputs) == row_count(targets) == count
        weights = resamples.draw(count) if resampled else None
        rows += count
        if by_class is not None:
            by_class.update(outputs, targets)
        for metric in updated.values():
            metric.update(outputs, targets, weights)
        if functions:
            kept.add(outputs, targets, weights)
    scores = {name: metric.score() for name, metric in updated.items()}
    if functions:
        whole_outputs, whole_targets, whole_weights = kept.joined(resampled)
        for name, function in functions.items():
            scores[name] = _function_score(name, function, whole_outputs, whole_targets, whole_weights)
    return SplitScores(
        {name: scores[name].value for name in metrics},
        {name: scores[name].error if resampled else math.nan for name in metrics},
        {name: scores[name].replicates if resampled else [] for name in metrics},
        rows,
        [] if by_class is None else by_class.counts(),
    )


@dataclass
class _Kept:
    """Batches that are kept for functions of a whole split."""

    outputs: list[Any] = field(default_factory=list)
    targets: list[Any] = field(default_factory=list)
    weights: list[Tensor] = field(default_factory=list)

    def add(self, outputs: Any, targets: Any, weights: Tensor | None) -> None:
        self.outputs.append(outputs)
        self.targets.append(targets)
        if weights is not None:
            self.weights.append(weights)

    def joined(self, resampled: bool) -> tuple[Any, Any, Tensor | None]:
        """Outputs, targets and weights of all rows, which are not kept any more."""
        return joined(self.outputs), joined(self.targets), joined(self.weights) if resampled else None


class _MetricObject:
    """A `torchmetrics.Metric` over a split: a copy that sees all rows, and one for each resample.

    This is `torchmetrics.wrappers.BootStrapper`, but with resamples that do not depend on PyTorch's global
    generator, nor on how the rows are batched.
    """

    def __init__(self, name: str, metric: Metric, resampled: bool) -> None:
        self.name = name
        self.metric = _fresh(metric)
        self.resampled: list[Metric | None] = [
            _fresh(metric) if resampled else None for _ in range(REPLICATES)
        ]
        self.updated = [False] * REPLICATES

    def update(self, outputs: Any, targets: Any, weights: Tensor | None) -> None:
        with _named(self.name, outputs, targets):
            self.metric.update(outputs, targets)
        if weights is None:
            return
        with _unheard():
            for position, metric in enumerate(self.resampled):
                index = repeated(weights[:, position])
                if metric is None or not len(index):
                    continue
                try:
                    metric.update(selected(outputs, index), selected(targets, index))
                    self.updated[position] = True
                except Exception:
                    # Not defined for this resample, which is left out.
                    self.resampled[position] = None

    def score(self) -> Score:
        try:
            computed = self.metric.compute()
        except Exception as error:
            raise TaskError(
                f"metric {self.name!r} must be computable over a split but failed: {one_line(error)}"
            ) from error
        value = _number(self.name, computed)
        drawn = [
            metric
            for metric, updated in zip(self.resampled, self.updated, strict=True)
            if metric is not None and updated
        ]
        with _unheard():
            return score_of(value, [_defined(metric.compute) for metric in drawn])


def _fresh(metric: Metric) -> Metric:
    copy = metric.clone().cpu()
    copy.reset()
    return copy


def _updated(name: str, metric: Any, resampled: bool) -> Accuracy | _MetricObject:
    return metric.fresh() if isinstance(metric, Accuracy) else _MetricObject(name, metric, resampled)


def _is_function(metric: MetricFn | Metric | Accuracy) -> TypeGuard[MetricFn]:
    """Whether a metric is called with a whole split, as a loss module may be, and not updated."""
    if isinstance(metric, Accuracy):
        return False
    if not isinstance(metric, nn.Module):
        return True
    # It takes seconds to import, and who has such an object has imported it.
    from torchmetrics import Metric

    return not isinstance(metric, Metric)


def _function_score(
    name: str, function: MetricFn, outputs: Any, targets: Any, weights: Tensor | None
) -> Score:
    with _named(name, outputs, targets):
        returned = function(outputs, targets)
    value = _number(name, returned)
    if weights is None:
        return score_of(value, [])
    indices = (repeated(column) for column in weights.T)
    with _unheard():
        return score_of(
            value, [_defined(function, selected(outputs, rows), selected(targets, rows)) for rows in indices]
        )


@contextmanager
def _named(name: str, outputs: Any, targets: Any) -> Iterator[None]:
    """What a user's metric raises, in one line."""
    try:
        yield
    except Exception as error:
        raise TaskError(
            f"metric {name!r} must accept outputs {described(outputs)} and targets "
            f"{described(targets)} but failed: {one_line(error)}"
        ) from error


def _unheard() -> warnings.catch_warnings[None]:
    """Warnings of a metric over resamples, a hundred times those it gives over the rows as they are."""
    return warnings.catch_warnings(action="ignore")


def _defined(compute: Callable[..., Any], *arguments: Any) -> float:
    """A metric's value over a resample; NaN where it is not defined, as where a class was not drawn."""
    try:
        return float(compute(*arguments))
    except Exception:
        return math.nan


def _number(name: str, returned: Any) -> float:
    try:
        return float(returned)
    except Exception as error:
        shape = f" of shape {tuple(returned.shape)}" if hasattr(returned, "shape") else ""
        raise TaskError(
            f"metric {name!r} must return one number but returned a {type(returned).__name__}{shape}."
        ) from error
