"""Validation carved from training."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
import torch
from torch.utils.data import BatchSampler, DataLoader, RandomSampler, TensorDataset

import autocompress as ac
from autocompress.data import with_validation
from autocompress.errors import TaskError
from tests.conftest import image_batches


def test_a_tenth_of_the_rows_is_held_out_and_none_is_shared(residual_task: ac.Task) -> None:
    whole = image_batches(count=200)
    task = with_validation(replace(residual_task, train=whole, val=None))
    assert (len(task.train.x), len(task.val.x)) == (180, 20)
    rows = {row.tobytes() for row in task.train.x} & {row.tobytes() for row in task.val.x}
    assert not rows
    assert np.bincount(task.val.targets, minlength=5).min() >= 3


def test_own_validation_is_kept(residual_task: ac.Task) -> None:
    assert with_validation(residual_task) is residual_task


def test_data_loaders_are_carved_too(residual_task: ac.Task) -> None:
    data = TensorDataset(torch.arange(50.0), torch.arange(50))
    task = with_validation(replace(residual_task, train=DataLoader(data, batch_size=8), val=None))
    train = torch.cat([x for x, _ in task.train])
    val = torch.cat([x for x, _ in task.val])
    assert sorted([*train.tolist(), *val.tolist()]) == list(range(50))
    assert len(val) == 5


def test_other_iterables_must_bring_their_own(residual_task: ac.Task) -> None:
    with pytest.raises(TaskError, match="val must be given"):
        with_validation(replace(residual_task, train=[(torch.zeros(1), torch.zeros(1))], val=None))


def test_loaders_with_their_own_batches_must_bring_validation(residual_task: ac.Task) -> None:
    data = TensorDataset(torch.arange(50.0), torch.arange(50))
    batches = BatchSampler(RandomSampler(data), 8, drop_last=True)
    loader = DataLoader(data, batch_sampler=batches)
    with pytest.raises(TaskError, match="val must be given"):
        with_validation(replace(residual_task, train=loader, val=None))


def test_carved_loaders_keep_dropping_the_last_batch(residual_task: ac.Task) -> None:
    data = TensorDataset(torch.arange(50.0), torch.arange(50))
    loader = DataLoader(data, batch_size=8, shuffle=True, drop_last=True)
    task = with_validation(replace(residual_task, train=loader, val=None))
    assert {len(x) for x, _ in task.train} == {8}
    assert sum(len(x) for x, _ in task.val) == 5
