"""A convolution path mixed with an attention path: y = α·conv(x) + (1 − α)·attention(x).

Korban, Youngs, Acton, *Autoplastic Neural Network*, 2025.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from autocompress.graph.branch_gate import BranchGate

MOST_TOKENS = 8  # along each side of the pooled grid


class PooledAttention(nn.Module):
    """Single-head attention between at most 8×8 tokens; `(B, C, H, W)` → `(B, D, H/s, W/s)`.

    Args:
        inputs: C.
        outputs: D.
        stride: s.
    """

    def __init__(self, inputs: int, outputs: int, stride: int = 1) -> None:
        super().__init__()
        self.stride = stride
        self.query, self.key = nn.Linear(inputs, inputs), nn.Linear(inputs, inputs)
        self.value, self.project = nn.Linear(inputs, inputs), nn.Linear(inputs, outputs)

    def forward(self, x: Tensor) -> Tensor:
        """Attend between pooled tokens, then upsample; `(B, C, H, W)` → `(B, D, H/s, W/s)`."""
        height, width = x.shape[2:]
        grid = (min(height, MOST_TOKENS), min(width, MOST_TOKENS))
        tokens = F.adaptive_avg_pool2d(x, grid).flatten(2).transpose(1, 2)
        # Written out: a fused attention with one head would tie all features of the values together.
        scores = self.query(tokens) @ self.key(tokens).transpose(1, 2) * tokens.shape[2] ** -0.5
        mixed = self.project(torch.softmax(scores, dim=-1) @ self.value(tokens))
        pooled = mixed.transpose(1, 2).unflatten(2, grid)
        return F.interpolate(pooled, (-(-height // self.stride), -(-width // self.stride)))


class Mixing(nn.Module):
    """y = α·conv(x) + (1 − α)·attention(x), α trained with the model; `(B, C, H, W)` → `(B, D, H', W')`.

    Args:
        conv: the path of convolutions.
        attention: the path of attention, whose outputs have the same shape.
        alpha: α to start with, in [0, 1].
    """

    def __init__(self, conv: nn.Module, attention: nn.Module, alpha: float = 0.5) -> None:
        super().__init__()
        self.conv, self.attention = conv, attention
        shared = nn.Parameter(torch.tensor(float(alpha)))
        self.conv_share = BranchGate(shared)
        self.attention_share = BranchGate(shared, complement=True)

    @property
    def alpha(self) -> nn.Parameter:
        """α, `()`; both shares have it."""
        weight: nn.Parameter = self.conv_share.weight  # type: ignore[assignment]
        return weight

    def forward(self, x: Tensor) -> Tensor:
        """Add both paths, each times its share; `(B, C, H, W)` → `(B, D, H', W')`."""
        mixed: Tensor = self.conv_share(self.conv(x)) + self.attention_share(self.attention(x))
        return mixed
