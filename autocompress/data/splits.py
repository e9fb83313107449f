"""Gives a task without a validation split one that its weights were not trained on."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Sized
from dataclasses import dataclass, replace
from typing import Any, cast

import numpy as np
import torch
from numpy.typing import NDArray
from torch.utils.data import (
    DataLoader,
    IterableDataset,
    RandomSampler,
    Sampler,
    SequentialSampler,
    Subset,
    SubsetRandomSampler,
    WeightedRandomSampler,
)

from autocompress.data.arrays import TensorBatches
from autocompress.data.random_rows import judging_dataset
from autocompress.errors import TaskError
from autocompress.task import Batches, Task
from autocompress.task.checks import has_batch_of_one, labels_of
from autocompress.task.opening import Split, batches_of, copied_if_possible, described_split

FRACTION = 0.1
MOST = 5000
# What says which rows a loader draws; its other arguments are kept as they are.
_ROWS = ("self", "dataset", "shuffle", "sampler", "batch_sampler")


def with_validation(task: Task, seed: int = 0) -> tuple[Task, str | None]:
    """The task with a validation split, and a line that says where its rows come from.

    A split of the task's own is kept. Where the task brings trained weights, validation is half of `test`,
    because the weights may have been trained on any row of `train`. Otherwise it is a tenth (5000 rows at
    most) of `train`, a row more where training would else end in a batch of one row.

    Rows are taken at random, in proportion to the classes where there is one integer label per row that is
    known without loading inputs (`targets`, `labels` or the second of a `TensorDataset`'s two tensors). A
    class of one row stays where it is; where there are more classes than rows to take, they are taken
    regardless of class. A `DataLoader` keeps its options and its sampler, which draws from the rows that
    stay; rows that its sampler never draws are not taken, and a row that it draws more than once is taken
    whole. Validation is in plain order, without `drop_last`, and without the augmentation that the data set
    itself can switch off. Nothing is drawn from the loader itself, so that it can be sent to other processes.
    A split that is a function is called here, and what it makes is divided.

    Args:
        task: with a validation split or without.
        seed: of the choice of rows.

    Returns:
        The task, and the line; None where the split is the task's own.

    Raises:
        TaskError: `val` must be given: there are weights but no `test`; the rows are neither in memory nor
            in a `DataLoader` with a sampler of PyTorch's on an indexable data set; they are transformed at
            random; there are fewer than two.
    """
    if task.val is not None:
        return task, None
    if task.weights is None:
        parts = _carved(_source("train", task.train), seed)
        note = f"validation is {parts.rows} rows carved from train{parts.remark}"
        return replace(task, train=parts.staying, val=parts.taken), note
    if task.test is None:
        raise TaskError(
            "val must be given where weights are given without test, as they may have been trained on any "
            "row of train, but val is None (give val=, or test=, half of which will do)."
        )
    source = _source("test", task.test)
    parts = _divided(source, len(np.unique(source.rows)) // 2, seed)
    note = (
        f"validation is half of test, {parts.rows} rows{parts.remark} "
        "(the weights may have seen train); the other half reports"
    )
    return replace(task, test=parts.staying, val=parts.taken), note


@dataclass(frozen=True)
class _Source:
    """The rows of a split, and how batches of some of them are made.

    Args:
        positions: that batches are made from, in the split's order.
        rows: which row each position is, since a split may hold one more than once; as long.
        labels: of the positions, as long; None where they are not known.
        staying: makes batches as the split's own, of positions.
        taken: makes validation batches of positions.
        remark: on how rows are judged.
    """

    positions: NDArray[np.int64]
    rows: NDArray[np.int64]
    labels: NDArray[np.int64] | None
    staying: Callable[[NDArray[np.int64]], Batches]
    taken: Callable[[NDArray[np.int64]], Batches]
    remark: str = ""


@dataclass(frozen=True)
class _Parts:
    """What stays of a split, what is taken from it, how many rows that is, and how they were taken."""

    staying: Batches
    taken: Batches
    rows: int
    remark: str


def _source(name: str, split: Split) -> _Source:
    batches = batches_of(split, name)
    positions = _drawn_positions(batches) if isinstance(batches, DataLoader) else None
    if isinstance(batches, TensorBatches):
        source = _in_memory(batches)
    elif isinstance(batches, DataLoader) and positions is not None:
        source = _in_loader(name, batches, positions)
    else:
        raise TaskError(
            f"val must be given where {name} is neither held in memory nor a DataLoader of an indexable data "
            f"set with batches and a sampler of PyTorch's but {name} is {described_split(batches)} "
            "(give val=)."
        )
    count = len(np.unique(source.rows))
    if count < 2:
        raise TaskError(
            f"{name} must have at least 2 rows to take validation from but has {count} (give val=)."
        )
    return source


def _in_memory(batches: TensorBatches) -> _Source:
    positions = np.arange(len(batches.x))

    def taken(index: NDArray[np.int64]) -> Batches:
        return batches.subset(index, shuffle=False, batch_size=max(batches.batch_size, 500))

    return _Source(positions, positions, _classes(batches, len(batches.x), positions), batches.subset, taken)


def _in_loader(name: str, loader: DataLoader[Any], positions: NDArray[np.int64]) -> _Source:
    drawn = copied_if_possible(loader)
    judged, switch = judging_dataset(loader, drawn, positions, name)
    # Both halves of a test split are there to judge on.
    kept = judged if name == "test" else loader.dataset

    def staying(index: NDArray[np.int64]) -> Batches:
        subset = Subset(kept, index.tolist())
        return DataLoader(subset, sampler=_sampler(loader.sampler, subset, index), **_options(loader))

    def taken(index: NDArray[np.int64]) -> Batches:
        return DataLoader(Subset(judged, index.tolist()), **{**_options(loader), "drop_last": False})

    rows, dataset = positions, loader.dataset
    while isinstance(dataset, Subset):
        rows, dataset = np.asarray(dataset.indices)[rows], dataset.dataset
    remark = f", judged without its augmentation ({switch})" if switch else ""
    return _Source(
        positions, rows, _classes(drawn, len(cast(Sized, loader.dataset)), positions), staying, taken, remark
    )


def _carved(source: _Source, seed: int) -> _Parts:
    """A tenth of the rows, or one more where a batch of one would be left to train on."""
    count = len(np.unique(source.rows))
    tenth = min(MOST, max(1, round(FRACTION * count)))
    parts = _divided(source, tenth, seed)
    if tenth + 1 == count or not _leaves_one(parts.staying):
        return parts
    # It does not help where batches are of one row, or a sampler draws so many rows from however many.
    more = _divided(source, tenth + 1, seed)
    return parts if _leaves_one(more.staying) else more


def _leaves_one(batches: Batches) -> bool:
    if isinstance(batches, TensorBatches):
        return len(batches.x) % batches.batch_size == 1
    return has_batch_of_one(batches)


def _divided(source: _Source, size: int, seed: int) -> _Parts:
    """`size` different rows taken, at every position where they are; the others stay in their order."""
    _, first, number = np.unique(source.rows, return_index=True, return_inverse=True)
    labels = None if source.labels is None else source.labels[first]
    chosen, stratified = _chosen(len(first), size, seed, labels)
    staying = source.positions[~np.isin(number, chosen)]
    remark = f"{', stratified' if stratified else ''}{source.remark}"
    return _Parts(source.staying(staying), source.taken(source.positions[first[chosen]]), size, remark)


def _chosen(
    count: int, size: int, seed: int, labels: NDArray[np.int64] | None
) -> tuple[NDArray[np.int64], bool]:
    """`size` of `count` rows in rising order, and whether they are in proportion to the classes."""
    # It takes a second to import, and a task with a validation split needs nothing of it.
    from sklearn.model_selection import train_test_split

    everything = np.arange(count)
    if labels is not None:
        _, number, frequencies = np.unique(labels, return_inverse=True, return_counts=True)
        several = everything[frequencies[number] > 1]
        classes = np.count_nonzero(frequencies > 1)
        if classes <= min(size, len(several) - size):
            _, chosen = train_test_split(several, test_size=size, random_state=seed, stratify=labels[several])
            return np.sort(chosen), True
    _, chosen = train_test_split(everything, test_size=size, random_state=seed)
    return np.sort(chosen), False


def _classes(batches: Batches, count: int, positions: NDArray[np.int64]) -> NDArray[np.int64] | None:
    """The integer label at each position of `count`; None where there is not one each that is known."""
    labels = labels_of(batches)
    if labels is None or labels.shape != (count,) or labels.is_floating_point() or labels.is_complex():
        return None
    return labels.cpu().numpy()[positions].astype(np.int64)


def _drawn_positions(loader: DataLoader[Any]) -> NDArray[np.int64] | None:
    """Positions in the data set that a loader's sampler can draw; None where that cannot be told."""
    sampler: Any = loader.sampler
    own_iteration = type(loader).__iter__ is not DataLoader.__iter__
    if own_iteration or loader.batch_size is None or isinstance(loader.dataset, IterableDataset):
        return None
    if type(sampler) in (RandomSampler, SequentialSampler) and isinstance(sampler.data_source, Sized):
        return np.arange(len(sampler.data_source))
    if type(sampler) is SubsetRandomSampler:
        return np.asarray([int(position) for position in sampler.indices], dtype=np.int64)
    if type(sampler) is WeightedRandomSampler:
        return np.flatnonzero(sampler.weights.numpy() > 0)
    return None


def _sampler(sampler: Any, staying: Subset[Any], positions: NDArray[np.int64]) -> Sampler[int]:
    """A sampler of the same kind over the rows that stay, which are at these positions of all."""
    if type(sampler) is RandomSampler:
        once = sampler.num_samples == len(sampler.data_source)
        samples = None if once else sampler.num_samples
        return RandomSampler(staying, sampler.replacement, samples, sampler.generator)
    if type(sampler) is SubsetRandomSampler:
        return SubsetRandomSampler(range(len(staying)), sampler.generator)
    if type(sampler) is WeightedRandomSampler:
        most = sampler.num_samples if sampler.replacement else len(staying)
        samples = min(sampler.num_samples, most)
        weights = sampler.weights[torch.from_numpy(positions)].tolist()
        return WeightedRandomSampler(weights, samples, sampler.replacement, sampler.generator)
    return SequentialSampler(staying)


def _options(loader: DataLoader[Any]) -> dict[str, Any]:
    """What the loader was made with, under the names that the installed PyTorch knows; defaults are left out,
    because naming one may be deprecated."""
    return {
        name: getattr(loader, name)
        for name, parameter in inspect.signature(DataLoader.__init__).parameters.items()
        if name not in _ROWS and getattr(loader, name, parameter.default) != parameter.default
    }
