"""How small the file of a published network can be: LeNet300 on MNIST, resnet20 on CIFAR-10.

    python examples/benchmarks/small_files.py --data-root DATA [--parts lenet300 resnet20] [--epochs 30]

From the published weights (2.13 % and 8.27 % error), `ac.compress` with LC's `EntropyCodebook`, whose codes
are stored near their entropy, or `Budget`, which gives layers that count more bits; resnet20 is trained
straight through and taught by the published one. Several numbers of bits are tried; each is judged on 5,000
training rows that are kept out of the training here, though the published weights saw them, and reported on
the test split.
Printed are the settings, the bytes of `model.pt2` as it lies on the disk, and of its tensors, and what a call
of it takes beside one of the dense file, in time (CPU, one thread, a batch of one) and in peak memory.
"""

from __future__ import annotations

import argparse
import tempfile
import time
from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import torch
from lc_lenet300 import lenet300 as published_lenet300
from lc_lenet300 import mnist_rows
from rich.console import Console
from rich.table import Table
from torch import Tensor, nn

import autocompress as ac
from autocompress.checkpoint import export_program, load_program
from autocompress.checkpoint.program import weight_bytes
from autocompress.data import load_task
from autocompress.measure import measure_split
from autocompress.measure.artifact import peak_memory
from autocompress.measure.latency import LatencySettings, measure_latency
from autocompress.task.pretrained import load_weights, read_weights

HELD_OUT = 5000
# By part, the bits of a weight that are tried.
BITS = {"lenet300": (0.27, 0.256), "resnet20": (2.08, 1.3)}
EPOCHS = {"lenet300": 30, "resnet20": 12}
console = Console(width=150)


class Shifted:
    """Batches of images as rows of pixels; in training some are shifted by up to a pixel."""

    def __init__(self, x: Tensor, y: Tensor, mean: Tensor, size: int, shift: float = 0.0) -> None:
        self.x, self.y, self.mean, self.size, self.shift = x, y, mean, size, shift
        self.generator = torch.Generator()

    def __len__(self) -> int:
        return -(-len(self.x) // self.size)

    def __iter__(self) -> Iterator[tuple[Tensor, Tensor]]:
        rows = len(self.x)
        order = torch.randperm(rows, generator=self.generator) if self.shift else torch.arange(rows)
        for part in order.split(self.size):
            x = self.x[part]
            if float(torch.rand((), generator=self.generator)) < self.shift:
                steps = torch.randint(-1, 2, (2,), generator=self.generator).tolist()
                x = torch.roll(x.reshape(-1, 28, 28), steps, (1, 2)).reshape(len(part), 784)
            yield x - self.mean, self.y[part]


def lenet300(root: Path) -> ac.Task:
    """LeNet300 and its weights; of MNIST the last training rows judge, and the others may be shifted."""
    (train, test), (labels, test_labels) = mnist_rows(root)
    mean = train.mean(0)
    return replace(
        published_lenet300(root),
        train=Shifted(train[:-HELD_OUT], labels[:-HELD_OUT], mean, 256, shift=0.5),
        val=Shifted(train[-HELD_OUT:], labels[-HELD_OUT:], mean, 1000),
        test=Shifted(test, test_labels, mean, 1000),
    )


def resnet20(root: Path) -> ac.Task:
    """The published resnet20 and CIFAR-10."""
    task = load_task("cifar10", model="resnet20", root=root)
    weights = read_weights(root / "pretrained" / "resnet20-12fca82f.th")
    train = task.train
    kept = np.arange(len(train.x) - HELD_OUT)
    held = np.arange(len(train.x) - HELD_OUT, len(train.x))
    return replace(
        task,
        train=train.subset(kept),
        val=train.subset(held, shuffle=False, batch_size=500),
        weights=weights,
        teacher=reference(replace(task, weights=weights)),
    ).with_recipe(optimizer="sgd", lr=0.01, weight_decay=1e-4, label_smoothing=0.0, mixed_precision=True)


def method(part: str, bits: float) -> ac.Lc:
    """Layers of LeNet300 share the codebook, so that the bits go where weights are large; those of resnet20,
    which batch norms rescale, have one each."""
    if part == "lenet300":
        return ac.Lc(schemes={("*",): ac.EntropyCodebook(bits=bits, k=9)}, mu0=2e-4, growth=1.2, steps=40)
    return ac.Lc(schemes={"*": ac.Budget(bits=bits)}, straight_through=True, steps=40)


TASKS = {"lenet300": lenet300, "resnet20": resnet20}


@dataclass(frozen=True)
class Stored:
    """A file and what it was found to be."""

    path: Path
    val_error: float
    test_error: float


def stored(model: nn.Module, task: ac.Task, path: Path) -> Stored:
    """The model's file, judged as loaded from it; errors in %."""
    export_program(model.eval(), task.example(), path)
    program = load_program(path)
    with task.opened() as opened:
        errors = [
            100 * (1 - measure_split(program, split, opened, resampled=False).values["accuracy"])
            for split in (opened.val, opened.test)
            if split is not None
        ]
    return Stored(path, *errors)


def reference(task: ac.Task) -> nn.Module:
    model = task.model()
    assert task.weights is not None
    load_weights(model, task.weights)
    return model


def row(name: str, smaller: Stored, dense: Stored, example: Tensor, minutes: float) -> list[str]:
    timing = measure_latency(smaller.path, dense.path, example, LatencySettings(pairs=10))
    memory, dense_memory = (peak_memory(file.path, example[:1]) for file in (smaller, dense))
    size = smaller.path.stat().st_size
    return [
        name,
        f"{smaller.val_error:.2f}",
        f"{smaller.test_error:.2f}",
        f"{size:,}",
        f"{weight_bytes(smaller.path):,}",
        f"{dense.path.stat().st_size / size:.1f}",
        f"{timing.ratio:.2f}",
        f"{memory / 1e6:.1f} of {dense_memory / 1e6:.1f} MB",
        f"{minutes:.1f}",
    ]


def tried(part: str, task: ac.Task, bits: float, dense: Stored, path: Path) -> list[str]:
    """A row of the table: one setting, trained, stored and measured."""
    lc = method(part, bits)
    console.log(f"{part}: {lc.config}, {task.recipe}")
    start = time.process_time()
    done = ac.compress(reference(task), task, lc, compress_share=0.8)
    minutes = (time.process_time() - start) / 60
    smaller = stored(done.model, task, path)
    console.log(
        f"{bits} bits: {smaller.test_error:.2f} % on test, {smaller.val_error:.2f} on validation, "
        f"{path.stat().st_size:,} bytes, {weight_bytes(path):,} of tensors, {minutes:.1f} CPU minutes"
    )
    return row(f"{bits} bits", smaller, dense, task.example(), minutes)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--data-root", type=Path, required=True)
    parser.add_argument("--parts", nargs="*", default=list(TASKS), choices=list(TASKS))
    parser.add_argument("--epochs", type=int)
    parser.add_argument("--bits", type=float, nargs="*", help="a weight, in place of those that are tried")
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    for part in arguments.parts:
        task = TASKS[part](arguments.data_root)
        task = task.with_recipe(epochs=arguments.epochs or EPOCHS[part])
        table = Table(title=f"{part}, {task.recipe.epochs} epochs")
        for column in ("settings", "val error %", "test error %", "file bytes", "of tensors", "× smaller",
                       "time of a call", "peak memory", "CPU minutes"):  # fmt: skip
            table.add_column(column)
        with tempfile.TemporaryDirectory() as scratch:
            dense = stored(reference(task), task, Path(scratch) / "dense.pt2")
            table.add_row(*row("dense", dense, dense, task.example(), 0.0))
            for bits in arguments.bits or BITS[part]:
                table.add_row(*tried(part, task, bits, dense, Path(scratch) / f"{bits}.pt2"))
        console.print(table)


if __name__ == "__main__":
    main()
