"""Which sizes of inputs vary, as the first batches show."""

from typing import Any

import pytest
import torch
from torch import nn

import autocompress as ac
from autocompress.errors import TaskError
from autocompress.task.sizes import with_varying_sizes


def images(side: int, rows: int = 4) -> Any:
    return torch.zeros(rows, 3, side, side), torch.zeros(rows)


def task(train: Any, val: Any = None, **options: Any) -> ac.Task:
    return ac.Task(nn.Identity, [train], None if val is None else [val], **options)


@pytest.mark.parametrize(
    ("train", "val", "dynamic"),
    [
        (images(32), images(32, rows=5), None),
        (images(32), images(48), {2: "size_2", 3: "size_3"}),
        (
            (torch.zeros(4, 7), torch.zeros(4, 2), 0),
            (torch.zeros(4, 9), torch.zeros(4, 2), 0),
            ({1: "size_1"}, {}),
        ),
        (
            {"ids": torch.zeros(4, 7), "label": 0},
            {"ids": torch.zeros(4, 9), "label": 0},
            {"ids": {1: "size_1"}},
        ),
    ],
)
def test_sizes_that_differ_between_splits_vary(train: Any, val: Any, dynamic: Any) -> None:
    assert with_varying_sizes(task(train, val)).dynamic == dynamic


def test_texts_of_several_lengths_are_seen_in_the_second_batch() -> None:
    ragged = [(torch.zeros(4, 7), 0), (torch.zeros(4, 9), 0)]
    assert with_varying_sizes(ac.Task(nn.Identity, ragged)).dynamic == {1: "size_1"}


def test_what_the_user_says_stays() -> None:
    assert with_varying_sizes(task(images(32), images(48), dynamic={2: "height"})).dynamic == {2: "height"}


def test_other_forms_are_refused() -> None:
    with pytest.raises(
        TaskError, match=r"val must yield inputs of the form that train's first batch has, \(4, 3, 8"
    ):
        with_varying_sizes(task(images(8), (torch.zeros(4, 3), 0)))
    first = {"ids": torch.zeros(4, 7), "label": 0}
    with pytest.raises(TaskError, match=r"but yields .* of ids, mask"):
        with_varying_sizes(task(first, {**first, "mask": torch.zeros(4, 7)}))


def test_a_batch_that_is_none_is_said_of_its_split() -> None:
    with pytest.raises(TaskError, match=r"^val: batches must be \(inputs, targets\) pairs"):
        with_varying_sizes(task(images(8), torch.zeros(3)))
    with pytest.raises(TaskError, match="inputs must accept each batch but failed on one of train: 'image'"):
        with_varying_sizes(task({"x": torch.zeros(3)}, inputs=lambda batch: batch["image"]))
