"""Translators fitted in closed form against random ones and against five epochs of local training.

    python examples/benchmarks/translators.py --data-root DATA [--pairs 1,3 4,6 3,6] [--kind linear]

resnet20 with the published CIFAR-10 weights. For each pair of cut points (A, B): the error of the
later tensor on test images, ‖x̂_B − x_B‖ / ‖x_B‖, the test accuracy of the bridged model as it is and
after one epoch of training all of it, and the seconds that making the translator took. Local training
is the original's: everything else frozen, Adam, lr 1e-3, five epochs over the training set.
"""

from __future__ import annotations

import argparse
import time
from typing import Any

import torch
from published import accuracy, reference, resnet20
from rich.console import Console
from rich.table import Table
from torch import nn

import autocompress as ac
from autocompress.graph import analyse
from autocompress.graph.bridging import bridge, tap
from autocompress.methods.depth import Config, Depth
from autocompress.methods.depth.translator import relative_error
from autocompress.surgery.translators import KINDS
from autocompress.training.loop import Trainer, reestimate_batch_norm

WAYS = ("closed form", "random", "5 local epochs")
console = Console()


def tapped(task: ac.Task, pair: tuple[int, int]) -> nn.Module:
    """The reference, giving the tensors of both cut points."""
    model = reference(task)
    analysis = analyse(model, task.example())
    ends = [analysis.cut_points[i].node for i in pair]
    whole = bridge(model, analysis, [])
    return tap(whole, whole.graph, ends).eval()


def train_locally(translator: nn.Module, taps: nn.Module, task: ac.Task, epochs: int) -> None:
    optimizer = torch.optim.Adam(translator.parameters(), lr=1e-3)
    for _ in range(epochs):
        for inputs, _targets in task.train:
            with torch.no_grad():
                a, b = taps(inputs)
            loss = (translator(a) - b).square().mean()
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()


def row(task: ac.Task, pair: tuple[int, int], kind: Any, way: str) -> list[str]:
    taps = tapped(task, pair)
    model = reference(task)
    start = time.perf_counter()
    session = Depth(Config(cuts=(pair,), translator=kind)).start(model, task)
    translator = session.model.get_submodule(f"translator_{pair[0]}_{pair[1]}")
    if way != "closed form":
        start = time.perf_counter()
        for layer in translator.modules():
            if isinstance(layer, (nn.Conv2d, nn.Linear)):
                layer.reset_parameters()
    if way == "5 local epochs":
        train_locally(translator, taps, task, 5)
    seconds = time.perf_counter() - start
    assert task.test is not None
    images = torch.cat([x for x, _ in task.test])[:1000]
    with torch.no_grad():
        a, b = taps(images)
        error = relative_error(translator(a), b)
    before = accuracy(session.model, task)
    Trainer(task, 1).fit(session.model, 1)
    reestimate_batch_norm(session.model, task, 50)
    after = accuracy(session.model, task)
    return [f"{pair[0]}, {pair[1]}", way, f"{error:.3f}", f"{before:.1%}", f"{after:.1%}", f"{seconds:.1f}"]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--data-root", required=True)
    parser.add_argument("--pairs", nargs="*", default=["1,3", "4,6", "3,6"])
    parser.add_argument("--kind", default="linear", choices=KINDS)
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    task = resnet20(arguments.data_root)
    table = Table(title=f"Translators of kind {arguments.kind}, resnet20 on CIFAR-10 (reference 91.7 %)")
    for column in ("A, B", "translator", "error", "accuracy as bridged", "after 1 epoch", "seconds"):
        table.add_column(column)
    for text in arguments.pairs:
        a, b = (int(part) for part in text.split(","))
        for way in WAYS:
            cells = row(task, (a, b), arguments.kind, way)
            console.log("  ".join(cells))
            table.add_row(*cells)
    console.print(table)


if __name__ == "__main__":
    main()
