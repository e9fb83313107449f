"""One-dimensional k-means: the C step of an adaptive codebook (arXiv 1707.04319).

Numbers are sorted once. Then a cluster is an interval, its cost a difference of prefix sums, and a
step of Lloyd's algorithm takes O(k log n). The first C step starts from the best clustering of a
histogram, found by dynamic programming; later ones from the last levels. From either, all ends of
clusters move at once, each within its own window, as long as that gains enough, then by Lloyd's steps.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor

from autocompress.methods.lc.sorting import increasing

_LLOYD_STEPS = 300
_BAND, _LEAST_BAND = 8, 48  # clusters and bins among which each end is looked for
_WINDOWS, _WINDOW_ROUNDS = 17, 40
# Relative gains below which clusters stop to move. On LeNet300's weights, jointly and by layer, with 2 to 256
# levels, distortion ends within 1e-3 of that of a dynamic programme over all of 2,048 bins and Lloyd's steps
# to their end, which takes 0.1 to 2 s; from the last levels within 1e-4.
_BAND_GAIN, _WINDOW_GAIN, _LLOYD_GAIN = 1e-3, 1e-6, 1e-8


def kmeans(x: Tensor, k: int, start: Tensor | None = None) -> tuple[Tensor, Tensor]:
    """Levels `(min(k, distinct),)`, increasing, and the code of each number, `(n,)`.

    Args:
        x: the numbers, `(n,)`.
        k: most levels.
        start: levels to start from in place of the histogram.
    """
    ordered = increasing(x)
    if int((ordered[1:] != ordered[:-1]).sum()) < k:
        levels = torch.unique_consecutive(ordered)
    else:
        sums = _Prefix(ordered)
        if k <= 2:
            levels = sums.shift[None] if k == 1 else _two(sums)
        elif start is None or len(start) != k:
            levels = _lloyd(sums, _refine(sums, _histogram(sums, k)))
        else:
            levels = _lloyd(sums, start.double().sort().values)
    levels = levels.to(x.dtype)
    return levels, nearest(x, levels)


def nearest(x: Tensor, levels: Tensor) -> Tensor:
    """The code of the nearest of increasing levels for each number; int64, `(n,)`."""
    return torch.bucketize(x, (levels[1:] + levels[:-1]) / 2)


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

    def costs(self, starts: Tensor, stops: Tensor) -> Tensor:
        """`cost` from every start to every stop, infinite where none lies between; `(..., m, m)`."""
        counts = stops[..., None, :] - starts[..., :, None]
        total = self.first[stops][..., None, :] - self.first[starts][..., :, None]
        within = self.second[stops][..., None, :] - self.second[starts][..., :, None]
        within -= total.square_().div_(counts.clamp_min(1))
        return within.masked_fill_(counts <= 0, torch.inf)


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
    best = int((below.square() / (left * (n - left))).argmax())
    return torch.stack([below[best] / left[best], -below[best] / (n - left[best])]) + sums.shift


def _lloyd(sums: _Prefix, levels: Tensor) -> Tensor:
    levels = levels - sums.shift
    n, reached = len(sums.ordered), torch.inf
    for _ in range(_LLOYD_STEPS):
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

    Bins are finer where numbers are denser, as the levels of a good codebook are. Each end is looked for in
    a band of bins: first around where it would be if levels were as dense as the cube root of the numbers,
    then around where it was found, as long as that gains.
    """
    n = len(sums.ordered)
    bins = min(1024, max(256, 32 * k))
    ends = _bin_ends(sums.ordered, bins) if n > bins else torch.arange(n + 1)
    ends = ends.to(sums.ordered.device)
    bins = len(ends) - 1
    width = min(bins - 1, max(_BAND * bins // k, _LEAST_BAND))
    edges = sums.ordered[ends.clamp_max(n - 1)]
    mass = (ends.diff() * edges.diff().square()).pow(1 / 3).cumsum(0)
    shares = torch.arange(1, k, device=ends.device, dtype=mass.dtype) / k
    middle = torch.searchsorted(mass, shares * mass[-1])
    best, reached = ends, math.inf
    while True:
        first = (middle - width // 2).clamp(1, max(bins - width, 1))
        moved = _shortest(sums, ends[first[:, None] + torch.arange(width, device=ends.device)], n)
        cost = float(sums.cost(moved[:-1], moved[1:]).sum())
        if cost >= reached * (1 - _BAND_GAIN):
            return best
        if width == bins - 1:
            return moved
        best, reached, middle = moved, cost, torch.searchsorted(ends, moved[1:-1])


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
    best, origins = sums.cost(places.new_zeros(1), places[0]), []
    for step in sums.costs(places[:-1], places[1:]):
        best, origin = (best[:, None] + step).min(0)
        origins.append(origin.tolist())
    choice = [int((best + sums.cost(places[-1], places.new_full((1,), n))).argmin())]
    for origin in reversed(origins):
        choice.append(origin[choice[-1]])
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
