"""The default accuracy against scikit-learn, torchmetrics and the binomial formula."""

from __future__ import annotations

import functools
import math
from dataclasses import replace

import numpy as np
import pytest
import torch
from sklearn.metrics import accuracy_score
from torch import Tensor, nn
from torchmetrics.functional.classification import multiclass_accuracy

import autocompress as ac
from autocompress.errors import TaskError
from autocompress.measure.accuracy import Accuracy, ignored_target
from autocompress.measure.resampling import Resamples, Score


def drawn(rows: int, classes: int = 7, *pixels: int) -> tuple[Tensor, Tensor]:
    """Outputs and targets that agree on about half."""
    generator = torch.Generator().manual_seed(rows)
    targets = torch.randint(0, classes, (rows, *pixels), generator=generator)
    outputs = torch.randn(rows, classes, *pixels, generator=generator)
    return outputs.scatter_add(1, targets[:, None], torch.full_like(outputs[:, :1], 1.5)), targets


def scored(outputs: Tensor, targets: Tensor, ignored: int = -100, batch: int = 32) -> Score:
    metric, resamples = Accuracy(ignored), Resamples()
    for o, t in zip(outputs.split(batch), targets.split(batch), strict=True):
        metric.update(o, t, resamples.draw(len(o)))
    return metric.score()


def test_accuracy_equals_scikit_learns_exactly() -> None:
    outputs, targets = drawn(301)
    assert scored(outputs, targets).value == accuracy_score(targets, outputs.argmax(1))


def test_accuracy_is_an_exact_quotient() -> None:
    outputs = torch.eye(2)[torch.ones(144, dtype=torch.long)]
    targets = torch.ones(144, dtype=torch.long)
    targets[:2] = 0
    assert scored(outputs, targets).value == 142 / 144


@pytest.mark.parametrize("ignored", [255, -1, -100, 3])
def test_ignored_pixels_do_not_count(ignored: int) -> None:
    outputs, targets = drawn(20, 7, 6, 5)
    targets[:, :2] = ignored
    right = multiclass_accuracy(outputs, targets, 7, average="micro", ignore_index=ignored)
    score = scored(outputs, targets, ignored)
    assert score.value == pytest.approx(float(right), abs=1e-6)
    assert score.value == scored(outputs[:, :, 2:], targets[:, 2:], ignored).value


@pytest.mark.parametrize(
    ("loss", "ignored"),
    [
        (nn.CrossEntropyLoss(), -100),
        (nn.CrossEntropyLoss(ignore_index=255), 255),
        (nn.NLLLoss(ignore_index=-1), -1),
        (nn.functional.cross_entropy, -100),
        (functools.partial(nn.functional.cross_entropy, ignore_index=0), 0),
        (functools.partial(nn.functional.cross_entropy, label_smoothing=0.1), -100),
        (nn.MSELoss(), -100),
    ],
)
def test_what_the_loss_ignores_is_ignored(loss: ac.task.LossFn, ignored: int) -> None:
    assert ignored_target(loss) == ignored


@pytest.mark.parametrize("rows", [60, 144, 2000])
def test_the_error_is_that_of_the_binomial_formula(rows: int) -> None:
    score = scored(*drawn(rows))
    right = math.sqrt(score.value * (1 - score.value) / rows)
    assert len(score.replicates) == 100
    # 100 replicates know a standard deviation to 7 %: this is three times that.
    assert np.std(score.replicates, ddof=1) == pytest.approx(right, rel=0.21)
    assert score.error == pytest.approx(right, rel=0.21)


@pytest.mark.parametrize(("rows", "right"), [(60, 60), (60, 0), (10, 10), (1, 1)])
def test_the_error_is_not_zero_where_all_rows_are_right_or_wrong(rows: int, right: int) -> None:
    targets = (torch.arange(rows) >= right).long()
    outputs = torch.eye(2)[torch.zeros(rows, dtype=torch.long)]
    p, n = (right + 2) / (rows + 4), rows + 4
    assert scored(outputs, targets).error == pytest.approx(math.sqrt(p * (1 - p) / n))


def test_images_and_not_their_pixels_are_drawn_again() -> None:
    """Pixels of one image are right or wrong together, so there are as many observations as images."""
    outputs, targets = drawn(200)
    tall, wide = (t[..., None].expand(*t.shape, 50) for t in (outputs, targets))
    alone, together = scored(outputs, targets), scored(tall, wide)
    assert together.value == pytest.approx(alone.value)
    assert together.replicates == pytest.approx(alone.replicates)
    assert together.error == pytest.approx(alone.error, rel=0.03)


def test_images_of_unlike_size_are_a_ratio() -> None:
    """Standard deviation of Σc/Σn over many resamples by NumPy, with rows that are whole images."""
    outputs, targets = drawn(80, 3, 40)
    targets[:40, 10:] = -100
    counts = (targets != -100).sum(1).numpy()
    right = ((outputs.argmax(1) == targets) & (targets != -100)).sum(1).numpy()
    rng = np.random.default_rng(1)
    picks = rng.integers(0, 80, (4000, 80))
    reference = (right[picks].sum(1) / counts[picks].sum(1)).std()
    assert scored(outputs, targets).error == pytest.approx(reference, rel=0.21)


def test_replicates_do_not_depend_on_how_rows_are_batched() -> None:
    outputs, targets = drawn(97)
    first = scored(outputs, targets, batch=97)
    assert all(scored(outputs, targets, batch=batch) == first for batch in (1, 10, 64))


@pytest.mark.parametrize(
    ("outputs", "targets"),
    [
        (torch.zeros(4, 3), torch.zeros(4, 1, dtype=torch.long)),
        (torch.zeros(4, 1), torch.zeros(4, dtype=torch.long)),
        (torch.zeros(4, 3), torch.zeros(4)),
        (torch.zeros(4), torch.zeros(4, dtype=torch.long)),
        (torch.zeros(4, 3, 2, 2), torch.zeros(4, 2, 1, dtype=torch.long)),
    ],
)
def test_what_is_no_classification_is_refused(outputs: Tensor, targets: Tensor) -> None:
    with pytest.raises(TaskError, match="metrics must be given where"):
        Accuracy().update(outputs, targets, None)


def test_a_split_without_targets_that_count_is_refused() -> None:
    metric = Accuracy(9)
    metric.update(torch.zeros(4, 3), torch.full((4,), 9), None)
    with pytest.raises(TaskError, match="must have targets to count but all of the 4 rows are 9"):
        metric.score()


def test_the_task_of_a_loss_ignores_what_it_does(residual_task: ac.Task) -> None:
    from autocompress.measure.evaluation import task_metrics

    metric = task_metrics(replace(residual_task, loss=nn.CrossEntropyLoss(ignore_index=4)))["accuracy"]
    assert isinstance(metric, Accuracy)
    assert metric.ignored == 4
