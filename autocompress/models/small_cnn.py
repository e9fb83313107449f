"""A small convolutional network for images of 8 to 64 pixels."""

from __future__ import annotations

from torch import Tensor, nn


class SmallCnn(nn.Module):
    """Three convolutions with batch norm, pooled in between; `(B, C, H, W)` → `(B, classes)`."""

    def __init__(self, channels: int, classes: int, width: int = 24) -> None:
        super().__init__()
        sizes = (channels, width, 2 * width, 4 * width)
        blocks = []
        for position in range(3):
            blocks += [
                nn.Conv2d(sizes[position], sizes[position + 1], 3, padding=1, bias=False),
                nn.BatchNorm2d(sizes[position + 1]),
                nn.ReLU(),
            ]
            if position < 2:
                blocks.append(nn.MaxPool2d(2))
        self.features = nn.Sequential(*blocks)
        self.pool = nn.AdaptiveAvgPool2d(1)
        self.classifier = nn.Linear(sizes[3], classes)

    def forward(self, x: Tensor) -> Tensor:
        """Classify images; `(B, C, H, W)` → `(B, classes)`."""
        outputs: Tensor = self.classifier(self.pool(self.features(x)).flatten(1))
        return outputs
