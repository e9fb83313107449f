"""How small, and how cheap, a published network can be: LeNet300 on MNIST, resnet20 on CIFAR-10.

    python examples/benchmarks/small_files.py --data-root DATA [--parts lenet300 resnet20 resnet20-macs]
        [--epochs 30] [--settings 2.1 1.4] [--lr 0.02] [--batch-size 256] [--all-rows] [--device cuda]
        [--mixed-precision]

From the published weights (2.13 % and 8.27 % error), `ac.compress` with LC's `EntropyCodebook`, whose codes
are stored near their entropy, or `Budget`, which gives layers that count more bits; resnet20 is trained
straight through and taught by the published one. `resnet20-macs` keeps 0.28 of the multiplications, with ALDS
by itself or after ALCN. Several settings are tried; each is judged on 5,000 training rows that are kept out
of the training here, though the published weights saw them, and reported on the test split. With `--all-
rows`, for settings that were chosen so, training has these rows as well: without them it forgets what they
taught the published weights. Printed are the settings, the bytes of `model.pt2` as it lies on the disk, and
of its tensors, its share of the MACs, and what a call of it takes beside one of the dense file, in time (CPU,
one thread, a batch of one) and in peak memory.
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
from autocompress.graph.costs import layer_macs
from autocompress.measure import measure_split
from autocompress.measure.artifact import peak_memory
from autocompress.measure.latency import LatencySettings, measure_latency
from autocompress.methods.base import Method
from autocompress.task.pretrained import load_weights, read_weights

HELD_OUT = 5000
# By part, what is tried: bits of a weight, or names of `MACS`.
SETTINGS = {
    "lenet300": ("0.27", "0.256"),
    "resnet20": ("2.08", "1.3"),
    "resnet20-macs": ("alds", "alcn-alds"),
}
EPOCHS = {"lenet300": 30, "resnet20": 12, "resnet20-macs": 12}
# Methods that leave 0.28 of resnet20's multiplications, and the share of the epochs that train with them.
MACS: dict[str, tuple[list[Method], float]] = {
    "alds": ([ac.Alds(keep=0.28, measure="data")], 0.1),
    "alds-cascade": ([ac.Alds(keep=0.28, measure="data", lambda_rank=1e-3, cascade=4)], 0.4),
    "alcn-alds": (
        [ac.Alcn(initial_ratio=0.75, cost="macs", budget=0.55), ac.Alds(keep=0.5, measure="data")],
        0.4,
    ),
    "alcn": ([ac.Alcn(initial_ratio=0.5, cost="macs", budget=0.28)], 0.4),
}
console = Console(width=170)


class Shifted:
    """Batches of images as rows of pixels; in training some are shifted by up to a pixel."""

    def __init__(self, x: Tensor, y: Tensor, mean: Tensor, size: int, shift: float = 0.0) -> None:
        self.x, self.y, self.mean, self.batch_size, self.shift = x, y, mean, size, shift
        self.generator = torch.Generator()

    def __len__(self) -> int:
        return -(-len(self.x) // self.batch_size)

    def __iter__(self) -> Iterator[tuple[Tensor, Tensor]]:
        rows = len(self.x)
        order = torch.randperm(rows, generator=self.generator) if self.shift else torch.arange(rows)
        for part in order.split(self.batch_size):
            x = self.x[part]
            if float(torch.rand((), generator=self.generator)) < self.shift:
                steps = torch.randint(-1, 2, (2,), generator=self.generator).tolist()
                x = torch.roll(x.reshape(-1, 28, 28), steps, (1, 2)).reshape(len(part), 784)
            yield x - self.mean, self.y[part]


def lenet300(root: Path, held_out: int) -> ac.Task:
    """LeNet300 and its weights; of MNIST the last training rows judge, and the others may be shifted."""
    (train, test), (labels, test_labels) = mnist_rows(root)
    mean, kept = train.mean(0), len(train) - held_out
    return replace(
        published_lenet300(root),
        train=Shifted(train[:kept], labels[:kept], mean, 256, shift=0.5),
        val=Shifted(train[kept:], labels[kept:], mean, 1000) if held_out else None,
        test=Shifted(test, test_labels, mean, 1000),
    )


def resnet20(root: Path, held_out: int) -> ac.Task:
    """The published resnet20 and CIFAR-10, whose last training rows judge."""
    task = load_task("cifar10", model="resnet20", root=root)
    weights = read_weights(root / "pretrained" / "resnet20-12fca82f.th")
    train, rows = task.train, np.arange(len(task.train.x))
    kept = len(rows) - held_out
    return replace(
        task,
        train=train.subset(rows[:kept]),
        val=train.subset(rows[kept:], shuffle=False, batch_size=500) if held_out else None,
        weights=weights,
        teacher=reference(replace(task, weights=weights)),
    ).with_recipe(optimizer="sgd", lr=0.01, weight_decay=1e-4, label_smoothing=0.0)


def methods(part: str, setting: str) -> tuple[list[Method], float]:
    """What a part is compressed by, and for which share of its epochs.

    Layers of LeNet300 share the codebook, so that the bits go where weights are large; those of resnet20,
    which batch norms rescale, have one each.
    """
    if part == "resnet20-macs":
        return MACS[setting]
    bits = float(setting)
    if part == "lenet300":
        schemes = {("*",): ac.EntropyCodebook(bits=bits, k=9)}
        return [ac.Lc(schemes=schemes, mu0=2e-4, growth=1.2, steps=40)], 0.8
    return [ac.Lc(schemes={"*": ac.Budget(bits=bits)}, straight_through=True, steps=40)], 0.8


TASKS = {"lenet300": lenet300, "resnet20": resnet20, "resnet20-macs": resnet20}


@dataclass(frozen=True)
class Stored:
    """A file and what it was measured to be; errors in %, none where no rows were held out."""

    path: Path
    val_error: float | None
    test_error: float
    macs: int

    @property
    def size(self) -> int:
        return self.path.stat().st_size


def stored(model: nn.Module, task: ac.Task, path: Path) -> Stored:
    """The model's file, judged as loaded from it."""
    model = model.to("cpu").eval()
    export_program(model, task.example(), path)
    program = load_program(path)
    with task.opened() as opened:
        val, test = (
            None
            if split is None
            else 100 * (1 - measure_split(program, split, opened, resampled=False).values["accuracy"])
            for split in (opened.val, opened.test)
        )
    assert test is not None
    return Stored(path, val, test, layer_macs(model, task.example())[""])


def reference(task: ac.Task) -> nn.Module:
    model = task.model()
    assert task.weights is not None
    load_weights(model, task.weights)
    return model


def shown(error: float | None) -> str:
    return "-" if error is None else f"{error:.2f}"


def row(name: str, smaller: Stored, dense: Stored, example: Tensor, minutes: float) -> list[str]:
    timing = measure_latency(smaller.path, dense.path, example, LatencySettings(pairs=10))
    memory, dense_memory = (peak_memory(file.path, example[:1]) for file in (smaller, dense))
    return [
        name,
        shown(smaller.val_error),
        f"{smaller.test_error:.2f}",
        f"{smaller.size:,}",
        f"{weight_bytes(smaller.path):,}",
        f"{dense.size / smaller.size:.1f}",
        f"{smaller.macs / dense.macs:.3f}",
        f"{timing.ratio:.2f}",
        f"{memory / 1e6:.1f} of {dense_memory / 1e6:.1f} MB",
        f"{minutes:.1f}",
    ]


def tried(part: str, task: ac.Task, setting: str, dense: Stored, path: Path, device: str) -> list[str]:
    """A row of the table: one setting, trained, stored and measured."""
    stages, share = methods(part, setting)
    configs = [stage.config for stage in stages]
    console.log(f"{part}: {configs}, {share} of the epochs, {task.recipe}")
    start = time.perf_counter()
    done = ac.compress(reference(task).to(device), task, stages, compress_share=share)
    minutes = (time.perf_counter() - start) / 60
    smaller = stored(done.model, task, path)
    console.log(
        f"{setting}: {smaller.test_error:.2f} % on test, {shown(smaller.val_error)} on validation, "
        f"{smaller.size:,} bytes, {weight_bytes(path):,} of tensors, {smaller.macs / dense.macs:.3f} of the "
        f"MACs, {minutes:.1f} minutes"
    )
    return row(setting, smaller, dense, task.example(), minutes)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--data-root", type=Path, required=True)
    parser.add_argument("--parts", nargs="*", default=list(TASKS), choices=list(TASKS))
    parser.add_argument("--epochs", type=int)
    parser.add_argument("--settings", nargs="*", help="in place of those that are tried")
    parser.add_argument("--lr", type=float, help="in place of the part's")
    parser.add_argument("--batch-size", type=int, help="in place of the part's; of resnet20 alone")
    parser.add_argument("--all-rows", action="store_true", help="train on the held-out ones too")
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--mixed-precision", action="store_true", help="faster on GPUs and on CPUs with AMX")
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    for part in arguments.parts:
        task = TASKS[part](arguments.data_root, 0 if arguments.all_rows else HELD_OUT)
        epochs = arguments.epochs or EPOCHS[part]
        task = task.with_recipe(epochs=epochs, mixed_precision=arguments.mixed_precision)
        if arguments.lr:
            task = task.with_recipe(lr=arguments.lr)
        if arguments.batch_size:
            task = replace(task, train=replace(task.train, batch_size=arguments.batch_size))
        recipe, size = task.recipe, task.train.batch_size
        title = f"{part}, {recipe.epochs} epochs, batches of {size}, rate {recipe.lr}, {arguments.device}"
        title += ", trained on all rows" if arguments.all_rows else ""
        table = Table(title=title)
        for column in ("settings", "val error %", "test error %", "file bytes", "of tensors", "× smaller",
                       "MACs", "time of a call", "peak memory", "minutes"):  # fmt: skip
            table.add_column(column)
        with tempfile.TemporaryDirectory() as scratch:
            dense = stored(reference(task), task, Path(scratch) / "dense.pt2")
            table.add_row(*row("dense", dense, dense, task.example(), 0.0))
            for setting in arguments.settings or SETTINGS[part]:
                file = Path(scratch) / f"{setting}.pt2"
                table.add_row(*tried(part, task, setting, dense, file, arguments.device))
        console.print(table)


if __name__ == "__main__":
    main()
