"""A metric of one's own as an objective: balanced accuracy, on classes of which one is rare.

A metric is a function of all outputs and targets of a split, or a `torchmetrics` metric, which is updated
batch by batch. Each gets a standard error by resampling the validation rows. Objectives name a direction
where it is not known.
"""

import os

import torch
from torch import Tensor, nn
from torch.utils.data import DataLoader, TensorDataset
from torchmetrics.classification import MulticlassAccuracy

import autocompress as ac


def worst_recall(outputs: Tensor, targets: Tensor) -> float:
    """The recall of the class that is recognised least."""
    right = outputs.argmax(1) == targets
    return min(right[targets == label].double().mean().item() for label in targets.unique())


def loader(seed: int) -> DataLoader[tuple[Tensor, ...]]:
    generator = torch.Generator().manual_seed(seed)
    labels = torch.multinomial(torch.tensor([0.6, 0.3, 0.1]), 600, replacement=True, generator=generator)
    inputs = torch.randn(600, 12, generator=generator) + 3.0 * nn.functional.one_hot(labels, 12)
    return DataLoader(TensorDataset(inputs, labels), batch_size=64, shuffle=seed == 0)


def make_model() -> nn.Module:
    return nn.Sequential(nn.Linear(12, 64), nn.ReLU(), nn.Linear(64, 64), nn.ReLU(), nn.Linear(64, 3))


task = ac.Task(
    model=make_model,
    train=loader(0),
    val=loader(1),
    test=loader(2),
    metrics={"balanced": MulticlassAccuracy(3, average="macro"), "worst_recall": worst_recall},
    recipe=ac.Recipe(epochs=6, lr=3e-3),
    name="rare",
)
result = ac.search(
    task,
    objectives=["balanced:max", "macs"],
    constraints=["worst_recall>=ref-0.1"],
    trials=int(os.environ.get("EXAMPLE_TRIALS", "12")),
)
for point in result.front:
    balanced, error = point.metrics["balanced"], point.errors["balanced"]
    print(
        f"trial {point.trial}: balanced {balanced:.3f} ± {error:.3f}, {point.ratios['macs']:.0%} of the MACs"
    )
