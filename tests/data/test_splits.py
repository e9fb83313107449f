"""Where validation comes from: the task's own, carved from training, or half of test."""

from __future__ import annotations

import os
import pickle
import random
from collections.abc import Callable, Iterator
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor
from torch.utils.data import (
    BatchSampler,
    DataLoader,
    Dataset,
    IterableDataset,
    RandomSampler,
    Sampler,
    SequentialSampler,
    Subset,
    SubsetRandomSampler,
    TensorDataset,
    WeightedRandomSampler,
)

import autocompress as ac
from autocompress.data import TensorBatches, with_validation
from autocompress.errors import TaskError
from tests.conftest import Residual, image_batches

WEIGHTS = {"w": torch.zeros(1)}


def rows_of(batches: Any) -> list[float]:
    """First inputs of all rows, in order."""
    return [float(value) for inputs, _ in batches for value in inputs.reshape(len(inputs), -1)[:, 0]]


def numbers(count: int = 50, classes: int = 5) -> TensorDataset:
    """Row i holds i, and is of class i modulo `classes`."""
    return TensorDataset(torch.arange(float(count))[:, None], torch.arange(count) % classes)


def task_of(train: Any, **others: Any) -> ac.Task:
    return ac.Task(model=Residual, train=train, **others)


def carved(train: Any) -> tuple[Any, Any]:
    task, _ = with_validation(task_of(train))
    return task.train, task.val


class Rows(Dataset[tuple[Tensor, Tensor]]):
    """Rows of which some function makes inputs; targets are known."""

    def __init__(self, make: Callable[[int], Tensor], count: int = 40) -> None:
        self.make, self.targets = make, torch.arange(count) % 4

    def __len__(self) -> int:
        return len(self.targets)

    def __getitem__(self, row: int) -> tuple[Tensor, Tensor]:
        return self.make(row), self.targets[row]


class Augmented(Rows):
    """Adds noise to the row's number while its switch is on."""

    def __init__(self, switch: str, value: object = True) -> None:
        super().__init__(lambda row: torch.tensor([float(row)]))
        self.switch = switch
        setattr(self, switch, value)

    def __getitem__(self, row: int) -> tuple[Tensor, Tensor]:
        inputs, target = super().__getitem__(row)
        return inputs + 0.1 * torch.rand(1) * bool(getattr(self, self.switch)), target


# Which rows.


def test_a_tenth_of_the_rows_is_held_out_and_none_is_shared(residual_task: ac.Task) -> None:
    task, note = with_validation(replace(residual_task, train=image_batches(count=200), val=None))
    assert (len(task.train.x), len(task.val.x)) == (180, 20)
    rows = {row.tobytes() for row in task.train.x} & {row.tobytes() for row in task.val.x}
    assert not rows
    assert np.bincount(task.val.targets, minlength=5).min() >= 3
    assert note == "validation is 20 rows carved from train, stratified"


@pytest.mark.parametrize("weights", [None, WEIGHTS])
def test_own_validation_is_kept(residual_task: ac.Task, weights: dict[str, Tensor] | None) -> None:
    given = replace(residual_task, weights=weights)
    task, note = with_validation(given)
    assert task is given
    assert note is None


def test_with_weights_validation_is_half_of_test_and_no_row_of_train() -> None:
    train, test = image_batches(count=64), image_batches(count=100, shuffle=False)
    task, note = with_validation(task_of(train, test=test, weights=WEIGHTS))
    assert task.train is train
    halves = [{row.tobytes() for row in half.x} for half in (task.val, task.test)]
    assert [len(half) for half in halves] == [50, 50]
    assert halves[0] | halves[1] == {row.tobytes() for row in test.x}
    counts = [np.bincount(half.targets, minlength=5) for half in (task.val, task.test)]
    assert abs(counts[0] - counts[1]).max() <= 1
    assert note == (
        "validation is half of test, 50 rows, stratified (the weights may have seen train); "
        "the other half reports"
    )


def test_loaders_of_test_are_halved_too() -> None:
    test = DataLoader(numbers(41), batch_size=8)
    task, _ = with_validation(task_of(image_batches(), test=test, weights=WEIGHTS))
    val, rest = rows_of(task.val), rows_of(task.test)
    assert (len(val), len(rest)) == (20, 21)
    assert sorted(val + rest) == list(range(41))
    assert rest == sorted(rest)


def test_weights_without_test_ask_for_validation() -> None:
    with pytest.raises(TaskError, match=r"val must be given where weights are given without test.*give val="):
        with_validation(task_of(image_batches(), weights=WEIGHTS))


def test_the_same_seed_takes_the_same_rows_and_another_seed_others() -> None:
    task = task_of(DataLoader(numbers(200), batch_size=8, shuffle=True))
    first, again, other = (rows_of(with_validation(task, seed)[0].val) for seed in (0, 0, 1))
    assert first == again
    assert first != other


@pytest.mark.parametrize("count", [0, 1])
def test_too_few_rows_ask_for_validation(count: int) -> None:
    loader = DataLoader(numbers(count), batch_size=4)
    with pytest.raises(TaskError, match=rf"train must have at least 2 rows .* but has {count} \(give val=\)"):
        with_validation(task_of(loader))
    with pytest.raises(TaskError, match=rf"test must have at least 2 rows .* but has {count}"):
        with_validation(task_of(image_batches(), test=loader, weights=WEIGHTS))


def test_two_rows_are_one_each() -> None:
    train, val = carved(DataLoader(numbers(2), batch_size=4))
    assert sorted(rows_of(train) + rows_of(val)) == [0, 1]
    assert len(rows_of(val)) == 1


# Classes.


class OnlyLabels(Rows):
    """Keeps its labels where some of torchvision's data sets do."""

    def __init__(self, labels: object, count: int) -> None:
        super().__init__(lambda row: torch.tensor([float(row)]), count)
        del self.targets
        self.labels, self.count = labels, count

    def __len__(self) -> int:
        return self.count

    def __getitem__(self, row: int) -> tuple[Tensor, Tensor]:
        return self.make(row), torch.tensor(0)


FIVES = torch.arange(100) % 5


@pytest.mark.parametrize(
    "dataset",
    [
        numbers(100),
        Subset(numbers(300), range(100)),
        Subset(Subset(numbers(300), range(200)), range(100)),
        OnlyLabels(FIVES.tolist(), 100),
        OnlyLabels(FIVES.numpy(), 100),
        OnlyLabels(FIVES.to(torch.uint8), 100),
    ],
)
def test_known_labels_are_stratified_by(dataset: Any) -> None:
    task, note = with_validation(task_of(DataLoader(dataset, batch_size=8)))
    assert note == "validation is 10 rows carved from train, stratified"
    assert np.bincount([int(row) % 5 for row in rows_of(task.val)]).tolist() == [2] * 5


@pytest.mark.parametrize(
    "labels",
    [
        ["cat"] * 100,
        [[0, 1], [2]] * 50,
        np.zeros((100, 4, 4), dtype=np.int64),
        np.linspace(0, 1, 100),
        np.arange(100),
        np.zeros(30, dtype=np.int64),
        7,
    ],
)
def test_labels_that_are_no_classes_are_not_stratified_by(labels: object) -> None:
    loader = DataLoader(OnlyLabels(labels, 100), batch_size=8)
    task, note = with_validation(task_of(loader))
    assert note == "validation is 10 rows carved from train"
    assert sorted(rows_of(task.train) + rows_of(task.val)) == list(range(100))


def test_masks_of_images_are_no_classes() -> None:
    masks = TensorDataset(torch.randn(40, 3, 4, 4), torch.zeros(40, 4, 4, dtype=torch.long))
    assert len(rows_of(carved(DataLoader(masks, batch_size=8))[1])) == 4


def test_a_class_of_one_row_stays_in_training_and_the_others_are_stratified() -> None:
    labels = torch.tensor([2] + [0, 1] * 30)
    data = TensorDataset(torch.arange(61.0)[:, None], labels)
    task, note = with_validation(task_of(DataLoader(data, batch_size=8)))
    assert note == "validation is 6 rows carved from train, stratified"
    assert sorted(int(labels[int(row)]) for row in rows_of(task.val)) == [0, 0, 0, 1, 1, 1]


# A loader's options and order.


def own_collate(rows: list[Any]) -> Any:
    return torch.utils.data.default_collate(rows)


def own_init(worker: int) -> None:
    torch.set_num_threads(1)


def test_a_loader_keeps_its_options() -> None:
    generator = torch.Generator().manual_seed(3)
    options = {
        "batch_size": 7,
        "num_workers": 1,
        "collate_fn": own_collate,
        "drop_last": True,
        "timeout": 30,
        "worker_init_fn": own_init,
        "generator": generator,
        "prefetch_factor": 3,
        "persistent_workers": True,
        "in_order": False,
    }
    train, val = carved(
        DataLoader(numbers(), shuffle=True, multiprocessing_context="spawn", pin_memory=True, **options)
    )
    for name, value in options.items():
        assert getattr(train, name) == value
        assert getattr(val, name) == (False if name == "drop_last" else value)
    for part in (train, val):
        assert part.pin_memory
        assert part.multiprocessing_context.get_start_method() == "spawn"
    assert type(val.sampler) is SequentialSampler


def test_validation_drops_no_rows() -> None:
    train, val = carved(DataLoader(numbers(), batch_size=8, shuffle=True, drop_last=True))
    assert {len(x) for x, _ in train} == {8}
    assert len(rows_of(val)) == 5


def test_rows_in_order_stay_in_order() -> None:
    train, val = carved(DataLoader(numbers(), batch_size=8))
    assert rows_of(train) == sorted(rows_of(train))
    assert sorted(rows_of(train) + rows_of(val)) == list(range(50))
    assert rows_of(val) == sorted(rows_of(val))


def test_random_order_is_drawn_from_the_loaders_own_generator() -> None:
    generator = torch.Generator()
    train, _ = carved(DataLoader(numbers(), batch_size=8, shuffle=True, generator=generator))
    assert train.sampler.generator is generator
    orders = []
    for seed in (1, 1, 2):
        generator.manual_seed(seed)
        orders.append(rows_of(train))
    assert orders[0] == orders[1] != orders[2]
    assert len(set(orders[0])) == 45


def test_rows_drawn_with_replacement_still_are() -> None:
    data = numbers()
    sampler = RandomSampler(data, replacement=True, num_samples=120)
    train, val = carved(DataLoader(data, batch_size=8, sampler=sampler))
    drawn = rows_of(train)
    assert len(drawn) == 120
    assert not set(drawn) & set(rows_of(val))


@pytest.mark.parametrize("replacement", [True, False])
def test_a_weighted_sampler_keeps_the_weights_of_the_rows_that_stay(replacement: bool) -> None:
    data = numbers()
    weights = torch.arange(50) + 1.0
    weights[:10] = 0.0
    sampler = WeightedRandomSampler(weights, 40, replacement)
    train, val = carved(DataLoader(data, batch_size=6, sampler=sampler))
    assert len(rows_of(val)) == 4
    assert min(rows_of(val)) >= 10
    expected = [float(row) + 1 for row in range(10, 50) if row not in rows_of(val)]
    assert train.sampler.weights.tolist() == expected
    drawn = rows_of(train)
    assert len(drawn) == (40 if replacement else 36)
    assert not set(drawn) & {*rows_of(val), *range(10)}


def test_rows_that_a_subset_sampler_leaves_out_are_not_taken() -> None:
    indices = [*range(0, 80, 2), 4, 4, 6]  # rows 4 and 6 more than once
    loader = DataLoader(numbers(80), batch_size=8, sampler=SubsetRandomSampler(indices))
    train, val = carved(loader)
    assert type(train.sampler) is SubsetRandomSampler
    assert len(rows_of(val)) == 4
    expected = [row for row in indices if row not in rows_of(val)]
    assert sorted(rows_of(train)) == sorted(expected)
    assert set(rows_of(val)) <= set(indices)


def test_a_row_that_a_subset_holds_twice_is_on_one_side_alone() -> None:
    twice = Subset(numbers(60), [*range(60), *range(60)])
    train, val = carved(DataLoader(twice, batch_size=8))
    assert len(rows_of(val)) == 6
    assert sorted(rows_of(train)) == sorted([row for row in range(60) if row not in rows_of(val)] * 2)


def test_carved_loaders_pickle() -> None:
    train, val = pickle.loads(pickle.dumps(carved(DataLoader(numbers(), batch_size=8, shuffle=True))))
    assert sorted(rows_of(train) + rows_of(val)) == list(range(50))


# A last batch of one row.


def test_no_last_batch_of_one_row_is_left_to_train_on() -> None:
    # 72 − 7 rows would leave one beside a batch of 64.
    loader = DataLoader(numbers(72, 3), batch_size=64, shuffle=True)
    train, val = carved(loader)
    assert [len(x) for x, _ in train] == [64]
    assert len(rows_of(val)) == 8
    dropped = DataLoader(numbers(72, 3), batch_size=64, shuffle=True, drop_last=True)
    assert len(rows_of(carved(dropped)[1])) == 7


def test_batches_of_one_row_are_left_to_who_asks_for_them() -> None:
    train, val = carved(DataLoader(numbers(30), batch_size=1))
    assert {len(x) for x, _ in train} == {1}
    assert len(rows_of(val)) == 3


def test_batches_in_memory_drop_no_row_after_carving() -> None:
    batches = replace(image_batches(count=72), batch_size=64)
    task, _ = with_validation(task_of(batches))
    assert [len(x) for x, _ in task.train] == [64]
    assert (len(task.train.x), len(task.val.x)) == (64, 8)


# What is drawn is drawn from copies.


class Opened(Rows):
    """Rows and labels of what is opened with the first that is asked for."""

    def __init__(self) -> None:
        super().__init__(lambda row: torch.tensor([float(row)]))
        self.handle: Any = None

    def __getitem__(self, row: int) -> tuple[Tensor, Tensor]:
        self.handle = open(os.devnull)  # noqa: SIM115  (which is why it cannot be pickled)
        return super().__getitem__(row)

    @property
    def labels(self) -> Tensor:
        self.handle = open(os.devnull)  # noqa: SIM115
        return torch.arange(40) % 4


def test_validation_is_carved_without_opening_the_data() -> None:
    data = Opened()
    task, note = with_validation(task_of(DataLoader(data, batch_size=8)))
    assert "stratified" in str(note)
    assert data.handle is None
    with task.opened() as opened:
        assert len(rows_of(opened.val)) == 4
    assert task.val.dataset.dataset is task.train.dataset.dataset is data
    assert data.handle is None


def test_a_switched_off_data_set_is_not_opened_either() -> None:
    data = Augmented("train")
    task, _ = with_validation(task_of(DataLoader(data, batch_size=8)))
    judged = task.val.dataset.dataset
    assert judged is not data
    assert judged.make is data.make


def test_what_a_function_makes_is_divided() -> None:
    def make() -> DataLoader[Any]:
        return DataLoader(numbers(), batch_size=8, shuffle=True)

    train, val = carved(make)
    assert (len(rows_of(train)), len(rows_of(val))) == (45, 5)
    task, _ = with_validation(task_of(image_batches(), test=make, weights=WEIGHTS))
    assert len(rows_of(task.val)) == len(rows_of(task.test)) == 25


# What is refused.


class Stream(IterableDataset[tuple[Tensor, Tensor]]):
    def __iter__(self) -> Iterator[tuple[Tensor, Tensor]]:
        return iter([(torch.zeros(1), torch.tensor(0))] * 20)


class Backwards(Sampler[int]):
    def __init__(self, data: Any) -> None:
        self.data_source = data

    def __iter__(self) -> Iterator[int]:
        return iter(range(len(self.data_source))[::-1])

    def __len__(self) -> int:
        return len(self.data_source)


class Prefetching(DataLoader[Any]):
    def __iter__(self) -> Any:
        return iter([(2 * x, y) for x, y in super().__iter__()])


@pytest.mark.parametrize(
    ("split", "what"),
    [
        ([(torch.zeros(1), torch.zeros(1))], "a list"),
        (DataLoader(Stream(), batch_size=4), "a DataLoader of an IterableDataset"),
        (DataLoader(numbers(), batch_size=None), "a batch_sampler of its own"),
        (
            DataLoader(numbers(), batch_sampler=BatchSampler(RandomSampler(numbers()), 8, drop_last=True)),
            "a batch_sampler of its own",
        ),
        (DataLoader(numbers(), batch_size=8, sampler=Backwards(numbers())), "a DataLoader with a Backwards"),
        (Prefetching(numbers(), batch_size=8), "a Prefetching"),
    ],
)
def test_other_ways_to_draw_rows_must_bring_validation(split: Any, what: str) -> None:
    with pytest.raises(TaskError, match=rf"val must be given where train .*{what}.*give val="):
        with_validation(task_of(split))
    with pytest.raises(TaskError, match=rf"val must be given where test .*{what}.*give val="):
        with_validation(task_of(image_batches(), test=split, weights=WEIGHTS))


# Rows that are transformed at random.


def sometimes(row: int) -> Tensor:
    """One row in ten is another one."""
    return torch.tensor([float(row), float(torch.rand(()) < 0.1)])


NOISY = {
    "torch": lambda row: torch.rand(2),
    "numpy": lambda row: torch.tensor(np.random.rand(2)),  # noqa: NPY002
    "python": lambda row: torch.tensor([random.random()]),
    "sometimes": sometimes,
}


@pytest.mark.parametrize("kind", NOISY)
@pytest.mark.parametrize("inner", [False, True])
def test_rows_transformed_at_random_are_refused(kind: str, inner: bool) -> None:
    data: Any = Rows(NOISY[kind])
    loader = DataLoader(Subset(data, range(30)) if inner else data, batch_size=8, shuffle=True)
    with pytest.raises(TaskError, match=r"rows of train are transformed at random.*give val="):
        with_validation(task_of(loader))
    with pytest.raises(TaskError, match=r"rows of test are transformed at random.*give val="):
        with_validation(task_of(image_batches(), test=loader, weights=WEIGHTS))


def test_a_generator_of_the_data_sets_own_is_found_too() -> None:
    generator = np.random.default_rng(0)
    loader = DataLoader(Rows(lambda row: torch.tensor(generator.random(2))), batch_size=8)
    with pytest.raises(TaskError, match="transformed at random"):
        with_validation(task_of(loader))


def mixing(rows: list[Any]) -> Any:
    inputs, targets = torch.utils.data.default_collate(rows)
    return inputs[torch.randperm(len(inputs))] + inputs, targets


def test_batches_mixed_at_random_are_refused() -> None:
    with pytest.raises(TaskError, match="transformed at random"):
        with_validation(task_of(DataLoader(numbers(), batch_size=8, collate_fn=mixing)))


def test_rows_that_cannot_be_drawn_ask_for_validation() -> None:
    def fails(row: int) -> Tensor:
        raise OSError("no such file")

    with pytest.raises(
        TaskError, match=r"rows of train cannot be drawn .* OSError: no such file \(give val="
    ):
        with_validation(task_of(DataLoader(Rows(fails), batch_size=8)))


def test_missing_values_are_equal_to_themselves() -> None:
    data = Rows(lambda row: torch.tensor([float(row), float("nan")]))
    assert len(rows_of(carved(DataLoader(data, batch_size=8))[1])) == 4


@pytest.mark.parametrize("switch", ["train", "training", "augment"])
@pytest.mark.parametrize("inner", [False, True])
def test_a_data_sets_own_switch_ends_augmentation_for_validation(switch: str, inner: bool) -> None:
    data = Augmented(switch)
    loader = DataLoader(Subset(data, range(20)) if inner else data, batch_size=8, shuffle=True)
    task, note = with_validation(task_of(loader))
    assert note is not None
    assert note.endswith(f", judged without its augmentation ({switch}=False)")
    val = rows_of(task.val)
    assert val == rows_of(task.val)
    assert all(row == int(row) for row in val)
    assert getattr(data, switch) is True
    train = rows_of(task.train)
    assert any(row != int(row) for row in train)
    assert not {int(row) for row in train} & set(val)


def test_both_halves_of_a_test_split_are_judged_without_augmentation() -> None:
    loader = DataLoader(Augmented("train"), batch_size=8)
    task, note = with_validation(task_of(image_batches(), test=loader, weights=WEIGHTS))
    assert "judged without its augmentation (train=False)" in str(note)
    assert sorted(rows_of(task.val) + rows_of(task.test)) == list(range(40))


class OtherSplit(Augmented):
    """The switch also chooses rows of another split, of other classes."""

    def __getitem__(self, row: int) -> tuple[Tensor, Tensor]:
        inputs, target = super().__getitem__(row)
        return inputs, target if self.train else (target + 1) % 4


class Shorter(Augmented):
    def __len__(self) -> int:
        return 40 if self.train else 10


class ReadOnly(Rows):
    @property
    def train(self) -> bool:
        return True


@pytest.mark.parametrize(
    "data", [Augmented("train", "yes"), OtherSplit("train"), Shorter("train"), ReadOnly(NOISY["torch"])]
)
def test_what_only_looks_like_a_switch_is_none(data: Any) -> None:
    with pytest.raises(TaskError, match="transformed at random"):
        with_validation(task_of(DataLoader(data, batch_size=8)))


def test_drawing_rows_leaves_the_random_generators_as_they_were() -> None:
    def states() -> list[float]:
        return [random.random(), float(np.random.rand()), float(torch.rand(()))]  # noqa: NPY002

    def seed() -> None:
        random.seed(5)
        np.random.seed(5)  # noqa: NPY002
        torch.manual_seed(5)

    seed()
    expected = states()
    for data in (numbers(), Augmented("train")):
        seed()
        with_validation(task_of(DataLoader(data, batch_size=8, shuffle=True)))
        assert states() == expected


def test_arrays_in_memory_are_halved_in_any_shape() -> None:
    batches = image_batches(count=11, shuffle=False)
    test = TensorBatches(batches.x, np.zeros((11, 8, 8), dtype=np.int64), batches.spec)
    task, note = with_validation(task_of(image_batches(), test=test, weights=WEIGHTS))
    assert (len(task.val.x), len(task.test.x)) == (5, 6)
    assert "stratified" not in str(note)
