"""Top-1 accuracy."""

from __future__ import annotations

from torch import Tensor


def accuracy(outputs: Tensor, targets: Tensor) -> float:
    """Share of rows whose greatest output is the target's; `(N, classes, ...)`, `(N, ...)` → [0, 1]."""
    return (outputs.argmax(1) == targets).double().mean().item()
