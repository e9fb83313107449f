"""LC on a convolutional network: resnet20 on CIFAR-10 at 2 bits a weight, and with 10 % of its weights.

    python examples/benchmarks/lc_resnet20.py --data-root DATA [--epochs 2] [--finetune 0]

From the published weights (91.73 %): test accuracy of direct compression, after the L and C steps
of so many epochs, and after fine-tuning levels and values as they are stored; bytes of
`model.pt2`, which is what runs.
"""

from __future__ import annotations

import argparse
import tempfile
import time
from pathlib import Path

import torch
from published import reference, resnet20
from rich.console import Console
from rich.table import Table
from torch import nn

import autocompress as ac
from autocompress.checkpoint.store import Writer
from autocompress.measure import measure_split
from autocompress.methods.lc import Codebook, Lc, PruneL0, Scheme
from autocompress.training.loop import Trainer, reestimate_batch_norm
from autocompress.trial import compress_stage

SETUPS: dict[str, dict[str | tuple[str, ...], Scheme]] = {
    "2 bits a weight, a codebook a layer": {"*": Codebook(4)},
    "10 % of the weights, over all layers": {("*",): PruneL0(0.1)},
}
console = Console()


def judged(model: nn.Module, task: ac.Task, folder: Path) -> tuple[float, int]:
    """Test accuracy of the loaded program and bytes of its file."""
    writer = Writer(folder)
    try:
        stored = writer.write(model.eval(), task.example(), "pt2")
        assert task.test is not None
        size = stored.artifact_file("pt2").stat().st_size
        return measure_split(stored.load(), task.test, task).values["accuracy"], size
    finally:
        writer.discard()


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--data-root", required=True)
    parser.add_argument("--epochs", type=int, default=2)
    parser.add_argument("--finetune", type=int, default=0)
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    task = resnet20(arguments.data_root)
    table = Table(title=f"resnet20 on CIFAR-10, {arguments.epochs} epochs of L steps; reference 91.73 %")
    for column in ("weights", "direct", "after LC", "fine-tuned", "bytes", "of dense", "minutes"):
        table.add_column(column)
    with tempfile.TemporaryDirectory() as scratch:
        folder = Path(scratch) / "stored"
        dense = judged(reference(task), task, folder)[1]
        for name, schemes in SETUPS.items():
            start = time.perf_counter()
            method = Lc(schemes=schemes)
            direct = method.start(reference(task), task).finish().model
            reestimate_batch_norm(direct, task, 50)
            cells = [name, f"{judged(direct, task, folder)[0]:.2%}"]
            trainer = Trainer(task, arguments.epochs + arguments.finetune)
            model = compress_stage(reference(task), task, method, trainer, arguments.epochs).model
            accuracy, size = judged(model, task, folder)
            cells.append(f"{accuracy:.2%}")
            trainer.fit(model, arguments.finetune)
            cells.append(f"{judged(model, task, folder)[0]:.2%}" if arguments.finetune else "")
            minutes = (time.perf_counter() - start) / 60
            table.add_row(*cells, f"{size:,}", f"{size / dense:.3f}", f"{minutes:.1f}")
            console.log(f"{name}: {accuracy:.2%}, {size:,} bytes")
    console.print(table)


if __name__ == "__main__":
    main()
