"""A gate that stands on a branch of a model's graph."""

from __future__ import annotations

import torch
from torch import Tensor, nn


class BranchGate(nn.Module):
    """Multiplies a tensor by one number in [0, 1], or by 1 minus it; `(B, ...)` → `(B, ...)`.

    Args:
        weight: the number, `()`; a parameter of the model, which two gates may share, or a start value.
        complement: multiply by 1 − weight.
    """

    weight: Tensor

    def __init__(self, weight: nn.Parameter | float, complement: bool = False) -> None:
        super().__init__()
        if isinstance(weight, nn.Parameter):
            self.register_parameter("weight", weight)
        else:
            self.register_buffer("weight", torch.tensor(float(weight)))
        self.complement = complement
        self.live: Tensor | None = None  # what a method puts in the weight's place while it trains

    @property
    def factor(self) -> Tensor:
        """What tensors are multiplied by, `()`."""
        value = self.weight if self.live is None else self.live
        return 1 - value if self.complement else value

    def forward(self, x: Tensor) -> Tensor:
        """Multiply a tensor by the gate's factor; `(B, ...)` → `(B, ...)`."""
        return x * self.factor
