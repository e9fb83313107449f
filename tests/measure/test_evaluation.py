"""Metrics of a split in one pass: values, memory, standard errors against SciPy, faults in one line."""

from __future__ import annotations

import math
import warnings
import weakref
from collections.abc import Iterator
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch
import torchmetrics
from scipy.stats import bootstrap
from sklearn.metrics import f1_score, log_loss, roc_auc_score
from torch import Tensor, nn
from torchmetrics.classification import MulticlassAccuracy, MulticlassF1Score

import autocompress as ac
from autocompress.errors import DivergedError, TaskError
from autocompress.measure import measure_split
from autocompress.measure.resampling import REPLICATES
from tests.measure.test_accuracy import drawn

Batches = list[tuple[Tensor, Tensor]]


def split(inputs: Tensor, targets: Tensor, batch: int = 32) -> Batches:
    return list(zip(inputs.split(batch), targets.split(batch), strict=True))


def task(**metrics: Any) -> ac.Task:
    return ac.Task(model=nn.Identity, train=[], metrics=metrics or None)


def identity(inputs: Tensor) -> Tensor:
    return inputs


def squared_error(outputs: Tensor, targets: Tensor) -> float:
    return float(((outputs - targets) ** 2).mean())


def top1(outputs: Tensor, targets: Tensor) -> float:
    return (outputs.argmax(1) == targets).double().mean().item()


def auc(outputs: Tensor, targets: Tensor) -> float:
    return float(roc_auc_score(targets.numpy(), outputs.softmax(1).double().numpy()[:, 1]))


def test_functions_and_objects_have_the_value_of_the_whole_split() -> None:
    outputs, targets = drawn(150, 4)
    metrics = {
        "f1": MulticlassF1Score(4, average="macro"),
        "logloss": lambda o, t: float(log_loss(t, o.double().softmax(1))),
    }
    scores = measure_split(identity, split(outputs, targets), task(**metrics))
    assert scores.values["f1"] == pytest.approx(f1_score(targets, outputs.argmax(1), average="macro"))
    assert scores.values["logloss"] == pytest.approx(log_loss(targets, outputs.double().softmax(1)))
    assert scores.rows == 150
    assert list(scores.values) == ["f1", "logloss"]
    assert all(len(replicates) == REPLICATES for replicates in scores.replicates.values())


def test_the_default_a_function_and_an_object_share_their_resamples() -> None:
    batches = split(*drawn(150, 4))
    default = measure_split(identity, batches, task()).replicates["accuracy"]
    own = measure_split(identity, batches, task(f=top1, o=MulticlassAccuracy(4, average="micro")))
    assert own.replicates["f"] == default
    assert own.replicates["o"] == pytest.approx(default, abs=2e-6)


def test_differences_of_two_models_are_paired() -> None:
    """Models that agree on most rows differ by far less than their errors say."""
    outputs, targets = drawn(400, 4)
    other = outputs.clone()
    other[:8] = torch.randn(8, 4, generator=torch.Generator().manual_seed(2))
    first, second = (measure_split(identity, split(o, targets), task()) for o in (outputs, other))
    pairs = zip(first.replicates["accuracy"], second.replicates["accuracy"], strict=True)
    right = (outputs.argmax(1) == targets).double() - (other.argmax(1) == targets).double()
    spread = np.std([a - b for a, b in pairs], ddof=1)
    assert spread == pytest.approx(float(right.std() / math.sqrt(400)), rel=0.25)
    assert spread < 0.3 * first.errors["accuracy"]


def test_the_error_of_a_mean_is_that_of_scipys_bootstrap() -> None:
    generator = torch.Generator().manual_seed(3)
    outputs, targets = (torch.randn(200, 1, generator=generator) for _ in range(2))
    scores = measure_split(identity, split(outputs, targets), task(mse=squared_error))
    losses = ((outputs - targets) ** 2).flatten().numpy()
    reference = bootstrap((losses,), np.mean, n_resamples=4000, method="basic", rng=1).standard_error
    assert scores.errors["mse"] == pytest.approx(reference, rel=0.21)
    objects = measure_split(identity, split(outputs, targets), task(mse=torchmetrics.MeanSquaredError()))
    assert objects.errors["mse"] == pytest.approx(scores.errors["mse"], rel=1e-4)


def test_the_error_of_an_auc_is_that_of_scipys_bootstrap() -> None:
    outputs, targets = drawn(120, 2)
    scores = measure_split(identity, split(outputs, targets), task(auc=auc))

    def reference(o: np.ndarray[Any, Any], t: np.ndarray[Any, Any]) -> float:
        return float(roc_auc_score(t, o))

    probability = outputs.softmax(1).double().numpy()[:, 1]
    data = (probability, targets.numpy())
    drawn_again = bootstrap(
        data, reference, paired=True, vectorized=False, n_resamples=1000, method="basic", rng=1
    )
    assert scores.errors["auc"] == pytest.approx(drawn_again.standard_error, rel=0.22)


def test_the_same_split_gives_the_same_replicates() -> None:
    batches = split(*drawn(100, 3))
    metrics = {"f": top1, "o": MulticlassF1Score(3)}
    torch.manual_seed(1)
    first = measure_split(identity, batches, task(**metrics))
    torch.manual_seed(2)
    assert measure_split(identity, batches, task(**metrics)) == first
    joined_up = split(*(torch.cat(tensors) for tensors in zip(*batches, strict=True)), batch=100)
    again = measure_split(identity, joined_up, task(**metrics))
    assert again.replicates["f"] == first.replicates["f"]
    assert again.replicates["o"] == pytest.approx(first.replicates["o"], abs=1e-5)


def test_a_metric_object_is_copied_and_reset() -> None:
    outputs, targets = drawn(50, 4)
    metric = MulticlassAccuracy(4, average="micro")
    metric.update(outputs, (targets + 1) % 4)
    before = metric.compute()
    for _ in range(2):
        scores = measure_split(identity, split(outputs, targets), task(accuracy=metric))
        assert scores.values["accuracy"] == pytest.approx(top1(outputs, targets))
    assert metric.compute() == before


class Counting:
    """An identity that counts how many of its outputs are in memory at each call.

    They are of NumPy's memory, which is let go with the last tensor on it, whatever views were made.
    """

    def __init__(self) -> None:
        self.outputs: list[weakref.ref[np.ndarray[Any, Any]]] = []
        self.alive: list[int] = []

    def __call__(self, inputs: Tensor) -> Tensor:
        self.alive.append(self.count())
        made = inputs.numpy() * np.float32(1)
        self.outputs.append(weakref.ref(made))
        return torch.from_numpy(made)

    def count(self) -> int:
        return sum(output() is not None for output in self.outputs)


@pytest.mark.parametrize(
    "metrics", [{}, {"accuracy": MulticlassAccuracy(4, average="micro")}], ids=["default", "object"]
)
def test_outputs_are_not_kept_where_no_metric_is_a_function(metrics: dict[str, Any]) -> None:
    program = Counting()
    measure_split(program, split(*drawn(640, 4)), task(**metrics))
    assert len(program.alive) == 20
    assert max(program.alive) <= 2


def test_outputs_are_held_once_for_functions() -> None:
    """When those of the whole split have been put together, none of a batch is left."""
    program, left = Counting(), []

    def metric(outputs: Tensor, targets: Tensor) -> float:
        left.append(program.count())
        return float(outputs.mean())

    measure_split(program, split(*drawn(640, 4)), task(mean=metric))
    assert program.alive[-1] == 19
    assert left[0] <= 1


def test_metrics_get_floats_that_may_be_changed() -> None:
    seen: list[torch.dtype] = []

    def metric(outputs: Tensor, targets: Tensor) -> float:
        seen.append(outputs.dtype)
        return float(outputs.mul_(2).mean())

    class InPlace(torchmetrics.MeanMetric):
        def update(self, outputs: Tensor, targets: Tensor) -> None:
            super().update(outputs.mul_(1))

    batches = split(torch.ones(10, 2, dtype=torch.bfloat16), torch.zeros(10))
    scores = measure_split(lambda x: x + 1, batches, task(m=metric, o=InPlace()))
    assert set(seen) == {torch.float32}
    assert scores.values == {"m": 4.0, "o": 2.0}


def test_replicates_that_are_not_defined_are_left_out() -> None:
    def fails_without_the_last(outputs: Tensor, targets: Tensor) -> float:
        if 9 not in targets:
            raise ValueError("the last class is missing")
        return float(outputs.mean())

    outputs, targets = drawn(40, 3)
    targets[-1] = 9
    scores = measure_split(identity, split(outputs, targets), task(m=fails_without_the_last))
    # A row is in a resample with probability 1 − 1/e.
    assert 50 <= len(scores.replicates["m"]) <= 75
    assert scores.errors["m"] > 0


def test_with_few_replicates_left_the_error_is_not_known() -> None:
    def fails_without_both(outputs: Tensor, targets: Tensor) -> float:
        return float(outputs.mean()) if {8, 9} <= set(targets.tolist()) else math.nan

    outputs, targets = drawn(40, 3)
    targets[-2:] = torch.tensor([8, 9])
    scores = measure_split(identity, split(outputs, targets), task(m=fails_without_both))
    assert scores.replicates["m"] == []
    assert math.isnan(scores.errors["m"])


def test_objects_leave_out_what_is_not_defined_too() -> None:
    class Picky(torchmetrics.MeanMetric):
        def update(self, outputs: Tensor, targets: Tensor) -> None:
            if 9 not in targets:
                raise ValueError("the last class is missing")
            super().update(outputs)

    outputs, targets = drawn(40, 3)
    targets[-1] = 9
    scores = measure_split(identity, split(outputs, targets, 40), task(m=Picky()))
    assert 50 <= len(scores.replicates["m"]) <= 75


def test_empty_draws_of_a_batch_are_skipped() -> None:
    """Of batches of one row, every resample lacks some."""
    outputs, targets = drawn(60, 3)
    scores = measure_split(identity, split(outputs, targets, 1), task(o=MulticlassAccuracy(3)))
    assert len(scores.replicates["o"]) == REPLICATES


def test_an_error_that_the_rows_cannot_tell_is_not_zero() -> None:
    outputs = torch.eye(3)[torch.arange(30) % 3]
    scores = measure_split(identity, split(outputs, torch.arange(30) % 3), task(f=top1))
    assert scores.values["f"] == 1
    assert math.isnan(scores.errors["f"])


def test_outputs_that_are_no_rows_have_no_replicates() -> None:
    def per_pair(outputs: Tensor, targets: Tensor) -> float:
        return float(outputs.mean() - targets.float().mean())

    batches = [(torch.randn(8, 2), torch.randn(4)) for _ in range(3)]
    scores = measure_split(identity, batches, task(m=per_pair))
    assert scores.replicates == {"m": []}
    assert math.isnan(scores.errors["m"])
    assert scores.rows == 24


def test_warnings_are_those_of_the_rows_as_they_are() -> None:
    def warns(outputs: Tensor, targets: Tensor) -> float:
        warnings.warn("undefined", UserWarning, stacklevel=1)
        return float(outputs.mean())

    with warnings.catch_warnings(record=True) as heard:
        warnings.simplefilter("always")
        measure_split(identity, split(*drawn(20)), task(m=warns))
    assert len(heard) == 1


def test_functions_need_batches_of_one_shape_and_objects_do_not() -> None:
    batches = [(torch.randn(2, 3, size, size), torch.zeros(2, size, size).long()) for size in (4, 6)]
    with pytest.raises(TaskError, match=r"must have one shape for a metric that is a function"):
        measure_split(identity, batches, task(f=top1))
    streamed = measure_split(identity, batches, task())
    objects = measure_split(identity, batches, task(accuracy=MulticlassAccuracy(3, average="micro")))
    assert streamed.values["accuracy"] == pytest.approx(objects.values["accuracy"])
    assert streamed.replicates["accuracy"] == pytest.approx(objects.replicates["accuracy"], abs=1e-5)


@pytest.mark.parametrize(
    ("metric", "message"),
    [
        (lambda o, t: o.nothing, r"metric 'm' must accept outputs \(40, 7\) and targets \(40,\) but failed"),
        (lambda o, t: {"a": 1}, r"metric 'm' must return one number but returned a dict\."),
        (lambda o, t: o, r"metric 'm' must return one number but returned a Tensor of shape \(40, 7\)\."),
        (lambda o, t: None, r"metric 'm' must return one number but returned a NoneType\."),
        (MulticlassAccuracy(3), r"metric 'm' must accept outputs \(32, 7\) and targets \(32,\) but failed"),
        (
            MulticlassAccuracy(7, average=None),
            r"must return one number but returned a Tensor of shape \(7,\)",
        ),
    ],
)
def test_what_a_metric_does_wrong_is_one_line(metric: Any, message: str) -> None:
    with pytest.raises(TaskError, match=message):
        measure_split(identity, split(*drawn(40)), task(m=metric))


def test_objects_that_cannot_compute_are_one_line() -> None:
    class Broken(torchmetrics.MeanMetric):
        def update(self, outputs: Tensor, targets: Tensor) -> None:
            super().update(outputs)

        def compute(self) -> Tensor:
            raise RuntimeError("too few rows\nof each class")

    with pytest.raises(TaskError, match=r"computable over a split but failed: too few rows$"):
        measure_split(identity, split(*drawn(40)), task(m=Broken()))


@pytest.mark.parametrize(("made", "kind"), [((), "tuple"), ({"loss": None}, "dict"), (None, "NoneType")])
def test_what_holds_no_tensor_is_one_line(made: Any, kind: str) -> None:
    with pytest.raises(TaskError, match=f"must return a tensor, or several .* but returned {kind}"):
        measure_split(lambda x: made, split(*drawn(4)), task())


def test_complex_outputs_are_one_line() -> None:
    with pytest.raises(TaskError, match=r"real numbers but returned torch\.complex64"):
        measure_split(lambda x: x + 1j, split(*drawn(4)), task())


@pytest.mark.parametrize("value", [math.nan, math.inf])
def test_values_that_are_not_finite_end_the_trial(value: float) -> None:
    with pytest.raises(DivergedError, match=f"metric m is {value}"):
        measure_split(identity, split(*drawn(20)), task(m=lambda o, t: value))


def test_a_loss_module_is_a_function_of_the_whole_split() -> None:
    outputs, targets = drawn(50, 4)
    scores = measure_split(identity, split(outputs, targets), task(loss=nn.CrossEntropyLoss()))
    assert scores.values["loss"] == pytest.approx(float(nn.CrossEntropyLoss()(outputs, targets)), rel=1e-6)


def test_the_split_is_gone_through_once() -> None:
    class Once:
        passes = 0

        def __iter__(self) -> Iterator[tuple[Tensor, Tensor]]:
            self.passes += 1
            return iter(split(*drawn(40)))

    batches = Once()
    measure_split(identity, batches, replace(task(), metrics={"f": top1, "o": MulticlassAccuracy(7)}))
    assert batches.passes == 1
