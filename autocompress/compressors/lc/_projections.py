"""Exact C steps of quantisation to given levels and of pruning (arXiv 1707.01209, 1707.04319)."""

from __future__ import annotations

import torch
from torch import Tensor


def signs(x: Tensor) -> Tensor:
    """Codes 0 for numbers below zero and 1 for others."""
    return (x >= 0).long()


def ternary(x: Tensor) -> tuple[Tensor, Tensor]:
    """c and codes (0, 1, 2 for −c, 0, c) that minimise Σ (x − θ)²; exact.

    With the m greatest |x| set to ±c the best c is their mean, and (Σ|x|)²/m is what it explains.
    """
    size, order = x.abs().double().sort(descending=True)
    total = size.cumsum(0)
    count = torch.arange(1, len(x) + 1, device=x.device, dtype=torch.float64)
    m = int((total.square() / count).argmax()) + 1
    codes = torch.ones_like(x, dtype=torch.int64)
    used = order[:m]
    codes[used] = torch.where(x[used] >= 0, 2, 0)
    return (total[m - 1] / m).to(x.dtype), codes


def keep_largest(x: Tensor, kappa: int) -> Tensor:
    """The nearest numbers with at most κ that are not zero."""
    kept = torch.zeros_like(x)
    if kappa > 0:
        places = x.abs().topk(min(kappa, len(x))).indices
        kept[places] = x[places]
    return kept


def l1_ball(x: Tensor, radius: float) -> Tensor:
    """The nearest numbers with Σ|θ| ≤ radius: all shrunk by the one threshold that meets it."""
    if float(x.abs().double().sum()) <= radius:
        return x.clone()
    if radius == 0:
        return torch.zeros_like(x)
    size = x.abs().double().sort(descending=True).values
    count = torch.arange(1, len(x) + 1, device=x.device, dtype=torch.float64)
    thresholds = (size.cumsum(0) - radius) / count
    m = int((size > thresholds).sum())
    return soft_threshold(x, float(thresholds[m - 1]))


def soft_threshold(x: Tensor, threshold: float) -> Tensor:
    """sign(x)·max(|x| − threshold, 0), the minimum of threshold·|θ| + ½(x − θ)²."""
    return x.sign() * (x.abs() - threshold).clamp_min(0)


def hard_threshold(x: Tensor, threshold: float) -> Tensor:
    """Numbers whose size is above the threshold; others are zero."""
    return torch.where(x.abs() > threshold, x, 0.0)


def fixed_point(x: Tensor, bits: int) -> tuple[Tensor, Tensor]:
    """Levels i·2^−f for i in [−2^(b−1), 2^(b−1)), with the f that suits the numbers best, and codes."""
    lowest, highest = -(2 ** (bits - 1)), 2 ** (bits - 1) - 1
    greatest = float(x.abs().max())
    top = int(torch.tensor(max(greatest, 1e-30)).log2().ceil())
    best: tuple[float, float] | None = None
    # From a step at which nothing is clipped to one at which nearly all is.
    for exponent in range(top - 2 * bits, top + 1):
        step = 2.0**exponent
        error = float(((x / step).round().clamp(lowest, highest) * step - x).square().sum())
        if best is None or error < best[0]:
            best = (error, step)
    assert best is not None
    codes = (x / best[1]).round().clamp(lowest, highest).long() - lowest
    levels = torch.arange(lowest, highest + 1, device=x.device, dtype=x.dtype) * best[1]
    return levels, codes


def factors(matrix: Tensor) -> tuple[Tensor, Tensor]:
    """Left singular vectors, `(rows, r)`, and squared singular values, `(r,)`, falling.

    From the Gram matrix in double, far faster than an SVD and as good for what is kept.
    """
    wide = matrix.double()
    rows, columns = wide.shape
    if rows <= columns:
        squares, vectors = torch.linalg.eigh(wide @ wide.mT)
        return vectors.flip(-1), squares.flip(-1).clamp_min(0)
    squares, right = torch.linalg.eigh(wide.mT @ wide)
    squares = squares.flip(-1).clamp_min(0)
    left = wide @ right.flip(-1)
    return left / squares.sqrt().clamp_min(1e-12 * float(squares[0]) ** 0.5 + 1e-300), squares
