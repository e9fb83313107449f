"""ResNets for 32-pixel images. He et al., *Deep Residual Learning*, 2016, section 4.2.

State keys are those of the widely used CIFAR-10 checkpoints (option-A shortcuts).
"""

from __future__ import annotations

import torch.nn.functional as F
from torch import Tensor, nn


class OptionA(nn.Module):
    """Parameter-free shortcut: every second pixel, zero channels on both sides."""

    def __init__(self, padding: int) -> None:
        super().__init__()
        self.padding = padding

    def forward(self, x: Tensor) -> Tensor:
        """Halve the grid and pad the channels with zeros; `(B, C, H, W)` → `(B, C + 2·padding, H/2, W/2)`."""
        return F.pad(x[:, :, ::2, ::2], (0, 0, 0, 0, self.padding, self.padding))


class BasicBlock(nn.Module):
    """Two 3×3 convolutions and a shortcut."""

    def __init__(self, inputs: int, outputs: int, stride: int) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(inputs, outputs, 3, stride, 1, bias=False)
        self.bn1 = nn.BatchNorm2d(outputs)
        self.conv2 = nn.Conv2d(outputs, outputs, 3, 1, 1, bias=False)
        self.bn2 = nn.BatchNorm2d(outputs)
        plain = stride == 1 and inputs == outputs
        self.shortcut = nn.Identity() if plain else OptionA((outputs - inputs) // 2)

    def forward(self, x: Tensor) -> Tensor:
        """Add the shortcut to the convolutions, then a ReLU; `(B, C, H, W)` → `(B, D, H/s, W/s)`."""
        out = F.relu(self.bn1(self.conv1(x)))
        return F.relu(self.bn2(self.conv2(out)) + self.shortcut(x))


class ResNetCifar(nn.Module):
    """ResNet-(6n+2); `(B, C, H, W)` → `(B, classes)`."""

    def __init__(self, blocks: int, channels: int = 3, classes: int = 10) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(channels, 16, 3, 1, 1, bias=False)
        self.bn1 = nn.BatchNorm2d(16)
        width = 16
        for stage, outputs in enumerate((16, 32, 64), start=1):
            layers = []
            for position in range(blocks):
                stride = 2 if position == 0 and stage > 1 else 1
                layers.append(BasicBlock(width, outputs, stride))
                width = outputs
            self.add_module(f"layer{stage}", nn.Sequential(*layers))
        self.linear = nn.Linear(64, classes)
        for module in self.modules():
            if isinstance(module, (nn.Conv2d, nn.Linear)):
                nn.init.kaiming_normal_(module.weight)

    def forward(self, x: Tensor) -> Tensor:
        """Classify images; `(B, C, H, W)` → `(B, classes)`."""
        out = F.relu(self.bn1(self.conv1(x)))
        for stage in (1, 2, 3):
            out = self.get_submodule(f"layer{stage}")(out)
        outputs: Tensor = self.linear(out.mean((2, 3)))
        return outputs
