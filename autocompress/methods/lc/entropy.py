"""Entropy-constrained quantisation: the C step of codebooks whose codes are stored near their entropy.

Chou, Lookabaugh & Gray, *Entropy-Constrained Vector Quantization*, IEEE Trans. ASSP 37(1), 1989, for single
numbers: minimise Σ (x − c)² + λ·Σ −log₂ p(c), by turns of codes, shares p and levels c, with the least λ at
which the codes take the bits that they may. One level is 0 and stays it, so that few bits leave few weights:
pruning and a codebook in one.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from autocompress.methods.lc.kmeans import kmeans

# Cells of equal width that numbers are gathered in, turns for each λ, the relative gain of a turn below which
# they end, and halvings of the range of λ.
_CELLS, _TURNS, _GAIN, _HALVINGS = 4096, 30, 1e-5, 14
_CLOSE = 0.998  # share of the bits that is close enough to them
_FEW_TURNS = 8  # where levels start from those of the next price


def entropy_codebook(x: Tensor, k: int, bits: float, start: Tensor | None = None) -> tuple[Tensor, Tensor]:
    """Levels, one of them 0, and codes whose entropy is at most so many bits.

    Args:
        x: the numbers, `(n,)`.
        k: levels, the zero among them.
        bits: of a code, at most.
        start: levels to start from, `(k,)`; others are found by k-means.

    Returns:
        Levels, `(k,)` or fewer where there are few numbers, some of which may have no code; and codes, int64,
        `(n,)`.
    """
    levels = _with_zero(x, k) if start is None or len(start) != k else start.double().cpu()
    cells = _Cells.of(x)
    variance = float((cells.totals.square() / cells.counts.clamp_min(1)).sum() / len(x)) or 1.0
    best = _solved(cells, levels, 0.0)
    low, high = 1e-6 * variance, 1e4 * variance
    if _entropy(best[1], cells.counts) > bits:
        best = _solved(cells, levels, high)
        for _ in range(_HALVINGS):
            middle = math.sqrt(low * high)
            tried = _solved(cells, levels, middle)
            taken = _entropy(tried[1], cells.counts)
            if taken > bits:
                low = middle
                continue
            high, best = middle, tried
            if taken >= _CLOSE * bits:
                break
    return cells.codebook(x, *best)


def priced_codebooks(x: Tensor, k: int, prices: Sequence[float]) -> list[tuple[Tensor, Tensor]]:
    """Levels and codes, as of `entropy_codebook`, where a bit costs so much; nearly the best.

    Args:
        x: the numbers, `(n,)`.
        k: levels, the zero among them.
        prices: rising, relative to the numbers' mean square; each search starts from the levels before.
    """
    cells, levels = _Cells.of(x), _with_zero(x, k)
    scale = float(x.double().square().mean()) or 1.0
    codebooks = []
    for price in prices:
        levels, of_cells = _solved(cells, levels, price * scale, _FEW_TURNS)
        codebooks.append(cells.codebook(x, levels, of_cells))
    return codebooks


def entropy(codes: Tensor, k: int) -> float:
    """Bits of a code on average, by how often each of k is there."""
    return _bits(torch.bincount(codes, minlength=k).double())


@dataclass(frozen=True)
class _Cells:
    """Numbers gathered in cells: how many, and their sum, in each; and the cell of each number.

    The cells are on the CPU, wherever the numbers are: thousands of turns over so few would have a GPU wait
    for each.
    """

    counts: Tensor
    totals: Tensor
    places: Tensor

    @classmethod
    def of(cls, x: Tensor) -> _Cells:
        numbers = x.double()
        low, high = float(numbers.min()), float(numbers.max())
        width = (high - low) / _CELLS or 1.0
        places = ((numbers - low) / width).long().clamp_(0, _CELLS - 1)
        counts = torch.bincount(places, minlength=_CELLS).double()
        totals = numbers.new_zeros(_CELLS).index_add_(0, places, numbers)
        return cls(counts.cpu(), totals.cpu(), places)

    def codebook(self, x: Tensor, levels: Tensor, codes: Tensor) -> tuple[Tensor, Tensor]:
        """Levels, and the codes of the numbers, `(n,)`, in place of those of the cells."""
        return levels.to(x), codes.to(x.device).index_select(0, self.places)


def _with_zero(x: Tensor, k: int) -> Tensor:
    """Levels of k-means with that next to 0 put there."""
    levels = kmeans(x, k)[0].double().cpu()
    levels[levels.abs().argmin()] = 0.0
    return levels


def _solved(cells: _Cells, levels: Tensor, price: float, turns: int = _TURNS) -> tuple[Tensor, Tensor]:
    """Levels, and the code of each cell, where a bit costs so much; turns until they gain little."""
    zero = int((levels == 0).nonzero()[0])
    levels, k = levels.clone(), len(levels)
    means = cells.totals / cells.counts.clamp_min(1)
    lengths = levels.new_zeros(k)
    reached = math.inf
    codes = torch.zeros(len(means), dtype=torch.int64)
    for turn in range(turns):
        costs = (means[:, None] - levels).square() + price * lengths
        least, codes = costs.min(1)
        counts = levels.new_zeros(k).index_add_(0, codes, cells.counts)
        totals = levels.new_zeros(k).index_add_(0, codes, cells.totals)
        # A level without numbers stays where it is, and costs more bits than any that has some.
        lengths = -torch.log2(counts.clamp_min(0.5) / counts.sum())
        levels = torch.where(counts > 0, totals / counts.clamp_min(1), levels)
        levels[zero] = 0.0
        objective = float((least * cells.counts).sum())
        # The first turn knows no lengths yet.
        if turn > 1 and objective >= reached * (1 - _GAIN):
            break
        reached = objective
    return levels, codes


def _entropy(codes: Tensor, counts: Tensor) -> float:
    """Bits of a code on average where cells have so many numbers."""
    return _bits(counts.new_zeros(int(codes.max()) + 1).index_add_(0, codes, counts))


def _bits(counts: Tensor) -> float:
    shares = counts[counts > 0] / counts.sum()
    return float(-(shares * shares.log2()).sum())
