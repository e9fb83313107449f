"""One-dimensional k-means: the C step of an adaptive codebook (arXiv 1707.04319).

Numbers are sorted once. Then a cluster is an interval, its cost a difference of prefix sums, and a
step of Lloyd's algorithm takes O(k log n). The first C step starts from the best clustering of a
histogram, found by dynamic programming, from where all ends of clusters move at once, each within its
own window, as long as that gains enough, then by Lloyd's steps. Later ones take a bounded number of
Lloyd's steps from the last levels.
"""

from __future__ import annotations

import math

import numpy as np
import torch
from torch import Tensor

from autocompress.methods.lc.sorting import increasing

_LLOYD_STEPS, _WARM_LLOYD_STEPS = 300, 30  # later C steps go on
_CELLS, _MOST_IN_CELL = 16, 4  # cells a level, and borders in a cell up to which they are worth it
# Each end is looked for among so many clusters, or bins where those are more; of few bins a cluster at first.
_BAND, _NARROW, _LEAST_BAND, _COARSE = 8, 4, 48, 8
_WINDOWS, _WINDOW_ROUNDS = 17, 40
# As many numbers are clustered on the CPU wherever they are: a GPU would wait for each of hundreds of steps.
_FEW = 1 << 18
_CACHED = 1 << 14  # costs that are worked out at once and stay in the cache
# Relative gains below which clusters stop to move. On LeNet300's weights, jointly and by layer, with 2 to 256
# levels, distortion ends within 1e-3 (with 64 levels 4e-3) of that of a dynamic programme over all of 2,048
# bins and Lloyd's steps to their end, which takes 0.1 to 2 s; this one takes 5 to 50 ms.
_BAND_GAIN, _WINDOW_GAIN, _LLOYD_GAIN = 1e-3, 1e-6, 1e-8


def kmeans(x: Tensor, k: int, start: Tensor | None = None) -> tuple[Tensor, Tensor]:
    """Levels `(min(k, distinct),)`, increasing, and the code of each number, `(n,)`.

    Args:
        x: the numbers, `(n,)`.
        k: most levels.
        start: levels to start from in place of the histogram.
    """
    if x.device.type != "cpu" and x.numel() <= _FEW:
        levels, codes = kmeans(x.cpu(), k, None if start is None else start.cpu())
        return levels.to(x.device), codes.to(x.device)
    ordered = increasing(x)
    if int((ordered[1:] != ordered[:-1]).sum()) < k:
        levels = torch.unique_consecutive(ordered)
    else:
        sums = _Prefix(ordered)
        if k <= 2:
            levels = sums.shift[None] if k == 1 else _two(sums)
        elif start is None or len(start) != k:
            levels = _lloyd(sums, _refine(sums, _histogram(sums, k)), _LLOYD_STEPS)
        else:
            levels = _lloyd(sums, start.double().sort().values, _WARM_LLOYD_STEPS)
    levels = levels.to(x.dtype)
    return levels, nearest(x, levels)


def nearest(x: Tensor, levels: Tensor) -> Tensor:
    """The code of the nearest of increasing levels for each number; int64, `(n,)`."""
    borders = (levels[1:] + levels[:-1]) / 2
    if x.device.type != "cpu" or not len(borders):
        return torch.bucketize(x, borders)
    # Searching for each number's place takes longer than the rest of a C step. A number is above all borders
    # in the cells of equal width below its own, so that those in its own alone are left to compare with.
    cells = _CELLS * len(levels)
    scale = cells / (borders[-1] - borders[0]).clamp_min(1e-30)

    def cell(values: Tensor) -> Tensor:
        return (values - borders[0]).mul_(scale).clamp_(0, cells).int()

    counts = torch.bincount(cell(borders), minlength=cells + 1)
    most = int(counts.max())
    if most > _MOST_IN_CELL:
        return torch.bucketize(x, borders)
    codes = (counts.cumsum(0) - counts).index_select(0, cell(x))
    borders = torch.cat([borders, borders.new_full((most,), torch.inf)])
    for _ in range(most):
        codes += x > borders.index_select(0, codes)
    return codes


class _Prefix:
    """Prefix sums of sorted numbers and their squares, about their mean for precision."""

    def __init__(self, ordered: Tensor) -> None:
        self.ordered = ordered.double()
        self.shift = self.ordered.mean()
        self.ordered = self.ordered - self.shift
        self.first, self.second = _cumulated(self.ordered), _cumulated(self.ordered.square())

    def cost(self, start: Tensor, stop: Tensor) -> Tensor:
        """Σ (x − mean)² of the sorted numbers from `start` up to `stop`."""
        total = self.first[stop] - self.first[start]
        return self.second[stop] - self.second[start] - total.square() / (stop - start).clamp_min(1)


def _cumulated(values: Tensor) -> Tensor:
    """Sums of the first 0, 1, … n values, `(n + 1,)`."""
    sums = values.new_zeros(len(values) + 1)
    torch.cumsum(values, 0, out=sums[1:])
    return sums


def _two(sums: _Prefix) -> Tensor:
    """The best split of sorted numbers in two; exact."""
    n = len(sums.ordered)
    left = torch.arange(1, n, device=sums.first.device, dtype=torch.float64)
    # About their mean, both sides' sums are opposite: Σ‖x − mean‖² falls by n·sum²/(left·right).
    below = sums.first[1:n]
    best = int(below.square().div_(left * (n - left)).argmax())
    return torch.stack([below[best] / left[best], -below[best] / (n - left[best])]) + sums.shift


def _lloyd(sums: _Prefix, levels: Tensor, most: int) -> Tensor:
    """Levels after at most so many of Lloyd's steps."""
    levels = levels - sums.shift
    n, reached = len(sums.ordered), torch.inf
    for _ in range(most):
        inner = torch.searchsorted(sums.ordered, (levels[1:] + levels[:-1]) / 2)
        ends = torch.cat([inner.new_zeros(1), inner, inner.new_full((1,), n)])
        counts, totals = ends.diff(), sums.first[ends].diff()
        means = totals / counts.clamp_min(1)
        # A level without numbers stays where it is.
        levels = torch.where(counts > 0, means, levels).sort().values
        cost = float(sums.second[-1] - (totals * means).sum())
        if cost >= reached * (1 - _LLOYD_GAIN):
            break
        reached = cost
    return levels + sums.shift


def _histogram(sums: _Prefix, k: int) -> Tensor:
    """Ends of the best clustering of bins, `(k + 1,)`, by dynamic programming over where clusters end.

    Bins are finer where numbers are denser, as the levels of a good codebook are. Ends are looked for among
    a few of the bins' ends first, around where they would be if levels were as dense as the cube root of the
    numbers, then among all, near to where they were found.
    """
    n = len(sums.ordered)
    bins = min(1024, max(256, 32 * k))
    ends = _bin_ends(sums.ordered, bins) if n > bins else torch.arange(n + 1)
    ends = ends.to(sums.ordered.device)
    edges = sums.ordered[ends.clamp_max(n - 1)]
    mass = (ends.diff() * edges.diff().square()).pow(1 / 3).cumsum(0)
    shares = torch.arange(1, k, device=ends.device, dtype=mass.dtype) / k
    guess = ends[torch.searchsorted(mass, shares * mass[-1])]
    few = max(64, _COARSE * k)
    if 3 / 2 * few > len(ends):
        return _banded(sums, ends, guess, _BAND)
    coarse = _bin_ends(sums.ordered, few)
    return _banded(sums, ends, _banded(sums, coarse, guess, _BAND)[1:-1], _NARROW)


def _banded(sums: _Prefix, ends: Tensor, inner: Tensor, band: int) -> Tensor:
    """The best ends of clusters among those of bins, `(k + 1,)`, each within a band around where it was.

    The band follows the ends as long as that gains.

    Args:
        sums: of the numbers.
        ends: of bins, `(bins + 1,)`.
        inner: where the ends of clusters are at first, `(k − 1,)`.
        band: its width in clusters.
    """
    n, bins = len(sums.ordered), len(ends) - 1
    width = min(bins - 1, max(band * bins // (len(inner) + 1), _LEAST_BAND))
    best, reached = ends, math.inf
    while True:
        middle = torch.searchsorted(ends, inner)
        first = (middle - width // 2).clamp(1, max(bins - width, 1))
        moved = _shortest(sums, ends[first[:, None] + torch.arange(width, device=ends.device)], n)
        cost = float(sums.cost(moved[:-1], moved[1:]).sum())
        if cost >= reached * (1 - _BAND_GAIN):
            return best
        if width == bins - 1:
            return moved
        best, reached, inner = moved, cost, moved[1:-1]


def _refine(sums: _Prefix, ends: Tensor) -> Tensor:
    """Levels of the clustering to which ends lead that move within windows around them."""
    share = torch.linspace(0, 1, _WINDOWS, dtype=torch.float64, device=ends.device)
    reached = float(sums.cost(ends[:-1], ends[1:]).sum())
    for _ in range(_WINDOW_ROUNDS):
        middle = (ends[1:] + ends[:-1]) / 2
        window = middle[:-1, None] + share * (middle[1:] - middle[:-1])[:, None]
        places = torch.cat([window.round().long(), ends[1:-1, None]], 1)
        moved = _shortest(sums, places, len(sums.ordered))
        cost = float(sums.cost(moved[:-1], moved[1:]).sum())
        if cost >= reached * (1 - _WINDOW_GAIN):
            break
        ends, reached = moved, cost
    return sums.first[ends].diff() / ends.diff().clamp_min(1) + sums.shift


def _shortest(sums: _Prefix, places: Tensor, n: int) -> Tensor:
    """The best choice of one place for each inner end, `(k − 1, m)` → all ends, `(k + 1,)`."""
    # By NumPy, whose small operations take a fraction of the time, and on the CPU, as each needs the last.
    first, second = sums.first[places].cpu().numpy(), sums.second[places].cpu().numpy()
    counts, every, origins = places.cpu().numpy().astype(np.float64), np.arange(places.shape[1]), []
    best = second[0] - first[0] ** 2 / np.maximum(counts[0], 1)
    several = max(1, _CACHED // len(every) ** 2)
    for i in range(1, len(places), several):
        upto, since = slice(i, i + several), slice(i - 1, min(i + several, len(places)) - 1)
        size = counts[upto, :, None] - counts[since, None]
        explained = first[upto, :, None] - first[since, None]
        explained *= explained
        explained /= np.maximum(size, 1)
        costs = second[upto, :, None] - second[since, None]
        costs -= explained
        np.copyto(costs, np.inf, where=size <= 0)  # a cluster has one number at least
        for step in costs:
            step += best
            origins.append(step.argmin(1))
            best = step[every, origins[-1]]
    rest, left = float(sums.first[-1]) - first[-1], n - counts[-1]
    last = float(sums.second[-1]) - second[-1] - rest**2 / np.maximum(left, 1)
    choice = [int((best + last).argmin())]
    for origin in reversed(origins):
        choice.append(int(origin[choice[-1]]))
    inner = places.gather(1, torch.tensor(choice[::-1], device=places.device)[:, None])[:, 0]
    return torch.cat([inner.new_zeros(1), inner, inner.new_full((1,), n)])


def _bin_ends(ordered: Tensor, bins: int) -> Tensor:
    """Positions between which each bin's numbers lie, `(≤ bins + 1,)`.

    Half of them by the cube root of the density, a quarter by equal counts, and the outermost
    numbers, where a histogram is too coarse, each by itself.
    """
    n, edge = len(ordered), bins // 8
    low, high = float(ordered[0]), float(ordered[-1])
    fine = torch.histc(ordered, 8 * bins, low, high)
    mass = fine.pow(1 / 3).cumsum(0)
    edges = torch.linspace(low, high, 8 * bins + 1, dtype=ordered.dtype, device=ordered.device)
    wanted = torch.linspace(0, float(mass[-1]), bins // 2 + 1, dtype=mass.dtype, device=mass.device)[1:-1]
    inner = torch.searchsorted(ordered, edges[1:][torch.searchsorted(mass, wanted)])
    counts = torch.linspace(0, n, bins // 4 + 1, device=ordered.device).long()
    tail = torch.arange(edge, device=ordered.device)
    ends = torch.cat([inner, counts, tail, n - tail]).clamp(0, n)
    distinct: Tensor = torch.unique(ends)
    return distinct
