"""ALCN against the original package `alcnet` 0.1.1 on Fashion-MNIST, [784, 256, 128, 64, 10].

    python examples/benchmarks/alcn_vs_original.py --data-root DATA [--epochs 10] [--seeds 1]

Every model trains from scratch for the same number of epochs on the same batches, one after the
other in one process. CPU seconds hold only as ratios within the table. The bar: at ρ ≈ 0.2 ours has
at most 0.3 of the MACs and is within 1 point of the plain MLP.
"""

from __future__ import annotations

import argparse
import contextlib
import io
import itertools
import time
from collections.abc import Iterator
from dataclasses import dataclass

import torch
from alcnet import ALCNet, ALCNetTrainer, CompressionAnalyzer
from rich.console import Console
from rich.table import Table
from torch import Tensor, nn

import autocompress as ac
from autocompress.data import load_task, with_validation
from autocompress.graph.costs import count_params, layer_macs
from autocompress.measure.predictions import predict
from autocompress.methods.alcn import Alcn, Config
from autocompress.training.loop import Trainer
from autocompress.trial import seed_everything

SIZES = [784, 256, 128, 64, 10]
RATIO = 0.2
# ρ starts at 0.2 and is learned; λ_sparse weighs layers by their parameters.
LEARNED = Config(initial_ratio=RATIO, lambda_sparse=0.04, cost="params")


@dataclass
class Row:
    name: str
    accuracy: float
    params: int
    macs: int
    seconds: float


class Flat:
    """The task's batches, flattened as the original package wants them."""

    def __init__(self, batches: object) -> None:
        self.batches = batches

    def __iter__(self) -> Iterator[tuple[Tensor, Tensor]]:
        return ((x.flatten(1), y) for x, y in self.batches)  # type: ignore[attr-defined]

    def __len__(self) -> int:
        return len(self.batches)  # type: ignore[arg-type]


class Logits(nn.Module):
    """The original's network with its logits alone as output, optionally cut to some units."""

    def __init__(self, model: ALCNet, keep: list[Tensor] | None = None) -> None:
        super().__init__()
        self.model, self.keep = model, keep

    def forward(self, x: Tensor) -> Tensor:
        a = x.flatten(1)
        for position, layer in enumerate(self.model.layers[:-1]):
            a = layer(a)[0]
            if self.keep is not None:
                a = a * self.keep[position]
        return self.model.layers[-1](a)


def accuracy(model: nn.Module, task: ac.Task) -> float:
    outputs, targets = predict(model.eval(), task.test, task)
    return (outputs.argmax(1) == targets).double().mean().item()


def plain(task: ac.Task, seed: int) -> Row:
    seed_everything(seed)
    model = task.model()
    start = time.process_time()
    Trainer(task, task.recipe.epochs).fit(model, task.recipe.epochs)
    seconds = time.process_time() - start
    return _row("plain MLP", model, task, seconds)


def original(task: ac.Task, seed: int) -> list[Row]:
    """The original as it is, and cut afterwards to the ρ·n units of highest survival."""
    seed_everything(seed)
    model = ALCNet(SIZES, initial_ratios=[RATIO] * 3)
    optimizer = torch.optim.Adam(model.parameters(), lr=task.recipe.lr)
    trainer = ALCNetTrainer(model, optimizer)
    start = time.process_time()
    with contextlib.redirect_stdout(io.StringIO()), contextlib.redirect_stderr(io.StringIO()):
        for _ in range(task.recipe.epochs):
            trainer.train_epoch(Flat(task.train))
    seconds = time.process_time() - start
    survival = CompressionAnalyzer(model).compute_feature_survival(Flat(task.val))
    learned = [layer.get_compression_ratio() for layer in model.layers[:-1]]
    rows = [_row("original, as it is", Logits(model), task, seconds)]
    for name, ratios in (
        (f"original, cut to its ρ ({sum(learned) / 3:.2f})", learned),
        (f"original, cut to {RATIO}", [RATIO] * 3),
    ):
        masks = []
        for scores, ratio in zip(survival.values(), ratios, strict=True):
            top = torch.from_numpy(scores).topk(round(ratio * len(scores))).indices
            masks.append(torch.zeros(len(scores)).index_fill_(0, top, 1.0))
        widths = [784, *(int(mask.sum()) for mask in masks), 10]
        row = _row(name, Logits(model, masks), task, seconds)
        row.macs = sum(a * b for a, b in itertools.pairwise(widths))
        rows.append(row)
    return rows


def ours(task: ac.Task, seed: int, name: str, config: Config) -> Row:
    seed_everything(seed)
    start = time.process_time()
    done = ac.compress(task.model(), task, Alcn(config), seed=seed)
    seconds = time.process_time() - start
    last = [e for e in done.history if any(k.startswith("ratio/") for k in e)][-1]
    ratios = [f"{value:.2f}" for key, value in last.items() if key.startswith("ratio/")]
    return _row(f"{name} (ρ {', '.join(ratios)})", done.model, task, seconds)


def _row(name: str, model: nn.Module, task: ac.Task, seconds: float) -> Row:
    macs = layer_macs(model, task.example()).get("", 0)
    return Row(name, accuracy(model, task), count_params(model), macs, seconds)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--data-root")
    parser.add_argument("--epochs", type=int, default=10)
    parser.add_argument("--seeds", type=int, default=1)
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    task = load_task("fashion_mnist", model="mlp", root=arguments.data_root)
    task = with_validation(task)[0].with_recipe(epochs=arguments.epochs, lr=1e-3)
    table = Table(title=f"Fashion-MNIST {SIZES}, {arguments.epochs} epochs each, test accuracy")
    for column in ("seed", "model", "accuracy", "points to plain", "params", "MACs ratio", "CPU time ratio"):
        table.add_column(column, justify="left" if column == "model" else "right")
    met = True
    for seed in range(arguments.seeds):
        held = ours(task, seed, "autocompress, held", Config(initial_ratio=RATIO, gate_lr_scale=1e-3))
        mine = ours(task, seed, "autocompress", LEARNED)
        rows = [plain(task, seed), *original(task, seed), held, mine]
        base = rows[0]
        for row in rows:
            table.add_row(
                str(seed),
                row.name,
                f"{row.accuracy:.4f}",
                f"{100 * (row.accuracy - base.accuracy):+.2f}",
                f"{row.params:,}",
                f"{row.macs / base.macs:.3f}",
                f"{row.seconds / base.seconds:.2f}",
            )
        met &= mine.macs <= 0.3 * base.macs and mine.accuracy >= base.accuracy - 0.01
    console = Console(width=130)
    console.print(table)
    console.print("bar (≤ 0.3 of the MACs, within 1 point of the plain MLP):", "met" if met else "NOT met")


if __name__ == "__main__":
    main()
