"""Right answers counted class by class."""

from __future__ import annotations

import torch
from torch import nn

import autocompress as ac
from autocompress.measure import measure_split
from autocompress.measure.per_class import ClassCounts


def one_hot(labels: list[int], classes: int) -> torch.Tensor:
    return nn.functional.one_hot(torch.tensor(labels), classes).float()


def test_each_class_has_its_own_share_and_ignored_targets_none() -> None:
    counts = ClassCounts(ignored=-100)
    counts.update(one_hot([0, 1, 2, 2], 3), torch.tensor([0, 0, 2, -100]))
    counts.update(one_hot([1], 3), torch.tensor([1]))
    assert counts.counts() == [(1, 2), (1, 1), (1, 1)]


def test_pixels_count_one_by_one() -> None:
    counts = ClassCounts(ignored=255)
    outputs = one_hot([0, 1, 1, 0], 2).T.reshape(1, 2, 2, 2)
    counts.update(outputs, torch.tensor([[[0, 1], [0, 255]]]))
    assert counts.counts() == [(1, 2), (1, 1)]


def test_what_are_no_classes_is_not_counted() -> None:
    counts = ClassCounts(ignored=-100)
    counts.update(torch.zeros(4, 1), torch.zeros(4, dtype=torch.int64))
    counts.update(torch.zeros(4, 3), torch.zeros(4, 3))
    counts.update({"logits": torch.zeros(4, 3)}, torch.zeros(4, dtype=torch.int64))
    assert counts.counts() == []


def test_counts_of_a_split_add_up_to_its_accuracy_whatever_its_metrics_are(residual_task: ac.Task) -> None:
    model = residual_task.model().eval()
    scores = measure_split(model, residual_task.val, residual_task)
    rights, totals = map(sum, zip(*scores.classes, strict=True))
    assert totals == scores.rows
    assert rights / totals == scores.values["accuracy"]
    own = ac.Task(
        model=residual_task.model,
        train=residual_task.train,
        val=residual_task.val,
        metrics={"mean": lambda outputs, targets: float(outputs.mean())},
    )
    assert measure_split(model, own.val, own).classes == scores.classes
