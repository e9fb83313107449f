"""Exact C steps of quantisation to given levels and of pruning (arXiv 1707.01209, 1707.04319)."""

from __future__ import annotations

import torch
from torch import Tensor

from autocompress.methods.lc.sorting import increasing, kth_largest

# Ranks of a matrix for each that is wanted from which on an iteration is less work than all singular values;
# its most rounds; and the gain of a round, relative to what is lost, at which it ends: what is lost is then
# within 1e-3 of the least.
_KRYLOV_SHARE, _KRYLOV_ROUNDS, _KRYLOV_GAIN = 12, 4, 2e-4


def signs(x: Tensor) -> Tensor:
    """Codes 0 for numbers below zero and 1 for others."""
    return (x >= 0).long()


def ternary(x: Tensor) -> tuple[Tensor, Tensor]:
    """c and codes (0, 1, 2 for −c, 0, c) that minimise Σ (x − θ)²; exact.

    With the m greatest |x| set to ±c the best c is their mean, and (Σ|x|)²/m is what it explains.
    """
    size = x.abs()
    falling = increasing(size).flip(0)
    total = falling.double().cumsum(0)
    count = torch.arange(1, len(x) + 1, device=x.device, dtype=torch.float64)
    m = int(total.square().div_(count).argmax()) + 1
    # Of numbers of one size all are used or none: in their count what is explained is convex.
    codes = (x.sign() * (size >= falling[m - 1])).long() + 1
    return (total[m - 1] / m).to(x.dtype), codes


def keep_largest(x: Tensor, kappa: int) -> Tensor:
    """The nearest numbers with at most κ that are not zero."""
    if not 0 < kappa < len(x):
        return x.clone() if kappa else torch.zeros_like(x)
    size = x.abs()
    threshold = kth_largest(size, kappa)
    kept = size >= threshold
    surplus = int(kept.sum()) - kappa
    if surplus:
        # Several are as large as the last that may stay.
        kept[(size == threshold).nonzero()[-surplus:, 0]] = False
    return torch.where(kept, x, 0.0)


def l1_ball(x: Tensor, radius: float) -> Tensor:
    """The nearest numbers with Σ|θ| ≤ radius: all shrunk by the one threshold that meets it."""
    falling = increasing(x.abs()).flip(0).double()
    total = falling.cumsum(0)
    if float(total[-1]) <= radius:
        return x.clone()
    if radius == 0:
        return torch.zeros_like(x)
    # Of m numbers that stay, the threshold is (their sum − radius)/m; the last above its own stays last.
    # Duchi et al., "Efficient projections onto the l1-ball", ICML 2008, figure 1.
    count = torch.arange(1, len(x) + 1, device=x.device, dtype=torch.float64)
    m = int((falling * count > total - radius).count_nonzero())
    return soft_threshold(x, float(total[m - 1] - radius) / m)


def soft_threshold(x: Tensor, threshold: float) -> Tensor:
    """sign(x)·max(|x| − threshold, 0), the minimum of threshold·|θ| + ½(x − θ)²."""
    return x - x.clamp(-threshold, threshold)


def hard_threshold(x: Tensor, threshold: float) -> Tensor:
    """Numbers whose size is above the threshold; others are zero."""
    return torch.where(x.abs() > threshold, x, 0.0)


def fixed_point(x: Tensor, bits: int, last: Tensor | None = None) -> tuple[Tensor, Tensor]:
    """Levels i·2^−f for i in [−2^(b−1), 2^(b−1)), with the f that suits the numbers best, and codes.

    Args:
        x: the numbers, `(n,)`.
        bits: b.
        last: levels of an earlier solution, from whose f on neighbours are tried as long as they are better.
    """
    lowest, highest = -(2 ** (bits - 1)), 2 ** (bits - 1) - 1
    greatest = float(x.abs().max())
    top = int(torch.tensor(max(greatest, 1e-30)).log2().ceil())
    # From a step at which nothing is clipped to one at which nearly all is.
    exponents = range(top - 2 * bits, top + 1)
    errors: dict[int, float] = {}

    def error(exponent: int) -> float:
        if exponent not in errors:
            step = 2.0**exponent
            rounded = (x / step).round_().clamp_(lowest, highest).mul_(step)
            errors[exponent] = float(rounded.sub_(x).square_().sum())
        return errors[exponent]

    start = None if last is None else round(float((last[1] - last[0]).log2()))
    if start is not None and start in exponents:
        best, near = start, [start]
        while near:
            best = min([best, *near], key=error)
            near = [e for e in (best - 1, best + 1) if e in exponents and e not in errors]
    else:
        best = min(exponents, key=error)
    codes = (x / 2.0**best).round().clamp(lowest, highest).long() - lowest
    levels = torch.arange(lowest, highest + 1, device=x.device, dtype=x.dtype) * 2.0**best
    return levels, codes


def factors(matrix: Tensor, near: Tensor | None = None) -> tuple[Tensor, Tensor]:
    """Left singular vectors, `(rows, r)`, and squared singular values, `(r,)`, falling.

    All of them, from the Gram matrix in double, far faster than an SVD and as good for what is kept; or some
    of the greatest, at least three times as many as `near` has columns, where that is less work.

    Args:
        matrix: `(rows, columns)`.
        near: orthonormal columns near to the first left singular vectors, `(rows, r)`.
    """
    wide = matrix.double()
    rows, columns = wide.shape
    if near is not None and 0 < _KRYLOV_SHARE * near.shape[1] <= min(rows, columns):
        leading = _leading(wide, near.double())
        if leading is not None:
            return leading
    if rows <= columns:
        squares, vectors = torch.linalg.eigh(wide @ wide.mT)
        return vectors.flip(-1), squares.flip(-1).clamp_min(0)
    squares, right = torch.linalg.eigh(wide.mT @ wide)
    squares = squares.flip(-1).clamp_min(0)
    left = wide @ right.flip(-1)
    return left / squares.sqrt().clamp_min(1e-12 * float(squares[0]) ** 0.5 + 1e-300), squares


def _leading(wide: Tensor, near: Tensor) -> tuple[Tensor, Tensor] | None:
    """`factors` within Krylov spaces (WWᵀ)^i · near, i = 0, 1, 2; None where they have not come close enough.

    Musco & Musco, "Randomized block Krylov methods for stronger and faster approximate singular value
    decomposition", NeurIPS 2015. The next space starts from what the last one gave.
    """
    rank = near.shape[1]
    total, reached = float(wide.square().sum()), float((near.mT @ wide).square().sum())
    for _ in range(_KRYLOV_ROUNDS):
        blocks = [near]
        for _ in range(2):
            blocks.append(torch.linalg.qr(wide @ (wide.mT @ blocks[-1])).Q)
        basis = torch.linalg.qr(torch.cat(blocks, 1)).Q
        inner = basis.mT @ wide
        squares, vectors = torch.linalg.eigh(inner @ inner.mT)
        left, squares = basis @ vectors.flip(-1), squares.flip(-1).clamp_min(0)
        kept = float(squares[:rank].sum())
        if kept - reached <= _KRYLOV_GAIN * (total - kept):
            return left, squares
        near, reached = left[:, :rank], kept
    return None
