"""How often the 95 % intervals that a search reports hold the value on the test split.

    python examples/benchmarks/interval_coverage.py [--pairs 20] [--trials 6]

Each pair is a seed of the data, by which the digits are split anew into train, validation (144 rows) and test
(360 rows), and a seed of the search. The reference was not chosen by its validation accuracy. The points of
the front were, which favours those that were lucky on these rows. The test split has an error of its own: an
interval that is right for the accuracy on all digits holds that on 360 of them less often than in 95 % of
cases.
"""

from __future__ import annotations

import argparse
import tempfile
from collections import Counter
from dataclasses import replace
from pathlib import Path

import numpy as np
from rich.console import Console
from rich.table import Table

import autocompress as ac
from autocompress.data import TensorBatches, load_task

VALIDATION, TEST = 144, 360


def split_anew(task: ac.Task, seed: int) -> ac.Task:
    """The task with its rows dealt out to train, validation and test by a seed."""
    train, test = task.train, task.test
    assert isinstance(train, TensorBatches)
    assert isinstance(test, TensorBatches)
    together = replace(
        train, x=np.concatenate([train.x, test.x]), targets=np.concatenate([train.targets, test.targets])
    )
    order = np.random.default_rng(seed).permutation(len(together.x))
    val, test_rows, rest = np.split(order, [VALIDATION, VALIDATION + TEST])
    return replace(
        task,
        train=together.subset(rest),
        val=together.subset(val, shuffle=False),
        test=together.subset(test_rows, shuffle=False),
    )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--pairs", type=int, default=20)
    parser.add_argument("--trials", type=int, default=6)
    arguments = parser.parse_args()
    held: Counter[str] = Counter()
    count: Counter[str] = Counter()
    for seed in range(arguments.pairs):
        with tempfile.TemporaryDirectory() as scratch:
            result = ac.search(
                split_anew(load_task("digits"), seed),
                trials=arguments.trials,
                seed=seed,
                constraints=[],
                out=Path(scratch) / "run",
                progress=ac.Progress(),
            )
        compressed = [point for point in result.front if point.trial != 0]
        judged = {"reference": [result.reference], "front": compressed, "knee": [result.pick("knee")]}
        for kind, points in judged.items():
            for point in points:
                low, high = point.interval("accuracy")
                held[kind] += low <= point.test_metrics["accuracy"] <= high
                count[kind] += 1
        print(
            f"pair {seed + 1} of {arguments.pairs}: " + ", ".join(f"{k} {held[k]}/{count[k]}" for k in count)
        )
    table = Table("points", "intervals", "hold the test value", "share")
    for kind in count:
        table.add_row(kind, str(count[kind]), str(held[kind]), f"{held[kind] / count[kind]:.1%}")
    Console().print(table)


if __name__ == "__main__":
    main()
