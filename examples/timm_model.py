"""A model of timm's, on photos in folders or, here, on drawn ones."""

import os

import timm
import torch
from torch import nn
from torch.utils.data import DataLoader, TensorDataset

import autocompress as ac


def photos(count: int, seed: int) -> TensorDataset:
    """Stripes across or along, on noise."""
    generator = torch.Generator().manual_seed(seed)
    labels = torch.randint(0, 2, (count,), generator=generator)
    images = 0.5 * torch.randn(count, 3, 32, 32, generator=generator)
    stripes = (torch.arange(32) // 4 % 2).float()
    across = stripes[None, None, :, None].expand(-1, 3, 32, 32)
    images += torch.where(labels[:, None, None, None] > 0, across, across.mT)
    return TensorDataset(images, labels)


def make_model() -> nn.Module:
    # With `pretrained=True` and `weights=make_model()` the search would start from timm's weights.
    return timm.create_model("test_resnet", num_classes=2)


task = ac.Task(
    model=make_model,
    train=DataLoader(photos(256, 0), batch_size=32, shuffle=True),
    val=DataLoader(photos(96, 1), batch_size=32),
    test=DataLoader(photos(96, 2), batch_size=32),
    recipe=ac.Recipe(epochs=3, lr=2e-3),
    name="stripes",
)
result = ac.search(
    task,
    objectives=["accuracy", "macs"],
    trials=int(os.environ.get("EXAMPLE_TRIALS", "12")),
)
for point in result.front:
    accuracy = point.test_metrics["accuracy"]
    print(f"trial {point.trial}: accuracy {accuracy:.3f}, {point.ratios['macs']:.0%} of the MACs")
