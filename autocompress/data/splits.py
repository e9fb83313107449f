"""Carves a validation split from the training data of a task that has none."""

from __future__ import annotations

from collections.abc import Sized
from dataclasses import replace
from typing import cast

import numpy as np
from sklearn.model_selection import train_test_split
from torch.utils.data import (
    DataLoader,
    IterableDataset,
    RandomSampler,
    SequentialSampler,
    Subset,
)

from autocompress.data.arrays import TensorBatches
from autocompress.errors import TaskError
from autocompress.task import Task

FRACTION = 0.1
MOST = 5000


def with_validation(task: Task, seed: int = 0) -> Task:
    """The task with a validation split: its own, or a tenth (5000 rows at most) of `train`.

    Raises:
        TaskError: `train` is neither in memory nor a `DataLoader` on an indexable data set.
    """
    if task.val is not None:
        return task
    train = task.train
    if isinstance(train, TensorBatches):
        rest, held = _split(len(train.x), seed, train.targets)
        val = train.subset(held, shuffle=False, batch_size=max(train.batch_size, 500))
        return replace(task, train=train.subset(rest), val=val)
    if isinstance(train, DataLoader) and _plain(train):
        rest, held = _split(len(cast(Sized, train.dataset)), seed, None)
        return replace(
            task, train=_loader(train, rest, shuffle=True), val=_loader(train, held, shuffle=False)
        )
    raise TaskError(
        "val must be given where train is not held in memory or a DataLoader with its own batches "
        f"on an indexable data set but train is a {type(train).__name__}."
    )


def _split(count: int, seed: int, labels: np.ndarray | None) -> tuple[np.ndarray, np.ndarray]:
    """Row indices that stay in training and that are held out, stratified where labels allow."""
    held = min(MOST, max(1, round(FRACTION * count)))
    if held >= count:
        raise TaskError(f"train must have at least 2 rows to carve validation from but has {count}.")
    stratify = None
    if labels is not None and labels.ndim == 1 and labels.dtype.kind in "iu":
        _, frequencies = np.unique(labels, return_counts=True)
        if frequencies.min() >= 2 and len(frequencies) <= held:
            stratify = labels
    rest, val = train_test_split(np.arange(count), test_size=held, random_state=seed, stratify=stratify)
    return np.sort(rest), np.sort(val)


def _plain(loader: DataLoader[object]) -> bool:
    """Whether a loader draws batches from an indexable data set in plain or random order."""
    indexable = not isinstance(loader.dataset, IterableDataset)
    ordinary = type(loader.sampler) in (RandomSampler, SequentialSampler)
    return indexable and ordinary and loader.batch_size is not None


def _loader(loader: DataLoader[object], index: np.ndarray, *, shuffle: bool) -> DataLoader[object]:
    return DataLoader(
        Subset(loader.dataset, index.tolist()),
        batch_size=loader.batch_size,
        shuffle=shuffle,
        drop_last=shuffle and loader.drop_last,
        num_workers=loader.num_workers,
        collate_fn=loader.collate_fn,
        pin_memory=loader.pin_memory,
        worker_init_fn=loader.worker_init_fn,
        generator=loader.generator,
        persistent_workers=loader.persistent_workers,
    )
