"""Metrics are tried before a search on what they get in it."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from typing import Any

import pytest
import torch
from sklearn.metrics import log_loss, roc_auc_score
from torch import Tensor, nn
from torchmetrics.classification import MulticlassAccuracy, MulticlassF1Score

import autocompress as ac
from autocompress.errors import TaskError
from autocompress.measure import check_metrics

X, Y = torch.randn(96, 12, generator=torch.Generator().manual_seed(0)), (torch.arange(96) * 3) // 96


class Watched:
    """Batches of 16 rows, sorted by class, that count how many were drawn."""

    def __init__(self, x: Tensor = X, y: Tensor = Y) -> None:
        self.x, self.y, self.drawn = x, y, 0

    def __iter__(self) -> Iterator[tuple[Tensor, Tensor]]:
        for batch in zip(self.x.split(16), self.y.split(16), strict=True):
            self.drawn += 1
            yield batch


def task(**changes: Any) -> ac.Task:
    return replace(ac.Task(lambda: nn.Linear(12, 3), Watched(), Watched()), **changes)


def check(tried: ac.Task) -> None:
    check_metrics(tried, tried.model())


def auc(outputs: Tensor, targets: Tensor) -> float:
    if len(targets.unique()) < 3:
        raise ValueError("an AUC needs all classes")
    return float(roc_auc_score(targets, outputs.softmax(1).double(), multi_class="ovr"))


def logloss(outputs: Tensor, targets: Tensor) -> float:
    # Without `labels`, as many classes as targets of the split have.
    return float(log_loss(targets, outputs.double().softmax(1)))


@pytest.mark.parametrize("metric", [auc, logloss])
@pytest.mark.parametrize("test", [None, Watched()])
def test_a_metric_may_need_all_of_a_split(metric: Any, test: Watched | None) -> None:
    check(task(metrics={"m": metric}, test=test))


def test_metrics_see_all_of_validation_once_and_no_more_of_test_than_they_need() -> None:
    tried = task(metrics={"f1": MulticlassF1Score(3)}, test=Watched())
    check(tried)
    assert (tried.val.drawn, tried.test.drawn) == (6, 1)
    default = task(test=Watched())
    check(default)
    assert (default.val.drawn, default.test.drawn) == (1, 1)


def test_a_first_batch_that_the_loss_ignores_is_no_fault() -> None:
    ignoring = nn.CrossEntropyLoss(ignore_index=0)
    check(task(loss=ignoring))
    none = Watched(X, torch.zeros_like(Y))
    with pytest.raises(TaskError, match="must have targets to count but all of the 96 rows are 0"):
        check(task(loss=ignoring, val=none))


def test_what_only_the_last_batch_shows_is_found() -> None:
    def metric(outputs: Tensor, targets: Tensor) -> float:
        return float(outputs.view(16, 3).mean())

    with pytest.raises(TaskError, match=r"metric 'm' must accept outputs \(96, 3\) and targets \(96,\)"):
        check(task(metrics={"m": metric}))
    wide = [(X[:16], Y[:16]), (X[:16, :5], Y[:16])]
    with pytest.raises(TaskError, match=r"val must yield inputs for the model .* failed on \(16, 5\)"):
        check(task(metrics={"m": lambda o, t: 0.0}, val=wide))


def test_a_value_that_the_untrained_model_does_not_have_is_no_fault() -> None:
    check(task(metrics={"m": lambda o, t: float("nan")}))


@pytest.mark.parametrize(
    ("metrics", "message"),
    [
        ({"bytes": lambda o, t: 0.0}, "metrics must not be named as what is measured of every model"),
        ({"acc_comp": lambda o, t: 0.0}, "but 'acc_comp' is"),
        ({"memory": lambda o, t: 0.0}, "but 'memory' is"),
        ({"a:b": lambda o, t: 0.0}, "metrics must have names without : .* but one is 'a:b'"),
        ({" ": lambda o, t: 0.0}, "metrics must have names without : .* but one is ' '"),
        ({"f1": MulticlassF1Score}, "or a torchmetrics object, but is the class Multi"),
        ({"f1": "f1"}, "metric 'f1' must be a function of outputs and targets, .* but is 'f1'"),
        ({"a": MulticlassAccuracy(2)}, r"metric 'a' must accept outputs \(16, 3\) and targets \(16,\)"),
    ],
)
def test_what_is_no_metric_is_one_line(metrics: dict[str, Any], message: str) -> None:
    with pytest.raises(TaskError, match=message) as raised:
        check(task(metrics=metrics))
    assert "\n" not in str(raised.value)


@pytest.mark.parametrize(
    ("batch", "message"),
    [
        ({"x": X, "y": Y}, "batches that are mappings must have one of labels, .* but have x, y"),
        ((X, Y, Y), r"val must yield .* but its forward failed on \(\(96, 12\), \(96,\)\)"),
        ((X, [1, 2]), "where outputs and targets are not tensors but they are Tensor and list"),
    ],
)
def test_batches_of_another_form_are_one_line(batch: Any, message: str) -> None:
    with pytest.raises(TaskError, match=message):
        check(task(val=[batch]))


@pytest.mark.parametrize(
    ("outputs", "targets", "metric"),
    [(1, torch.randn(96, 1), "mse"), (3, torch.randn(96, 3), "mae")],
)
def test_regression_is_tried_as_it_is(outputs: int, targets: Tensor, metric: str) -> None:
    def distance(o: Tensor, t: Tensor) -> float:
        assert o.shape == t.shape == (96, outputs)
        return float((o - t).abs().mean())

    check(task(model=lambda: nn.Linear(12, outputs), val=Watched(X, targets), metrics={metric: distance}))
