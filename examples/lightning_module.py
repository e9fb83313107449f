"""A Lightning module trains by its own `training_step` and optimiser."""

import os

import lightning
import torch
from torch import Tensor, nn
from torch.utils.data import DataLoader, TensorDataset

import autocompress as ac


def rings(count: int, seed: int) -> TensorDataset:
    """Points on three rings, and which ring."""
    generator = torch.Generator().manual_seed(seed)
    labels = torch.randint(0, 3, (count,), generator=generator)
    angles = 6.28 * torch.rand(count, generator=generator)
    radii = labels + 1 + 0.15 * torch.randn(count, generator=generator)
    return TensorDataset(torch.stack([radii * angles.cos(), radii * angles.sin()], 1), labels)


class Rings(lightning.LightningModule):
    """A classifier that smooths labels in its own training step."""

    def __init__(self) -> None:
        super().__init__()
        self.layers = nn.Sequential(
            nn.Linear(2, 64), nn.ReLU(), nn.Linear(64, 64), nn.ReLU(), nn.Linear(64, 3)
        )

    def forward(self, points: Tensor) -> Tensor:
        return self.layers(points)

    def training_step(self, batch: tuple[Tensor, Tensor], index: int) -> Tensor:
        loss = nn.functional.cross_entropy(self(batch[0]), batch[1], label_smoothing=0.05)
        self.log("loss", loss)
        return loss

    def configure_optimizers(self) -> torch.optim.Optimizer:
        return torch.optim.AdamW(self.parameters(), lr=3e-3)


task = ac.from_lightning(
    Rings(),
    train=DataLoader(rings(1024, 0), batch_size=64, shuffle=True),
    val=DataLoader(rings(256, 1), batch_size=64),
    test=DataLoader(rings(256, 2), batch_size=64),
    recipe=ac.Recipe(epochs=8),
    trained=False,  # the module is new: the reference is trained first
)
result = ac.search(
    task,
    objectives=["accuracy", "params"],
    trials=int(os.environ.get("EXAMPLE_TRIALS", "12")),
)
for point in result.front:
    accuracy = point.test_metrics["accuracy"]
    print(f"trial {point.trial}: accuracy {accuracy:.3f}, {point.metrics['params']} parameters")
