"""Models and tasks that many tests share, and one finished search."""

from __future__ import annotations

import os
import signal
from collections.abc import Iterator
from pathlib import Path

# Several processes test at once, and start others: more threads than one only wait for each other, and so
# does a second worker where a test does not ask for it (joblib counts CPUs by the latter).
os.environ.setdefault("OMP_NUM_THREADS", "1")
os.environ.setdefault("LOKY_MAX_CPU_COUNT", "1")

import numpy as np
import pytest
import torch
from torch import Tensor, nn

import autocompress as ac
from autocompress.data import TensorBatches, load_task, with_validation
from autocompress.distribute import Cluster, connection
from autocompress.distribute.execute import start_here
from autocompress.task import InputSpec


def pytest_configure() -> None:
    """Hear of Ctrl-C and of a closed terminal, which tests send: what shells start in the background
    ignores the first, and under nohup the second."""
    signal.signal(signal.SIGINT, signal.default_int_handler)
    if hasattr(signal, "SIGHUP"):
        signal.signal(signal.SIGHUP, signal.SIG_DFL)


class Residual(nn.Module):
    """Two convolutions around an addition, a depthwise one, a concat and a flatten."""

    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Conv2d(3, 8, 3, padding=1)
        self.norm = nn.BatchNorm2d(8)
        self.branch = nn.Conv2d(8, 8, 3, padding=1, bias=False)
        self.depthwise = nn.Conv2d(8, 8, 3, padding=1, groups=8)
        self.side = nn.Conv2d(8, 6, 1)
        self.head = nn.Linear(14 * 16, 5)

    def forward(self, x: Tensor) -> Tensor:
        x = torch.relu(self.norm(self.stem(x)))
        x = x + self.branch(x)
        y = torch.cat([self.depthwise(x), torch.tanh(self.side(x))], dim=1)
        return self.head(nn.functional.max_pool2d(y, 2).flatten(1))


@pytest.fixture
def residual() -> nn.Module:
    torch.manual_seed(0)
    return Residual().eval()


@pytest.fixture
def images() -> Tensor:
    """A batch of small images, `(4, 3, 8, 8)`."""
    return torch.randn(4, 3, 8, 8, generator=torch.Generator().manual_seed(1))


def image_batches(count: int = 96, classes: int = 5, shuffle: bool = True) -> TensorBatches:
    rng = np.random.default_rng(0)
    x = rng.integers(0, 255, (count, 3, 8, 8), dtype=np.uint8)
    spec = InputSpec((3, 8, 8), "float32", 1 / 255, (0.5, 0.5, 0.5), (0.3, 0.3, 0.3))
    return TensorBatches(x, rng.integers(0, classes, count), spec, 32, shuffle)


@pytest.fixture
def residual_task() -> ac.Task:
    """A task on random images for `Residual`."""
    batches = image_batches()
    return ac.Task(
        model=Residual,
        train=batches,
        val=image_batches(shuffle=False),
        recipe=ac.Recipe(epochs=2),
        input=batches.spec,
    )


@pytest.fixture(scope="session")
def digits() -> ac.Task:
    return with_validation(load_task("digits"))[0]


@pytest.fixture(scope="session")
def shared_ray() -> Iterator[None]:
    """A Ray that all searches of this process use; each would start and end its own in three seconds."""
    with connection(None):
        start_here(Cluster(workers=2))
        yield


@pytest.fixture(scope="session")
def finished(tmp_path_factory: pytest.TempPathFactory, shared_ray: None) -> ac.SearchResult:
    """A finished search on digits with one worker."""
    out: Path = tmp_path_factory.mktemp("runs") / "digits"
    return ac.search("digits", trials=4, epochs=4, workers=1, out=out)
