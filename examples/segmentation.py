"""Segmentation: every pixel has a class, some are void and count nowhere; judged by mean IoU."""

import os

import torch
from torch import Tensor, nn
from torch.utils.data import DataLoader, TensorDataset
from torchmetrics.classification import MulticlassJaccardIndex

import autocompress as ac

VOID = 255  # pixels at the border of a shape, whose class nobody can tell


def scenes(count: int, seed: int) -> TensorDataset:
    """Images of a bright square and a dark one on noise, and the class of each pixel."""
    generator = torch.Generator().manual_seed(seed)
    images = 0.3 * torch.randn(count, 1, 24, 24, generator=generator)
    labels = torch.zeros(count, 24, 24, dtype=torch.long)
    for image, label in zip(images, labels, strict=True):
        for kind, brightness in ((1, 1.0), (2, -1.0)):
            top, left = torch.randint(1, 14, (2,), generator=generator).tolist()
            label[top - 1 : top + 9, left - 1 : left + 9] = VOID
            label[top : top + 8, left : left + 8] = kind
            image[:, top : top + 8, left : left + 8] += brightness
    return TensorDataset(images, labels)


class UNet(nn.Module):
    """Down, up, and a skip between."""

    def __init__(self) -> None:
        super().__init__()
        self.down = nn.Sequential(nn.Conv2d(1, 16, 3, padding=1), nn.BatchNorm2d(16), nn.ReLU())
        self.middle = nn.Sequential(
            nn.MaxPool2d(2),
            nn.Conv2d(16, 32, 3, padding=1),
            nn.BatchNorm2d(32),
            nn.ReLU(),
            nn.Upsample(scale_factor=2),
        )
        self.up = nn.Sequential(nn.Conv2d(48, 16, 3, padding=1), nn.BatchNorm2d(16), nn.ReLU())
        self.head = nn.Conv2d(16, 3, 1)

    def forward(self, images: Tensor) -> Tensor:
        fine = self.down(images)
        return self.head(self.up(torch.cat([fine, self.middle(fine)], 1)))


task = ac.Task(
    model=UNet,
    train=DataLoader(scenes(256, 0), batch_size=32, shuffle=True),
    val=DataLoader(scenes(64, 1), batch_size=32),
    test=DataLoader(scenes(64, 2), batch_size=32),
    loss=nn.CrossEntropyLoss(ignore_index=VOID),
    metrics={"iou": MulticlassJaccardIndex(num_classes=3, ignore_index=VOID)},
    recipe=ac.Recipe(epochs=4, lr=3e-3),
    name="segmentation",
)
result = ac.search(
    task,
    objectives=["iou", "macs"],
    constraints=["iou>=ref-0.1"],
    trials=int(os.environ.get("EXAMPLE_TRIALS", "12")),
)
for point in result.front:
    print(f"trial {point.trial}: IoU {point.test_metrics['iou']:.3f}, {point.ratios['macs']:.0%} of the MACs")
