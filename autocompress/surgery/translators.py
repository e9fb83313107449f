"""Translators, small modules that stand for the layers between two cut points; and new heads.

Camacho et al., *Auto-compression transfer learning methodology for deep CNNs*, Neurocomputing 630 (2025)
129661, section 3.
"""

from __future__ import annotations

from typing import Literal

import torch
import torch.nn.functional as F
from torch import Tensor, nn

Kind = Literal["identity", "linear", "pooled", "residual"]
KINDS: tuple[Kind, ...] = ("identity", "linear", "pooled", "residual")
Shape = tuple[int, ...]


class Pool(nn.Module):
    """Max pooling to a size in one step: kernel = stride = ⌊in/out⌋, or stride ⌈r⌉ where r is no integer.

    Camacho et al., Neurocomputing 630 (2025) 129661, section 3; `(B, C, *in)` → `(B, C, *out)`.
    """

    def __init__(self, before: Shape, after: Shape) -> None:
        super().__init__()
        self.stride, self.kernel = [], []
        for size, wanted in zip(before, after, strict=True):
            # The last window must begin inside: stride is the greatest that leaves a kernel ≥ 1.
            stride = -(-size // wanted)
            if size - stride * (wanted - 1) < 1:
                stride = size // wanted
            self.stride.append(stride)
            self.kernel.append(size - stride * (wanted - 1))

    def forward(self, x: Tensor) -> Tensor:
        """Take the maximum of each window; `(B, C, *in)` → `(B, C, *out)`."""
        pool = {1: F.max_pool1d, 2: F.max_pool2d, 3: F.max_pool3d}[x.dim() - 2]
        pooled: Tensor = pool(x, self.kernel, self.stride)
        return pooled


class Translator(nn.Module):
    """Pools to the later tensor's size, then maps channels: x̂_B = act(W·pool(x_A) + b) [+ pool(x_A)].

    Args:
        start: shape of x_A without the batch, `(C, ...)`, or `(T, C)` for tokens.
        end: shape of x_B.
        kind: "identity" maps nothing; "linear" W and b; "pooled" a ReLU after them, as published;
            "residual" adds W and b to the pooled tensor, where both have as many channels.
        tokens: x_A is a sequence of tokens.
    """

    def __init__(self, start: Shape, end: Shape, kind: Kind, tokens: bool = False) -> None:
        super().__init__()
        self.tokens, self.flat = tokens, len(end) == 1 and len(start) > 1
        channels = [shape[-1 if tokens else 0] for shape in (start, end)]
        same = channels[0] == channels[1]
        self.kind: Kind = kind if same or kind in ("linear", "pooled") else "linear"
        shrinks = not tokens and len(end) > 1 and start[1:] != end[1:]
        self.pool = Pool(start[1:], end[1:]) if shrinks else nn.Identity()
        grid = 0 if tokens else len(end) - 1
        self.map = nn.Identity() if self.kind == "identity" else _channel_map(grid, *channels)

    def forward(self, x: Tensor) -> Tensor:
        """Make the later tensor from the earlier; `(B, *start)` → `(B, *end)`."""
        x = self.features(x)
        if self.kind == "identity":
            return x
        mapped: Tensor = self.map(x)
        if self.kind == "pooled":
            return torch.relu(mapped)
        return x + mapped if self.kind == "residual" else mapped

    def features(self, x: Tensor) -> Tensor:
        """What W is applied to: x pooled to the later tensor's size."""
        if self.flat:
            return x.mean(1) if self.tokens else x.flatten(2).mean(2)
        pooled: Tensor = self.pool(x)
        return pooled


def _channel_map(grid: int, inputs: int, outputs: int) -> nn.Module:
    """W and b at each position of a grid of so many dimensions."""
    if not grid:
        return nn.Linear(inputs, outputs)
    convolutions: dict[int, type[nn.Module]] = {1: nn.Conv1d, 2: nn.Conv2d, 3: nn.Conv3d}
    return convolutions[grid](inputs, outputs, 1)


class Head(nn.Module):
    """A new top: global average pooling → hidden layer → outputs; `(B, ...)` → `(B, classes)`.

    Args:
        start: shape of the tensor that it reads, without the batch.
        tokens: that tensor is a sequence of tokens.
        width: of the hidden layer.
        classes: outputs.
    """

    def __init__(self, start: Shape, tokens: bool, width: int, classes: int) -> None:
        super().__init__()
        channels = start[-1 if tokens else 0]
        self.pool = Translator(start, (channels,), "identity", tokens)
        self.hidden, self.last = nn.Linear(channels, width), nn.Linear(width, classes)

    def forward(self, x: Tensor) -> Tensor:
        """Pool and classify; `(B, *start)` → `(B, classes)`."""
        outputs: Tensor = self.last(torch.relu(self.hidden(self.pool(x))))
        return outputs
