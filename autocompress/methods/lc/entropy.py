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

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from autocompress.methods.lc.kmeans import kmeans

# Cells of equal width that numbers are gathered in, turns for each λ, the relative gain of a turn below which
# they end, and halvings of the range of λ.
_CELLS, _TURNS, _GAIN, _HALVINGS = 4096, 30, 1e-5, 14
_CLOSE = 0.998  # share of the bits that is close enough to them
_FEW_TURNS = 8  # where levels start from those of the next price
_Floats = NDArray[np.float64]


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
    levels = _with_zero(x, k) if start is None or len(start) != k else start.double().cpu().numpy()
    cells = _Cells.of(x)
    variance = cells.mean_square() or 1.0
    best = _solved(cells, levels, 0.0)
    low, high = 1e-6 * variance, 1e4 * variance
    if best.entropy > bits:
        best = _solved(cells, levels, high)
        for _ in range(_HALVINGS):
            middle = math.sqrt(low * high)
            tried = _solved(cells, levels, middle)
            if tried.entropy > bits:
                low = middle
                continue
            high, best = middle, tried
            if best.entropy >= _CLOSE * bits:
                break
    return cells.coded(x, best)


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
        solution = _solved(cells, levels, price * scale, _FEW_TURNS)
        codebooks.append(cells.coded(x, solution))
        levels = solution.levels
    return codebooks


def entropy(codes: Tensor, k: int) -> float:
    """Bits of a code on average, by how often each of k is there."""
    return _bits(torch.bincount(codes, minlength=k).double().cpu().numpy())


@dataclass(frozen=True)
class _Solution:
    """Levels, `(k,)`, how many numbers have each, and the code of each cell."""

    levels: _Floats
    counts: _Floats
    codes: NDArray[np.int64]

    @property
    def entropy(self) -> float:
        """Bits of a code on average."""
        return _bits(self.counts)


@dataclass(frozen=True)
class _Cells:
    """Numbers gathered in cells, none of which is empty; on the CPU, wherever the numbers are: thousands of
    turns over so few would have a GPU wait for each.

    Args:
        means: of the numbers in each, rising, `(cells,)`.
        sums: how many numbers the first 0, 1, … cells have, their sum, and that of their cells' squared
            means, `(3, cells + 1)`.
        places: the cell of each number, `(n,)`, where the numbers are.
    """

    means: _Floats
    sums: _Floats
    places: Tensor

    @classmethod
    def of(cls, x: Tensor) -> _Cells:
        numbers = x.double()
        low, high = float(numbers.min()), float(numbers.max())
        width = (high - low) / _CELLS or 1.0
        places = ((numbers - low) / width).long().clamp_(0, _CELLS - 1)
        of_cells = torch.bincount(places, minlength=_CELLS)
        totals = numbers.new_zeros(_CELLS).index_add_(0, places, numbers).cpu().numpy()
        used = of_cells > 0
        filled = used.cpu().numpy()
        counts = of_cells.double().cpu().numpy()[filled]
        means = totals[filled] / counts
        sums = np.zeros((3, len(means) + 1))
        np.cumsum([counts, means * counts, means**2 * counts], axis=1, out=sums[:, 1:])
        return cls(means, sums, (used.cumsum(0) - 1).index_select(0, places))

    def mean_square(self) -> float:
        """Of the numbers."""
        counts, _, squares = self.sums[:, -1]
        return float(squares / counts)

    def ends(self, levels: _Floats, prices: _Floats) -> NDArray[np.int64]:
        """Where the cells end that cost least by each of rising levels, (x − level)² + price; `(k,)`.

        Without x², which all have, costs are lines in x; each is the least in an interval, or nowhere.
        """
        apart = levels - levels[:, None]  # of the later level (columns) from the earlier one (rows)
        with np.errstate(divide="ignore", invalid="ignore"):
            crossings = (levels + levels[:, None]) / 2 + (prices - prices[:, None]) / (2 * apart)
        equal = apart == 0
        crossings[equal] = np.where(prices < prices[:, None], -np.inf, np.inf)[equal]
        places = np.arange(len(levels))
        later = places > places[:, None]
        highest = np.where(later, crossings, np.inf).min(1)
        lowest = np.where(later, crossings, -np.inf).max(0)
        stops = np.searchsorted(self.means, highest, side="right")
        ends: NDArray[np.int64] = np.maximum.accumulate(np.where(lowest < highest, stops, 0))
        return ends

    def coded(self, x: Tensor, solution: _Solution) -> tuple[Tensor, Tensor]:
        """Levels and the codes of the numbers, `(n,)`, in place of those of the cells."""
        codes = torch.from_numpy(solution.codes).to(x.device)
        return torch.from_numpy(solution.levels).to(x), codes.index_select(0, self.places)


def _with_zero(x: Tensor, k: int) -> _Floats:
    """Levels of k-means with that next to 0 put there."""
    levels: _Floats = kmeans(x, k)[0].double().cpu().numpy()
    levels[np.abs(levels).argmin()] = 0.0
    return levels


def _solved(cells: _Cells, levels: _Floats, price: float, turns: int = _TURNS) -> _Solution:
    """Levels and codes where a bit costs so much; turns until they gain little."""
    levels = levels.copy()
    zero, n = int(np.flatnonzero(levels == 0)[0]), cells.sums[0, -1]
    prices, reached = np.zeros_like(levels), math.inf
    for turn in range(turns):
        order = np.argsort(levels, kind="stable")
        borders = np.append(0, cells.ends(levels[order], prices[order]))
        parts = np.empty((3, len(levels)))
        parts[:, order] = np.diff(cells.sums[:, borders])
        counts, totals, squares = parts
        objective = float((squares - 2 * levels * totals + (levels**2 + prices) * counts).sum())
        # A level without numbers stays where it is, and costs more bits than any that has some.
        prices = -price * np.log2(np.maximum(counts, 0.5) / n)
        levels = np.where(counts > 0, totals / np.maximum(counts, 1.0), levels)
        levels[zero] = 0.0
        # The first turn knows no lengths yet.
        if turn > 1 and objective >= reached * (1 - _GAIN):
            break
        reached = objective
    return _Solution(levels, counts, np.repeat(order, np.diff(borders)))


def _bits(counts: _Floats) -> float:
    shares = counts[counts > 0] / counts.sum()
    return float(-(shares * np.log2(shares)).sum())
