"""Streams with an end."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch.utils.data import DataLoader, RandomSampler, TensorDataset

import autocompress as ac
from autocompress.errors import TaskError
from autocompress.task.random_state import generators_of
from tests.task.test_opening import Endless


def test_a_stream_ends_after_so_many_batches_in_each_pass() -> None:
    limited = ac.FirstBatches(DataLoader(Endless(), 4), 3)
    assert len(limited) == 3
    assert [len(list(limited)) for _ in range(2)] == [3, 3]


@pytest.mark.parametrize(("most", "length"), [(2, 2), (9, 5)])
def test_what_has_a_length_is_no_longer_than_that(most: int, length: int) -> None:
    limited = ac.FirstBatches([(torch.zeros(1), torch.zeros(1))] * 5, most)
    assert len(limited) == len(list(limited)) == length


@pytest.mark.parametrize(
    ("batches", "most", "message"),
    [
        ([], 0, "most must be at least 1 batch but got 0"),
        (iter([]), 2, "batches must be iterable more than once but are a list_iterator"),
        (list, 2, r"are a type \(a function that makes a split returns the limited batches"),
    ],
)
def test_what_cannot_be_limited_is_refused(batches: Any, most: int, message: str) -> None:
    with pytest.raises(TaskError, match=message):
        ac.FirstBatches(batches, most)


def test_its_generators_are_those_of_its_batches() -> None:
    rows, generator = TensorDataset(torch.arange(9.0)), torch.Generator()
    loader = DataLoader(rows, 3, sampler=RandomSampler(rows, generator=generator))
    assert generators_of(ac.FirstBatches(loader, 2)) == [generator]
