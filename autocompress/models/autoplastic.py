"""The paper's network: six residual blocks that mix convolutions with attention.

Korban, Youngs, Acton, *Autoplastic Neural Network*, 2025.
"""

from __future__ import annotations

import torch.nn.functional as F
from torch import Tensor, nn

from autocompress.models.mixing import Mixing, PooledAttention

_WIDTHS = (64, 64, 128, 128, 256, 256)


class MixingBlock(nn.Module):
    """out = ReLU(shortcut(x) + α·conv(x) + (1 − α)·attention(x)); `(B, C, H, W)` → `(B, D, H/s, W/s)`.

    P and C of the published out = ReLU(shortcut(x) + P·C⊙y) are what the method puts in.
    """

    def __init__(self, inputs: int, outputs: int, stride: int) -> None:
        super().__init__()
        conv = nn.Sequential(
            nn.Conv2d(inputs, outputs, 3, stride, 1, bias=False),
            nn.BatchNorm2d(outputs),
            nn.ReLU(),
            nn.Conv2d(outputs, outputs, 3, 1, 1, bias=False),
            nn.BatchNorm2d(outputs),
        )
        self.mixing = Mixing(conv, PooledAttention(inputs, outputs, stride))
        self.shortcut: nn.Module = nn.Identity()
        if stride > 1 or inputs != outputs:
            self.shortcut = nn.Sequential(
                nn.Conv2d(inputs, outputs, 1, stride, bias=False), nn.BatchNorm2d(outputs)
            )

    def forward(self, x: Tensor) -> Tensor:
        """Add the shortcut to the mixed paths, then a ReLU; `(B, C, H, W)` → `(B, D, H/s, W/s)`."""
        return F.relu(self.shortcut(x) + self.mixing(x))


class AutoplasticNet(nn.Module):
    """Stem, six mixing blocks, pooled linear classifier; `(B, C, H, W)` → `(B, classes)`."""

    def __init__(self, channels: int = 3, classes: int = 10) -> None:
        super().__init__()
        self.stem = nn.Sequential(
            nn.Conv2d(channels, _WIDTHS[0], 3, 1, 1, bias=False), nn.BatchNorm2d(_WIDTHS[0]), nn.ReLU()
        )
        sizes = zip((_WIDTHS[0], *_WIDTHS), _WIDTHS, strict=False)
        self.blocks = nn.Sequential(*(MixingBlock(a, b, 1 if a == b else 2) for a, b in sizes))
        self.head = nn.Linear(_WIDTHS[-1], classes)

    def forward(self, x: Tensor) -> Tensor:
        """Classify images; `(B, C, H, W)` → `(B, classes)`."""
        outputs: Tensor = self.head(self.blocks(self.stem(x)).mean((2, 3)))
        return outputs
