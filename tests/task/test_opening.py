"""Splits are drawn from copies, so that they can be sent anywhere, whatever was drawn."""

from __future__ import annotations

import io
import multiprocessing
import pickle
import threading
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import cloudpickle
import numpy as np
import pytest
import torch
from torch import Tensor, nn
from torch.utils.data import DataLoader, Dataset, IterableDataset, RandomSampler, TensorDataset

import autocompress as ac
from autocompress.data import TensorBatches
from autocompress.errors import TaskError
from autocompress.task import InputSpec
from autocompress.task.opening import copied, copied_if_possible, passed

Rows = tuple[Tensor, int]


class Lazy(Dataset[Rows]):
    """Rows of a file that is opened with the first of them, and cannot be pickled from then on."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self.file: io.BufferedReader | None = None

    def __len__(self) -> int:
        return 12

    def __getitem__(self, row: int) -> Rows:
        if self.file is None:
            self.file = self.path.open("rb")
        self.file.seek(row)
        return torch.tensor([float(self.file.read(1)[0])]), row


class Augmented(Dataset[Rows]):
    """Rows that a generator of their own changes with each draw."""

    def __init__(self) -> None:
        self.generator = np.random.default_rng(3)

    def __len__(self) -> int:
        return 12

    def __getitem__(self, row: int) -> Rows:
        return torch.tensor(self.generator.random(2)), row


class Endless(IterableDataset[Rows]):
    def __iter__(self) -> Iterator[Rows]:
        while True:
            yield torch.rand(2), 0


class Counted:
    """Batches that count how often they were opened, in all copies."""

    opened = 0

    def __init__(self, lengths: tuple[int, ...] = (3, 2, 4)) -> None:
        self.lengths = lengths

    def __iter__(self) -> Iterator[tuple[Tensor, Tensor]]:
        type(self).opened += 1
        for length in self.lengths:
            yield torch.rand(length, 2), torch.zeros(length, dtype=torch.long)

    def __len__(self) -> int:
        return len(self.lengths)


@pytest.fixture
def lazy(tmp_path: Path) -> Lazy:
    (tmp_path / "rows").write_bytes(bytes(range(12)))
    return Lazy(tmp_path / "rows")


@pytest.fixture
def counted() -> Counted:
    Counted.opened = 0
    return Counted()


def task(train: Any, **others: Any) -> ac.Task:
    return ac.Task(lambda: nn.Linear(2, 3), train, **others)


def opened_of(own: ac.Task) -> ac.Task:
    with own.opened() as opened:
        return opened


def inputs_of(batches: Any) -> list[Any]:
    return torch.cat([x for x, _ in batches]).tolist()


def test_a_copy_shares_what_is_large() -> None:
    images = np.zeros((4, 3), dtype=np.uint8)
    arrays = TensorBatches(images, np.zeros(4), InputSpec((3,)))
    rows, files = TensorDataset(torch.zeros(3)), [b"jpeg"]
    copy = copied({"arrays": arrays, "rows": rows, "files": files, "map": np.memmap})
    assert copy["arrays"] is not arrays
    assert copy["arrays"].x is images
    assert copy["rows"] is not rows
    assert copy["rows"].tensors[0] is rows.tensors[0]
    assert copy["files"] is not files
    assert copy["files"][0] is files[0]


def test_batches_that_no_draw_changes_are_not_copied() -> None:
    arrays = TensorBatches(np.zeros((4, 2), dtype=np.uint8), np.zeros(4, dtype=np.int64), InputSpec((2,)))
    opened = opened_of(task(arrays, val=DataLoader(TensorDataset(torch.zeros(4, 2), torch.zeros(4)))))
    assert opened.train is opened_of(opened).train is arrays
    assert opened.val is not opened_of(opened).val


def test_generators_and_what_splits_share_are_copied_together() -> None:
    generator = torch.Generator().manual_seed(1)
    rows = TensorDataset(torch.arange(20.0))
    loader = DataLoader(rows, 5, sampler=RandomSampler(rows, generator=generator), generator=generator)
    first, second = copied((loader, loader))
    assert first is second
    assert first.generator is first.sampler.generator
    assert first.generator is not generator
    assert first.generator.get_state().equal(generator.get_state())


def test_a_loader_is_copied_without_the_processes_that_it_keeps() -> None:
    rows = TensorDataset(torch.arange(8.0), torch.arange(8))
    loader = DataLoader(rows, 4, num_workers=1, persistent_workers=True)
    assert len(list(loader)) == 2
    processes = loader._iterator
    with pytest.raises(NotImplementedError):
        pickle.dumps(loader)
    for sent in (copied([loader])[0], cloudpickle.loads(cloudpickle.dumps(task(loader))).train):
        assert sent.persistent_workers
        assert sent._iterator is None
        assert inputs_of(sent) == list(range(8))
    assert loader._iterator is processes


def test_what_was_drawn_from_is_sent_unopened(lazy: Lazy) -> None:
    own = task(DataLoader(lazy, 4), val=DataLoader(lazy, 6))
    opened = opened_of(own)
    assert len(list(opened.train)) == 3
    opened.first_batches(lambda drawn: len(drawn) == 2)
    with pytest.raises(TypeError):
        pickle.dumps(opened.train)
    assert lazy.file is None
    sent = cloudpickle.loads(cloudpickle.dumps(opened))
    assert sent.train.dataset is sent.val.dataset
    assert sent.train.dataset.file is None
    assert inputs_of(opened_of(sent).train) == [[float(row)] for row in range(12)]


def test_what_cannot_be_copied_is_drawn_from_itself() -> None:
    lock = threading.Lock()
    assert copied_if_possible(lock) is lock
    loader = DataLoader(TensorDataset(torch.rand(4, 2), torch.zeros(4)), 2, collate_fn=Locked())
    opened = opened_of(task(loader))
    assert opened.train is loader
    assert len(list(opened.train)) == 2


class Locked:
    def __init__(self) -> None:
        self.lock = threading.Lock()

    def __call__(self, rows: list[Any]) -> Any:
        with self.lock:
            return torch.utils.data.default_collate(rows)


def test_each_opening_draws_the_same_of_a_data_sets_own_generator() -> None:
    own = task(DataLoader(Augmented(), 4))
    first = inputs_of(opened_of(own).train)
    opened = opened_of(own)
    assert inputs_of(opened.train) == first
    assert inputs_of(opened.train) != first
    assert inputs_of(opened_of(opened).train) == first


@pytest.mark.parametrize(
    "make", [DataLoader, lambda *args, **options: ac.FirstBatches(DataLoader(*args, **options), 9)]
)
def test_worker_processes_that_loaders_keep_end_with_the_opening(make: Any) -> None:
    loader = make(Augmented(), 4, num_workers=1, persistent_workers=True)
    with task(loader, val=lambda: loader).opened() as opened:
        assert len(list(opened.train)) == 3
        assert len(multiprocessing.active_children()) == 1
        kept_by_a_cycle = [opened]
        kept_by_a_cycle.append(kept_by_a_cycle)  # type: ignore[arg-type]
    assert multiprocessing.active_children() == []


def test_a_loader_that_is_the_users_own_keeps_its_processes() -> None:
    loader = DataLoader(Augmented(), 4, num_workers=1, persistent_workers=True, collate_fn=Locked())
    with task(loader).opened() as opened:
        assert len(list(opened.train)) == 3
    assert opened.train is loader
    assert len(multiprocessing.active_children()) == 1
    loader._iterator = None


def test_a_function_is_called_once_in_a_process(counted: Counted) -> None:
    calls = []

    def make() -> Counted:
        calls.append(1)
        return counted

    own = task(make, val=make)
    assert calls == []
    opened = opened_of(own)
    assert opened.train is counted
    assert opened_of(opened).train is counted
    opened.example()
    assert len(calls) == 2
    sent = pickle.loads(cloudpickle.dumps(opened))
    assert callable(sent.train)
    assert isinstance(opened_of(sent).train, Counted)


def test_a_function_that_fails_is_named() -> None:
    def make() -> Any:
        raise OSError("no such file")

    with pytest.raises(
        TaskError, match=r"^val must make batches where it is a function but failed: OSError: no such file$"
    ):
        opened_of(task([], val=make))


def test_the_first_batches_are_drawn_once(counted: Counted) -> None:
    own = task(counted)
    example = own.example()
    for _ in range(2):
        assert own.first_batches(lambda drawn: True)[0][0][:2].equal(example)
        assert opened_of(own).example(3)[:2].equal(example)
        assert replace(own, name="other").example().equal(example)
        assert pickle.loads(cloudpickle.dumps(opened_of(own))).example().equal(example)
    assert Counted.opened == 1
    assert [len(inputs) for inputs in own.calibration(5)] == [3, 2]
    assert [len(inputs) for inputs in opened_of(own).calibration(4)] == [3, 2]
    assert [len(inputs) for inputs in own.calibration(3)] == [3]
    assert Counted.opened == 2
    assert [len(inputs) for inputs in own.calibration(100)] == [3, 2, 4]
    assert [len(inputs) for inputs in own.calibration(200)] == [3, 2, 4]
    assert Counted.opened == 3
    assert replace(own, train=Counted()).calibration(1)[0].equal(own.calibration(1)[0])
    assert Counted.opened == 4


def test_the_first_batches_leave_no_trace_and_do_not_depend_on_the_state_of_generators() -> None:
    rows = TensorDataset(torch.arange(64.0).reshape(-1, 1), torch.zeros(64))
    examples, following = [], []
    for seed in (1, 2):
        generator = torch.Generator().manual_seed(seed)
        torch.manual_seed(seed)
        own = opened_of(task(DataLoader(rows, 8, shuffle=True, generator=generator)))
        examples.append(own.example(8).flatten().tolist())
        following.append([float(torch.rand(())), *inputs_of(own.train)])
        torch.manual_seed(seed)
        other = task(DataLoader(rows, 8, shuffle=True, generator=torch.Generator().manual_seed(seed)))
        assert following[-1] == [float(torch.rand(())), *inputs_of(other.train)]
    assert examples[0] == examples[1]
    assert sorted(examples[0]) != list(range(8))
    assert following[0] != following[1]


def test_a_replaced_split_is_another_one(counted: Counted) -> None:
    own = task([(torch.zeros(2, 2), torch.zeros(2))])
    assert own.example().equal(torch.zeros(2, 2))
    ones = [(torch.ones(2, 2), torch.zeros(2))]
    assert replace(own, train=ones).example().equal(torch.ones(2, 2))
    assert replace(opened_of(own), train=ones).example().equal(torch.ones(2, 2))
    assert opened_of(opened_of(replace(own, train=ones))).train[0][0].equal(torch.ones(2, 2))


class Raising(Augmented):
    def __getitem__(self, row: int) -> Rows:
        if row == 5:
            raise ValueError("row 5 is\nnot an image")
        return super().__getitem__(row)


@pytest.mark.parametrize(
    ("workers", "where"), [(0, ""), (1, r"Caught ValueError in DataLoader worker process 0\. ")]
)
def test_what_data_raise_is_one_line(workers: int, where: str) -> None:
    loader = DataLoader(Raising(), 4, num_workers=workers)
    first = "" if workers else "row 5 is "
    with pytest.raises(
        TaskError, match=rf"^val must yield batches but failed: ValueError: {where}{first}not an image$"
    ):
        list(passed(loader, "val"))
    with pytest.raises(TaskError, match=r"^train must yield batches but failed: ValueError"):
        task(loader).calibration(12)
    assert len(task(loader).example()) == 2


def test_a_split_that_goes_on_after_its_length_is_refused() -> None:
    class Lying(Counted):
        def __iter__(self) -> Iterator[tuple[Tensor, Tensor]]:
            while True:
                yield from super().__iter__()

    with pytest.raises(TaskError, match=r"^val must end after the 3 batches that it says it has but goes on"):
        list(passed(Lying(), "val"))


def test_each_worker_process_of_a_loader_may_yield_a_whole_stream() -> None:
    class Stream(IterableDataset[Rows]):
        def __iter__(self) -> Iterator[Rows]:
            return iter([(torch.rand(2), row) for row in range(8)])

        def __len__(self) -> int:
            return 8

    assert len(list(passed(DataLoader(Stream(), 4, num_workers=2), "val"))) == 4


def test_an_endless_stream_has_an_example() -> None:
    own = task(DataLoader(Endless(), 4))
    assert own.example(8).shape == (8, 2)
    assert sum(map(len, own.calibration(30))) == 32
