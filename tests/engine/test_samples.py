"""Digests of data: a sample that tells changed data, and that drawing at random does not change."""

from __future__ import annotations

import random
from collections.abc import Callable, Iterator
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from torch import Tensor
from torch.utils.data import DataLoader, Dataset, IterableDataset, Subset, TensorDataset

from autocompress.data import TensorBatches
from autocompress.engine.samples import data_digest
from autocompress.task import InputSpec

IMAGES = np.random.default_rng(0).integers(0, 255, (300, 3, 4, 4), dtype=np.uint8)
LABELS = np.arange(300) % 5


class Rows(Dataset[Any]):
    """Rows of any kind, made by a function of the position."""

    def __init__(self, make: Callable[[int], Any], count: int = 300) -> None:
        self.make, self.count = make, count
        self.drawn = 0

    def __len__(self) -> int:
        return self.count

    def __getitem__(self, position: int) -> Any:
        self.drawn += 1
        return self.make(position)


class Stream(IterableDataset[Any]):
    def __init__(self, offset: float) -> None:
        self.offset = offset

    def __iter__(self) -> Iterator[Any]:
        while True:
            yield torch.rand(3) + self.offset, 1


class Batches:
    """Iterable, and nothing else."""

    def __init__(self, offset: float) -> None:
        self.offset = offset

    def __iter__(self) -> Iterator[tuple[Tensor, Tensor]]:
        yield torch.rand(8, 3) + self.offset, torch.zeros(8)


def arrays(x: np.ndarray = IMAGES, y: np.ndarray = LABELS, scale: float = 1.0, **options: Any) -> Any:
    return TensorBatches(x, y, InputSpec((3, 4, 4), scale=scale), **options)


def tensors(x: np.ndarray = IMAGES, y: np.ndarray = LABELS, **options: Any) -> Any:
    return DataLoader(TensorDataset(torch.tensor(x), torch.tensor(y)), batch_size=8, **options)


def rows(make: Callable[[int], Any], count: int = 300, **options: Any) -> Any:
    return DataLoader(Rows(make, count), **{"batch_size": 8, **options})


def tree(scale: int) -> Callable[[int], Any]:
    def row(position: int) -> Any:
        image = Image.fromarray(IMAGES[position].transpose(1, 2, 0) * scale)
        return {"image": image, "boxes": [np.ones(position % 3), 2.5], "name": "row", "more": (None, True)}

    return row


def bucketed(offset: float) -> Any:
    data = Rows(lambda position: (torch.full((1 + position // 4,), offset), position), 40)
    return DataLoader(data, batch_sampler=[range(start, start + 4) for start in range(0, 40, 4)])


def whole(scale: float) -> Any:
    def collate(batch: Any) -> Any:
        inputs, targets = batch
        return scale * inputs, targets

    return rows(lambda position: (torch.ones(4, 2), torch.zeros(4)), batch_size=None, collate_fn=collate)


def own(seed: int | None) -> Callable[[int], Any]:
    """Rows that a generator of the data set's own augments."""
    generator = np.random.default_rng(seed)
    return lambda position: (generator.random(3) + position, LABELS[position])


def relabelled(place: int) -> np.ndarray:
    labels = LABELS.copy()
    labels[place] = (labels[place] + 1) % 5
    return labels


def brighter() -> np.ndarray:
    return np.minimum(IMAGES, 250) + 5


def loaded_rows(batch: list[Any]) -> Any:
    return torch.stack([x for x, _ in batch]), torch.tensor([y for _, y in batch])


def doubled_rows(batch: list[Any]) -> Any:
    return 2 * torch.stack([x for x, _ in batch]), torch.tensor([y for _, y in batch])


@pytest.mark.parametrize(
    ("make", "others"),
    [
        (arrays, [lambda: arrays(brighter()), lambda: arrays(y=relabelled(77)), lambda: arrays(scale=2.0)]),
        (arrays, [lambda: arrays(IMAGES[:299], LABELS[:299]), lambda: arrays(IMAGES.astype(np.float32))]),
        (tensors, [lambda: tensors(brighter()), lambda: tensors(y=relabelled(77))]),
        (lambda: rows(tree(1)), [lambda: rows(tree(2)), lambda: rows(tree(1), 299)]),
        (
            lambda: tensors(collate_fn=loaded_rows),
            [lambda: tensors(collate_fn=doubled_rows)],
        ),
        (
            lambda: DataLoader(Subset(tensors().dataset, range(100)), batch_size=8),
            [lambda: DataLoader(Subset(tensors().dataset, range(1, 101)), batch_size=8)],
        ),
        (
            lambda: [(torch.ones(4, 2), torch.zeros(4))] * 3,
            [
                lambda: [(torch.ones(4, 2), torch.zeros(4))] * 4,
                lambda: [(torch.ones(4, 2), torch.ones(4))] * 3,
            ],
        ),
        # Augmented by the global generators, which are seeded.
        (
            lambda: rows(lambda i: (torch.rand(3) + random.random() + np.random.rand() + i, i)),  # noqa: NPY002
            [lambda: rows(lambda i: (torch.rand(3) + i, i))],
        ),
        # Augmented by a generator of its own: the rest still counts.
        (
            lambda: rows(own(None)),
            [lambda: rows(own(None), 299), lambda: rows(lambda i: (own(None)(i)[0], 3))],
        ),
        # Rows of several sizes, of which only those of a batch can be joined.
        (lambda: bucketed(0.0), [lambda: bucketed(1.0)]),
        # A data set that yields batches.
        (lambda: whole(1.0), [lambda: whole(2.0)]),
        (lambda: DataLoader(Stream(0.0), batch_size=4), [lambda: DataLoader(Stream(1.0), batch_size=4)]),
        (lambda: Batches(0.0), [lambda: Batches(1.0)]),
    ],
)
def test_changed_data_have_another_digest_and_the_same_data_the_same(
    make: Callable[[], Any], others: list[Callable[[], Any]]
) -> None:
    torch.manual_seed(random.randrange(1000))
    before = data_digest(make())
    torch.manual_seed(random.randrange(1000))
    assert data_digest(make()) == before
    for other in others:
        assert data_digest(other()) != before


def test_order_and_batch_size_are_no_part_of_the_data() -> None:
    assert data_digest(tensors(shuffle=True)) == data_digest(tensors())
    assert data_digest(arrays(batch_size=7, shuffle=True)) == data_digest(arrays())


@pytest.mark.parametrize(
    "make",
    [
        lambda: tensors(shuffle=True, generator=torch.Generator().manual_seed(3)),
        lambda: DataLoader(Stream(0.0), batch_size=4, generator=torch.Generator().manual_seed(3)),
        lambda: arrays(shuffle=True),
        lambda: rows(lambda i: (torch.rand(3) + random.random() + np.random.rand(), i)),  # noqa: NPY002
    ],
)
def test_random_states_are_left_as_they_were(make: Callable[[], Any]) -> None:
    batches = make()

    def states() -> list[Any]:
        loaders = getattr(batches, "generator", None) or torch.default_generator
        numpy_state = np.random.get_state()[1].tolist()  # type: ignore[index]  # noqa: NPY002
        return [random.getstate(), numpy_state, torch.get_rng_state().tolist(), loaders.get_state().tolist()]

    before = states()
    data_digest(batches)
    assert states() == before


def test_a_few_rows_are_drawn_of_many() -> None:
    data = Rows(lambda i: (torch.zeros(2), 0), 1_000_000)
    data_digest(DataLoader(data, batch_size=256, shuffle=True))
    assert 0 < data.drawn <= 64
