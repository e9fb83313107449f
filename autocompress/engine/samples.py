"""A digest of a split's data: of its length and a few rows, without a pass over it."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import asdict
from typing import Any

import numpy as np
from numpy.typing import NDArray
from torch import Tensor
from torch.utils.data import DataLoader, IterableDataset, Subset, TensorDataset, default_collate

from autocompress.data import TensorBatches
from autocompress.engine.digests import array_digest, array_form, digest
from autocompress.task.checks import labels_of
from autocompress.task.random_state import generators_of, seeded

_ROWS = 64  # of data held in memory
_DRAWN_ROWS = 8  # of other data, whose rows may each be a photo to decode, twice
# Leaf of a row, by where it is in the row → its values, row by row.
Leaves = dict[str, list[Any]]


def data_digest(batches: Any) -> str:
    """A digest of a split, the same in every process; no global random state is changed.

    Rows are drawn twice by one seed. What differs all the same, as augmentation by a generator of the data
    set's own does, counts by its shape and type, or by its type alone where that differs too.

    Args:
        batches: a split of a task.
    """
    length, draw = _way(batches)
    first, second = draw(), draw()
    leaves = [
        (place, _settled(first[place], second[place])) for place in sorted(first.keys() & second.keys())
    ]
    return digest((length, _labels(batches), leaves))


def _way(batches: Any) -> tuple[int | None, Callable[[], Leaves]]:
    """Length of a split, and how rows of it are drawn."""
    if isinstance(batches, TensorBatches):
        index = _spread(len(batches.x), _ROWS)
        rows = {
            "x": list(batches.x[index]),
            "y": list(batches.targets[index]),
            "spec": [asdict(batches.spec)],
        }
        return len(batches.x), lambda: rows
    if isinstance(batches, (list, tuple)):
        kept = [batches[int(position)] for position in _spread(len(batches), _ROWS)]
        return len(batches), lambda: _by_place(kept)
    if isinstance(batches, DataLoader) and not isinstance(batches.dataset, IterableDataset):
        return _length(batches.dataset), lambda: _loaded(batches)
    return _length(batches), lambda: _first_batch(batches)


def _length(data: Any) -> int | None:
    try:
        return len(data)
    except TypeError:  # A stream has none.
        return None


def _loaded(loader: DataLoader[Any]) -> Leaves:
    """Rows of a loader's data set, and what its own `collate_fn` makes of them."""
    dataset: Any = loader.dataset
    inner = dataset
    while isinstance(inner, Subset):
        inner = inner.dataset
    most = _ROWS if isinstance(inner, TensorDataset) else _DRAWN_ROWS
    with seeded():
        try:
            rows = [dataset[int(position)] for position in _spread(len(dataset), most)]
            leaves = _by_place(rows)
            if loader.batch_sampler is None:  # what the data set yields are batches
                leaves["batch"] = [loader.collate_fn(row) for row in rows]
            elif loader.collate_fn is not default_collate:
                leaves["batch"] = [loader.collate_fn(rows[: loader.batch_size])]
        except Exception:
            # Its sampler may yield other keys than positions, or only rows that can be one batch; iterating
            # it works, as preparation has shown.
            return _first_batch(loader)
    return leaves


def _by_place(rows: Iterable[Any]) -> Leaves:
    leaves: Leaves = {}
    for row in rows:
        for place, leaf in _leaves(row):
            leaves.setdefault(place, []).append(leaf)
    return leaves


def _first_batch(batches: Any) -> Leaves:
    with seeded(*generators_of(batches)):
        return _by_place([next(iter(batches))])


def _spread(count: int, most: int) -> NDArray[np.int64]:
    """Positions evenly spread over so many rows, the first and the last among them."""
    return np.unique(np.linspace(0, count - 1, min(count, most)).round().astype(np.int64))


def _leaves(value: Any, place: str = "") -> Iterator[tuple[str, Any]]:
    """Tensors, arrays, images, numbers and words of a row, by where they are in it."""
    if isinstance(value, Mapping):
        for key in sorted(value, key=str):
            yield from _leaves(value[key], f"{place}/{key}")
    elif isinstance(value, Sequence) and not isinstance(value, (str, bytes)):
        for position, entry in enumerate(value):
            yield from _leaves(entry, f"{place}/{position}")
    else:
        yield place, value


def _settled(first: list[Any], second: list[Any]) -> tuple[str, list[str]]:
    """The most that two draws of the same rows agree on."""
    for name, measure in (("content", digest), ("form", _form)):
        measured = [measure(leaf) for leaf in first]
        if measured == [measure(leaf) for leaf in second]:
            return name, measured
    return "type", sorted({type(leaf).__qualname__ for leaf in first})


def _form(leaf: Any) -> str:
    if isinstance(leaf, (Tensor, np.ndarray)):
        return array_form(leaf).hex()
    return f"{type(leaf).__qualname__} {getattr(leaf, 'mode', '')} {getattr(leaf, 'size', '')}"


def _labels(batches: Any) -> str | None:
    """A digest of all class labels where the split holds them as one array."""
    try:
        labels = labels_of(batches)
    except (TypeError, ValueError, RuntimeError, IndexError):
        return None  # `targets` of a data set may be anything; the rows tell of those.
    return None if labels is None or labels.dim() != 1 else array_digest(labels).hex()
