"""Ridge regression by its normal equations, in double precision."""

from __future__ import annotations

import torch
from torch import Tensor

_LEAST_DAMPING = 1e-12


def ridge(rows: Tensor, targets: Tensor, strength: float) -> Tensor:
    """W of min ‖A Wᵀ − Y‖² + λ ‖W‖² with λ = strength · mean diagonal of AᵀA; of several problems at once.

    Args:
        rows: A, `(..., rows, in)`.
        targets: Y, `(..., rows, out)`.
        strength: at least 0.

    Returns:
        `(..., out, in)`, in double precision.
    """
    a, y = rows.double(), targets.double()
    gram = a.mT @ a
    damping = (strength * gram.diagonal(dim1=-2, dim2=-1).mean()).clamp_min(_LEAST_DAMPING)
    system = gram + damping * torch.eye(gram.shape[-1], dtype=gram.dtype, device=gram.device)
    weight: Tensor = torch.linalg.solve(system, a.mT @ y).mT
    return weight
