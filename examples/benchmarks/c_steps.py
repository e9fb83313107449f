"""What share of a training LC's C steps take: every scheme and sums of them, on three models.

    python examples/benchmarks/c_steps.py --data-root DATA [--models NAME ...] [--schemes NAME ...]

CPU time of all that LC does between optimiser steps (the first C step, those that follow, the log of each
epoch) relative to that of the training, without any fine-tuning after it, which would lower the share. The
bar is a fifth. Trainings are shorter than a trial's, in which the first C step counts for less. Layers are
compressed each by itself, or jointly ("joint") where the scheme allows it.
"""

from __future__ import annotations

import argparse
import itertools
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from unittest.mock import patch

import torch
from lc_lenet300 import lenet300
from published import resnet20
from rich.console import Console
from rich.table import Table

import autocompress as ac
from autocompress.data import load_task, with_validation
from autocompress.methods.lc import (
    Binary,
    Codebook,
    FixedPoint,
    Lc,
    LowRank,
    PenaltyL0,
    PenaltyL1,
    PruneL0,
    PruneL1,
    RankSelection,
    ScaledBinary,
    Scheme,
    Ternary,
)
from autocompress.task.pretrained import load_weights
from autocompress.training.loop import Trainer
from autocompress.trial import load_state, seed_everything

BAR = 0.2
SCHEMES: dict[str, Scheme] = {
    "codebook, k = 2": Codebook(2),
    "codebook, k = 16": Codebook(16),
    "codebook, k = 256": Codebook(256),
    "binary": Binary(),
    "scaled binary": ScaledBinary(),
    "ternary": Ternary(),
    "fixed point, 8 bits": FixedPoint(8),
    "pruning to 5 %": PruneL0(0.05),
    "pruning by the sum": PruneL1(0.1),
    "penalty on the number": PenaltyL0(1e-6),
    "penalty on the sum": PenaltyL1(1e-6),
    "low rank": LowRank(5),
    "rank selection": RankSelection(1e-6),
    "codebook + pruning": Codebook(2) + PruneL0(0.01),
    "k = 64 + pruning": Codebook(64) + PruneL0(0.05),
    "ternary + pruning by the sum": Ternary() + PruneL1(0.05),
    "low rank + pruning": LowRank(5) + PruneL0(0.02),
    "rank selection + pruning": RankSelection(1e-6) + PruneL0(0.02),
    "low rank + codebook + pruning": LowRank(5) + Codebook(4) + PruneL0(0.02),
}
ALONE = ("low rank", "rank selection")  # what these names begin is of one layer
console = Console(width=110)


@dataclass(frozen=True)
class Training:
    """A task and how LC is tried on it.

    Args:
        task: from a folder of data.
        steps: optimiser steps that LC takes.
        pretrain: epochs before it, where the task has no trained weights.
        batch: rows of a batch that are used, all by default.
    """

    task: Callable[[Path], ac.Task]
    steps: int
    pretrain: int = 0
    batch: int | None = None


def digits(_: Path) -> ac.Task:
    return with_validation(load_task("digits"))[0]


TRAININGS = {
    "digits": Training(digits, 132, pretrain=5),  # half of the default trial's
    "LeNet300": Training(lenet300, 400),  # not two of the 80 epochs that lc_lenet300.py takes
    "resnet20": Training(lambda root: resnet20(str(root)), 40, batch=32),  # a fortieth of an epoch's work
}


def share(task: ac.Task, state: dict[str, torch.Tensor], scheme: Scheme, joint: bool) -> float:
    """CPU time of LC's own work relative to that of the training, in [0, 1]."""
    seed_everything(0, task)
    model = task.model()
    load_state(model, state)
    trainer = Trainer(task, 1)
    session = Lc(schemes={("*",) if joint else "*": scheme}).start(model, task)
    trainer.clock.add_method(session.start_seconds)
    trainer.fit(model, 1, session)
    return trainer.clock.method_seconds / trainer.clock.seconds


def measured(models: Sequence[str], schemes: Sequence[str], root: Path) -> Table:
    """A table of shares, after a training with every scheme of every model."""
    rows: dict[str, list[float]] = {}
    for name in models:
        training = TRAININGS[name]
        task = training.task(root)
        seed_everything(0, task)
        model = task.model()
        if task.weights is not None:
            load_weights(model, task.weights)
        Trainer(task, max(training.pretrain, 1)).fit(model, training.pretrain)
        batches = itertools.chain.from_iterable(itertools.repeat(task.train))
        steps = [
            (x[: training.batch], y[: training.batch]) for x, y in itertools.islice(batches, training.steps)
        ]
        task = replace(task, train=steps)
        share(task, model.state_dict(), Codebook(2), joint=True)  # what is slow in a process's first training
        for scheme in schemes:
            for joint in (False, True):
                if joint and scheme.startswith(ALONE):
                    continue
                row = f"{scheme}, joint" if joint else scheme
                shares = rows.setdefault(row, [])
                shares.append(share(task, model.state_dict(), SCHEMES[scheme], joint))
                console.log(f"{name}, {row}: {shares[-1]:.3f}")
    table = Table("scheme", *models, title="C steps, of a training's CPU time")
    for row, shares in rows.items():
        table.add_row(row, *(f"{s:.3f}{'' if s <= BAR else ' above the bar'}" for s in shares))
    return table


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--data-root", type=Path, required=True)
    parser.add_argument("--models", nargs="+", default=list(TRAININGS), choices=list(TRAININGS))
    parser.add_argument("--schemes", nargs="+", default=list(SCHEMES), choices=list(SCHEMES))
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    # Clocks count CPU time, in which what else the machine does is not seen.
    with patch("time.perf_counter", time.process_time):
        console.print(measured(arguments.models, arguments.schemes, arguments.data_root))


if __name__ == "__main__":
    main()
