"""A search on data that were never opened before, and are opened in many processes."""

from __future__ import annotations

import os
import time
from collections import Counter
from collections.abc import Iterator
from functools import partial
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import Tensor, nn
from torch.utils.data import DataLoader, Dataset, IterableDataset

import autocompress as ac
from autocompress.engine.replay import replay

pytestmark = pytest.mark.usefixtures("shared_ray")


class Endless(IterableDataset[tuple[Tensor, int]]):
    def __iter__(self) -> Iterator[tuple[Tensor, int]]:
        while True:
            inputs = torch.randn(6)
            yield inputs, int(inputs[0] > 0)


class Mapped(Dataset[tuple[Tensor, int]]):
    """Rows of a file that is open from the beginning, so that they cannot be sent."""

    def __init__(self, path: Path) -> None:
        self.file = path.open("rb")
        self.rows = np.load(self.file)

    def __len__(self) -> int:
        return len(self.rows)

    def __getitem__(self, row: int) -> tuple[Tensor, int]:
        return torch.from_numpy(self.rows[row]), int(self.rows[row, 0] > 0)


def note(path: Path, *_: object) -> None:
    with path.open("a") as log:
        log.write(f"{os.getpid()}\n")


def test_a_search_on_a_stream_and_on_what_functions_open(tmp_path: Path) -> None:
    made, workers = tmp_path / "made", tmp_path / "workers"
    np.save(tmp_path / "rows.npy", np.random.default_rng(0).standard_normal((48, 6)).astype(np.float32))

    def make() -> DataLoader[tuple[Tensor, int]]:
        note(made)
        return DataLoader(Mapped(tmp_path / "rows.npy"), 16)

    train = DataLoader(
        Endless(), 16, num_workers=1, persistent_workers=True, worker_init_fn=partial(note, workers)
    )
    next(iter(train))  # as users do
    task = ac.Task(
        lambda: nn.Sequential(nn.Linear(6, 16), nn.ReLU(), nn.Linear(16, 2)),
        train,
        val=make,
        recipe=ac.Recipe(epochs=1, steps_per_epoch=4),
    )
    out = tmp_path / "run"
    ac.search(task, trials=1, workers=1, methods=["alcn"], constraints=[], out=out)
    assert set(Counter(made.read_text().split()).values()) == {1}
    metrics, again, _ = replay(out, 1, task)
    assert again.metrics == metrics
    own, *others = workers.read_text().split()
    while any(Path(f"/proc/{process}").exists() for process in others):
        time.sleep(0.1)
    assert Path(f"/proc/{own}").exists()
