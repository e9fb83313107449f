"""Autoplastic: the paper's network under both rules, and what the ranking of channels by C is worth.

    python examples/benchmarks/autoplastic.py network --data-root DATA [--rule gradient] [--epochs 8]
    python examples/benchmarks/autoplastic.py ranking --data-root DATA [--epochs 2]

network: the paper's network on 10,000 CIFAR-10 images, its recipe (SGD with Nesterov, cosine with
warm-up, label smoothing 0.1, MixUp 0.2, crop, flip and erasing), the paper's log line after each epoch,
and the exported model beside the gated one before any fine-tuning. "faithful" takes the published rule
with its published rates and floors. About 2 minutes an epoch.
ranking: resnet20 from its published weights, trained with gates on as many images; then the quarter of
all channels that C ranks lowest is shut, or a random quarter, everything else as it is. Test accuracy
by seed. About a minute an epoch.
"""

from __future__ import annotations

import argparse
import math
from collections.abc import Mapping
from dataclasses import replace

import torch
from published import accuracy, reference, resnet20
from rich.console import Console
from rich.table import Table
from torch import Tensor

import autocompress as ac
from autocompress.data import TensorBatches, load_task
from autocompress.graph.costs import count_params, layer_macs
from autocompress.methods.autoplastic import Autoplastic, Config
from autocompress.methods.autoplastic.session import AutoplasticSession
from autocompress.models.autoplastic import AutoplasticNet
from autocompress.training.loop import Trainer
from autocompress.trial import seed_everything

IMAGES = 10_000
PUBLISHED = Config(
    rule="published", stability="absolute", p_min=0.5, c_init=0.9, c_min=0.4, c_max=0.995, decay=0.9
)
SEARCHABLE = replace(PUBLISHED, stability="relative", epsilon=0.95, eta=0.1, p_min=0.0, c_min=0.0)
RULES = {"faithful": PUBLISHED, "published": SEARCHABLE, "gradient": Config()}
# Trained from scratch by SGD, whose rates are higher than those of published weights by AdamW.
FROM_SCRATCH = {**RULES, "gradient": Config(lambda_arch=0.3)}
RECIPE = ac.Recipe(
    optimizer="sgd",
    lr=0.05,
    weight_decay=5e-4,
    grad_clip=math.inf,
    augment="crop-flip-erase",
    label_smoothing=0.1,
    mixup=0.2,
)
console = Console(width=130)


def fewer(batches: ac.Batches, count: int) -> TensorBatches:
    """The first images of a split."""
    assert isinstance(batches, TensorBatches)
    return replace(batches, x=batches.x[:count], targets=batches.targets[:count])


def started(task: ac.Task, config: Config) -> AutoplasticSession:
    return Autoplastic(config).start(reference(task), task)


def log(entry: Mapping[str, float]) -> None:
    """The paper's line: L_eff, active channels, P and α of each block, mean C, pruned."""
    gates = {kind: [v for k, v in entry.items() if k.startswith(f"{kind}/")] for kind in ("p", "alpha")}
    shown = {kind: " ".join(f"{value:.2f}" for value in values) for kind, values in gates.items()}
    console.log(
        f"epoch {entry['epoch']:.0f}  loss {entry['loss']:.3f}  L_eff {entry['effective_layers']:.2f}  "
        f"active {entry['active_channels']:.1%}  P {shown['p']}  α {shown['alpha']}  "
        f"C̄ {entry['mean_c']:.3f}  pruned {entry['pruned']:.1%}"
    )


def network(root: str, rule: str, epochs: int) -> None:
    task = load_task("cifar10", model="autoplastic", root=root)
    task = replace(task, model=AutoplasticNet, recipe=RECIPE, train=fewer(task.train, IMAGES))
    session = started(task, FROM_SCRATCH[rule])
    Trainer(task, epochs, report=log).fit(session.model, epochs, session)
    gated = accuracy(session.model, task)
    exported = session.finish().model
    table = Table(title=f"The paper's network, rule {rule}, {IMAGES:,} images, {epochs} epochs")
    for column in ("model", "test accuracy", "parameters", "MACs"):
        table.add_column(column)
    sizes = [(m, count_params(m), layer_macs(m, task.example())[""]) for m in (AutoplasticNet(), exported)]
    for name, right, (_, params, macs) in zip(
        ("gated", "exported"), (gated, accuracy(exported, task)), sizes, strict=True
    ):
        table.add_row(name, f"{right:.1%}", f"{params:,}", f"{macs:,}")
    console.print(table)


def shut(session: AutoplasticSession, order: Tensor) -> None:
    """Shut the quarter of all channels that comes first in `order`, `(U,)`."""
    with torch.no_grad():
        values = session.values()
        c = values.c.clone()
        c[order.argsort()[: len(order) // 4]] = 0.0
        session.switches.turn(values._replace(c=c))


def ranking(root: str, epochs: int) -> None:
    table = Table(title="Test accuracy with a quarter of the channels shut, resnet20")
    for column in ("rule", "seed", "all open", "lowest C", "random", "difference"):
        table.add_column(column)
    whole = resnet20(root)
    task = replace(whole, train=fewer(whole.train, IMAGES), test=fewer(whole.test or [], IMAGES // 2))
    for rule, config in RULES.items():
        for seed in range(3):
            session = started(task, config)
            seed_everything(seed, task)
            Trainer(task, epochs, lr_scale=0.5).fit(session.model, epochs, session)
            session.hook.remove()
            accuracies = [accuracy(session.model, task)]
            for order in (session.raw.c.detach(), torch.rand_like(session.raw.c)):
                shut(session, order)
                accuracies.append(accuracy(session.model, task))
            difference = f"{accuracies[1] - accuracies[2]:+.1%}"
            cells = [rule, str(seed), *(f"{right:.1%}" for right in accuracies), difference]
            console.log("  ".join(cells))
            table.add_row(*cells)
    console.print(table)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("part", choices=("network", "ranking"))
    parser.add_argument("--data-root", required=True)
    parser.add_argument("--rule", choices=list(RULES), default="gradient")
    parser.add_argument("--epochs", type=int)
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    if arguments.part == "network":
        network(arguments.data_root, arguments.rule, arguments.epochs or 8)
    else:
        ranking(arguments.data_root, arguments.epochs or 2)


if __name__ == "__main__":
    main()
