"""LC on LeNet300 and MNIST: a sum of a codebook and corrections against each of its parts at equal bytes.

    python examples/benchmarks/lc_sums.py --data-root DATA [--epochs 40] [--seeds 0 1 2] [--setups NAME ...]

With `--epochs 0` directly, without any training, at 102 kB; otherwise after training, at 53 kB. Both the
loss on the training images, which LC minimises, and the test error are those of the program as loaded,
over several seeds as mean ± standard deviation. No labels are smoothed, as published. Parts have the
levels and shares by layer that served them best of those tried, not those they have in the sum. After
training the sum has the least training loss of all; its test error is below the codebook's and about
that of pruning, which generalises better here than its loss says.
"""

from __future__ import annotations

import argparse
import statistics
import time
from collections.abc import Sequence
from pathlib import Path

import torch
from lc_lenet300 import Schemes, compressed, lenet300, stored
from rich.console import Console
from rich.table import Table
from torch import Tensor

import autocompress as ac
from autocompress.measure.predictions import predict
from autocompress.methods.lc import Codebook, PruneL0

DIRECT: dict[str, Schemes] = {
    "sum": {
        "fc1": Codebook(4) + PruneL0(0.022),
        "fc2": Codebook(8) + PruneL0(0.01),
        "fc3": Codebook(16) + PruneL0(0.05),
    },
    "codebook": {"fc1": Codebook(8), "fc2": Codebook(8), "fc3": Codebook(16)},
    "pruning": {("*",): PruneL0(0.08)},
    "pruning by layer": {"fc1": PruneL0(0.068), "fc2": PruneL0(0.12), "fc3": PruneL0(0.4)},
}
TRAINED: dict[str, Schemes] = {
    "sum": {
        "fc1": Codebook(2) + PruneL0(0.006),
        "fc2": Codebook(4) + PruneL0(0.02),
        "fc3": PruneL0(0.5),  # without levels: better on the held-out images
    },
    "codebook": {"fc1": Codebook(2), "fc2": Codebook(32), "fc3": Codebook(256)},
    "pruning": {("*",): PruneL0(0.038)},
    "pruning by layer": {"fc1": PruneL0(0.032), "fc2": PruneL0(0.07), "fc3": PruneL0(0.3)},
}
console = Console(width=130)


def measured(task: ac.Task, schemes: Schemes, epochs: int, seed: int) -> tuple[float, float, float, int]:
    """Training loss, training error and test error in %, and stored bytes of the program as loaded."""
    with stored(compressed(task, schemes, epochs, seed), task) as (program, size):
        assert task.test is not None
        outputs, targets = predict(program, task.train, task)
        loss, wrong = task.loss(outputs, targets).item(), error_of(outputs, targets)
        return loss, wrong, error_of(*predict(program, task.test, task)), size


def error_of(outputs: Tensor, targets: Tensor) -> float:
    return 100 * float((outputs.argmax(1) != targets).double().mean())


def spread(values: Sequence[float], digits: int) -> str:
    if len(values) == 1:
        return f"{values[0]:.{digits}f}"
    return f"{statistics.mean(values):.{digits}f} ± {statistics.stdev(values):.{digits}f}"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--data-root", type=Path, required=True)
    parser.add_argument("--epochs", type=int, default=40)
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    parser.add_argument("--setups", nargs="+", default=list(TRAINED), choices=list(TRAINED))
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    task = lenet300(arguments.data_root).with_recipe(label_smoothing=0.0)
    table = Table(title=f"LeNet300 on MNIST, {arguments.epochs} epochs, seeds {arguments.seeds}")
    for column in ("setup", "training loss", "training error %", "test error %", "bytes"):
        table.add_column(column)
    for name in arguments.setups:
        schemes = (TRAINED if arguments.epochs else DIRECT)[name]
        rows = []
        # Nothing is drawn without training.
        for seed in arguments.seeds if arguments.epochs else [0]:
            start = time.perf_counter()
            rows.append(measured(task, schemes, arguments.epochs, seed))
            loss, wrong, error, size = rows[-1]
            minutes = (time.perf_counter() - start) / 60
            console.log(
                f"{name}, seed {seed}: loss {loss:.4f}, training error {wrong:.3f} %, "
                f"test error {error:.2f} %, {size:,} bytes, {minutes:.1f} min"
            )
        losses, wrongs, errors, sizes = zip(*rows, strict=True)
        table.add_row(name, spread(losses, 4), spread(wrongs, 3), spread(errors, 2), f"{max(sizes):,}")
    console.print(table)


if __name__ == "__main__":
    main()
