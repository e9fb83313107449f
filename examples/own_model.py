"""A model, data and metric of one's own; then a method alone, without a search."""

import os

import torch
from sklearn.datasets import make_moons
from torch import nn
from torch.utils.data import DataLoader, TensorDataset

import autocompress as ac
from autocompress.methods.alcn import Alcn


def loader(seed: int) -> DataLoader:
    points, labels = make_moons(600, noise=0.2, random_state=seed)
    data = TensorDataset(torch.tensor(points, dtype=torch.float32), torch.tensor(labels))
    return DataLoader(data, batch_size=64, shuffle=seed == 0)


def make_model() -> nn.Module:
    return nn.Sequential(nn.Linear(2, 64), nn.ReLU(), nn.Linear(64, 64), nn.ReLU(), nn.Linear(64, 2))


def error(outputs: torch.Tensor, targets: torch.Tensor) -> float:
    return (outputs.argmax(1) != targets).double().mean().item()


task = ac.Task(
    model=make_model,
    train=loader(0),
    val=loader(1),
    test=loader(2),
    metrics={"error": error},
    recipe=ac.Recipe(epochs=8, lr=1e-2),
    name="moons",
)
result = ac.search(
    task,
    objectives=["error:min", "macs"],
    constraints=["error<=ref+0.05"],
    trials=int(os.environ.get("EXAMPLE_TRIALS", "12")),
)
for point in result.front:
    print(f"trial {point.trial}: error {point.test_metrics['error']:.3f}, {point.metrics['macs']} MACs")

alone = ac.compress(make_model(), task, Alcn(initial_ratio=0.3))
print("alone:", [layer.out_features for layer in alone.model if isinstance(layer, nn.Linear)])
