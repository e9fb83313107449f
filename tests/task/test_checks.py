"""What is wrong with a task, found before any training."""

from __future__ import annotations

import sys
from contextlib import nullcontext
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn
from torch.utils.data import BatchSampler, DataLoader, Dataset, RandomSampler, Subset, TensorDataset

import autocompress as ac
from autocompress.data import TensorBatches
from autocompress.errors import TaskError
from autocompress.methods.alcn import Alcn, Config
from autocompress.task import InputSpec
from autocompress.task.checks import (
    check_batches_of_one,
    check_forward,
    check_labels,
    check_splits,
    has_batch_of_one,
    labels_of,
)


def data(rows: int, shape: tuple[int, ...] = (6,)) -> TensorDataset:
    return TensorDataset(torch.randn(rows, *shape), torch.arange(rows) % 3)


def over_features() -> nn.Module:
    return nn.Sequential(nn.Linear(6, 4), nn.BatchNorm1d(4), nn.Linear(4, 3))


def over_images() -> nn.Module:
    return nn.Sequential(nn.Conv2d(1, 4, 3), nn.BatchNorm2d(4), nn.Flatten(), nn.Linear(16, 3))


def over_pooled_images() -> nn.Module:
    pooled = nn.Sequential(nn.AdaptiveAvgPool2d(1), nn.Conv2d(1, 4, 1), nn.BatchNorm2d(4))
    return nn.Sequential(pooled, nn.Flatten(), nn.Linear(4, 3))


def no_norm() -> nn.Module:
    return nn.Sequential(nn.Linear(6, 4), nn.LayerNorm(4), nn.Linear(4, 3))


@pytest.mark.parametrize(
    ("batches", "expected"),
    [
        (DataLoader(data(9), batch_size=4), True),
        (DataLoader(data(9), batch_size=4, drop_last=True), False),
        (DataLoader(data(8), batch_size=4), False),
        (DataLoader(data(8), batch_size=1), True),
        (DataLoader(data(8), batch_size=1, drop_last=True), True),
        (DataLoader(data(8), batch_sampler=BatchSampler(RandomSampler(data(5)), 4, False)), True),
        (DataLoader(data(8), batch_size=4, sampler=RandomSampler(data(8), num_samples=5)), True),
        ([(torch.zeros(4, 6), torch.zeros(4)), (torch.zeros(1, 6), torch.zeros(1))], True),
        ([(torch.zeros(4, 6), torch.zeros(4))], False),
        (TensorBatches(np.zeros((9, 6)), np.zeros(9), InputSpec((6,)), 4, shuffle=True), False),
    ],
)
def test_batches_of_one_row_are_found_without_drawing_any(batches: Any, expected: bool) -> None:
    assert has_batch_of_one(batches) is expected


def test_data_sets_of_hugging_face_are_rows_too(monkeypatch: pytest.MonkeyPatch) -> None:
    class Table(list[dict[str, int]]):
        """Yields rows, and is no data set of PyTorch's."""

    table = Table([{"label": 1}])
    check_splits(ac.Task(no_norm, table))
    monkeypatch.setitem(sys.modules, "datasets", SimpleNamespace(Dataset=Table))
    with pytest.raises(
        TaskError, match=r"train must yield batches but is a Table, which holds rows \(wrap it"
    ):
        check_splits(ac.Task(no_norm, table))


@pytest.mark.parametrize(("model", "shape"), [(over_features, (6,)), (over_pooled_images, (1, 4, 4))])
@pytest.mark.parametrize("batch_size", [4, 1])
def test_a_batch_of_one_row_that_cannot_be_trained_on_is_refused(
    model: Any, shape: tuple[int, ...], batch_size: int
) -> None:
    train = DataLoader(data(9, shape), batch_size=batch_size, shuffle=True)
    task = ac.Task(model, train, val=train)
    with pytest.raises(
        TaskError, match=r"no batch of one row .*\(use drop_last=True or another batch_size\)"
    ):
        check_batches_of_one(task, model())
    with pytest.raises(TaskError, match=r"no batch of one row"):
        ac.compress(model(), task, Alcn(Config()))


@pytest.mark.parametrize(
    ("model", "shape", "rows"), [(over_images, (1, 4, 4), 9), (no_norm, (6,), 9), (over_features, (6,), 8)]
)
def test_what_can_be_trained_on_is_not_refused(model: Any, shape: tuple[int, ...], rows: int) -> None:
    check_batches_of_one(ac.Task(model, DataLoader(data(rows, shape), batch_size=4)), model())


def test_trying_a_batch_of_one_row_changes_nothing() -> None:
    model = over_images().append(nn.Dropout())
    state = {name: value.clone() for name, value in model.state_dict().items()}
    task = ac.Task(over_images, [(torch.randn(1, 1, 4, 4), torch.zeros(1))])
    generator = torch.get_rng_state()
    check_batches_of_one(task, model.eval())
    assert torch.equal(torch.get_rng_state(), generator)
    assert not model.training
    assert all(torch.equal(value, state[name]) for name, value in model.state_dict().items())


class Labelled(Dataset[tuple[Tensor, int]]):
    """Four rows, with attributes that may tell their labels."""

    def __init__(self, **attributes: Any) -> None:
        vars(self).update(attributes)

    def __len__(self) -> int:
        return 4

    def __getitem__(self, row: int) -> tuple[Tensor, int]:
        return torch.zeros(6), row % 3


@pytest.mark.parametrize(
    ("dataset", "expected"),
    [
        (Labelled(targets=[2, 1, 0, 1]), [2, 1, 0, 1]),
        (Labelled(labels=np.array([2, 1, 0, 1])), [2, 1, 0, 1]),
        (Labelled(targets=[2, 1, 0, 1], labels=["a", "b"]), [2, 1, 0, 1]),
        (Subset(Subset(Labelled(targets=[2, 1, 0, 1]), [3, 2, 0]), [2, 0]), [2, 1]),
        (data(4), [0, 1, 2, 0]),
        (Labelled(), None),
        (Labelled(labels=["cat", "dog", "cat", "dog"]), None),
        (Labelled(targets=[[0, 1], [2], [], [1]]), None),
        (Labelled(targets=3), None),
        (Labelled(targets=[2, 1, 0, 1], target_transform=lambda label: 2 - label), None),
    ],
)
def test_labels_are_known_without_drawing_rows(dataset: Any, expected: list[int] | None) -> None:
    labels = labels_of(DataLoader(dataset))
    assert (None if labels is None else labels.tolist()) == expected


def test_labels_under_a_name_that_promises_no_classes_are_not_refused() -> None:
    train = DataLoader(Labelled(labels=[101, 205, 300, 101]), batch_size=4)
    check_labels(ac.Task(over_features, train), over_features())
    named = DataLoader(Labelled(targets=["cat", "dog", "cat", "dog"]), batch_size=4)
    check_labels(ac.Task(over_features, named), over_features())


def test_classes_are_names_of_outputs() -> None:
    def named(classes: Any) -> ac.Task:
        return ac.Task(model=no_norm, train=DataLoader(data(8), 4), classes=classes)

    assert named(["a", "b", "c"]).classes == ("a", "b", "c")
    check_forward(named(["a", "b"]), no_norm())
    with pytest.raises(TaskError, match=r"name outputs of the model, which are of shape \(2, 3\)"):
        check_forward(named(["a", "b", "c", "d"]), no_norm())
    for wrong in ("abc", [1, 2, 3]):
        with pytest.raises(TaskError, match="classes must be a list of names, one for each output"):
            named(wrong)


def test_a_token_alone_is_no_class() -> None:
    def loss(outputs: Tensor, targets: Tensor) -> Tensor:
        return nn.functional.cross_entropy(outputs.flatten(0, -2), targets.flatten())

    rows = DataLoader(TensorDataset(torch.randn(8, 1, 6), torch.zeros(8, 1, dtype=torch.long)), batch_size=4)
    task = ac.Task(model=nn.Linear(6, 3), train=rows, loss=loss)
    assert check_forward(task, nn.Linear(6, 3)).shape == (2, 1, 3)


SOFT = torch.softmax(torch.randn(8, 3, generator=torch.Generator().manual_seed(0)), 1)


@pytest.mark.parametrize(
    ("outputs", "targets", "loss", "reason"),
    [
        (1, torch.randn(8, 1), None, r"over one class it is always 0 \(give a loss: .*mse_loss"),
        (1, torch.zeros(8, dtype=torch.long), nn.functional.cross_entropy, "over one class it is always 0"),
        (3, torch.randn(8, 3), None, "targets must be labels of classes, or the probability of each"),
        (3, torch.ones(8, 3), None, "of which a row sums to 3 .*binary_cross_entropy_with_logits"),
        (3, SOFT, None, None),
        (3, torch.arange(8) % 3, None, None),
        (3, 2 * SOFT, nn.functional.cross_entropy, None),
        (1, torch.randn(8, 1), nn.functional.mse_loss, None),
    ],
)
@pytest.mark.filterwarnings("error")
def test_cross_entropy_is_refused_where_nothing_is_classified(
    outputs: int, targets: Tensor, loss: Any, reason: str | None
) -> None:
    rows = DataLoader(TensorDataset(torch.randn(8, 6), targets), batch_size=4)
    task = ac.Task(model=nn.Linear(6, outputs), train=rows, loss=loss, metrics={"error": torch.dist})
    with nullcontext() if reason is None else pytest.raises(TaskError, match=reason):
        check_forward(task, nn.Linear(6, outputs))
