"""One-dimensional k-means: the C step of an adaptive codebook (arXiv 1707.04319).

Numbers are sorted once. Then a cluster is an interval, its cost a difference of prefix sums, and a
step of Lloyd's algorithm takes O(k log n). It starts from the best clustering of a histogram, found
by dynamic programming, which is exact where the histogram has a bin for every number; then all
ends of clusters move at once, each within its own window, as long as that helps.
"""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor

_LLOYD_STEPS = 300
_WINDOWS, _WINDOW_ROUNDS = 17, 40


def kmeans(x: Tensor, k: int, start: Tensor | None = None) -> tuple[Tensor, Tensor]:
    """Levels `(min(k, distinct),)`, increasing, and the code of each number, `(n,)`.

    Args:
        x: the numbers, `(n,)`.
        k: most levels.
        start: levels to start from in place of the histogram.
    """
    ordered = _sorted(x).double()
    if int((ordered[1:] != ordered[:-1]).sum()) < k:
        levels = torch.unique_consecutive(ordered)
    elif k == 1:
        levels = ordered.mean()[None]
    elif k == 2:
        levels = _two(ordered)
    else:
        sums = _Prefix(ordered)
        if start is None or len(start) != k:
            levels = _lloyd(sums, _refine(sums, _histogram(sums, k)))
        else:
            levels = _lloyd(sums, start.double().sort().values)
    levels = levels.to(x.dtype)
    return levels, nearest(x, levels)


def _sorted(x: Tensor) -> Tensor:
    """Increasing; on the CPU by NumPy, whose sort is vectorised and twenty times as fast."""
    if x.device.type != "cpu":
        return x.sort().values
    return torch.from_numpy(np.sort(x.detach().numpy()))


def nearest(x: Tensor, levels: Tensor) -> Tensor:
    """The code of the nearest of increasing levels for each number; int64, `(n,)`."""
    return torch.bucketize(x, (levels[1:] + levels[:-1]) / 2)


class _Prefix:
    """Prefix sums of sorted numbers and their squares, about their mean for precision."""

    def __init__(self, ordered: Tensor) -> None:
        self.shift = ordered.mean()
        self.ordered = ordered - self.shift
        zero = ordered.new_zeros(1)
        self.first = torch.cat([zero, self.ordered.cumsum(0)])
        self.second = torch.cat([zero, self.ordered.square().cumsum(0)])

    def cost(self, start: Tensor, stop: Tensor) -> Tensor:
        """Σ (x − mean)² of the sorted numbers from `start` up to `stop`."""
        total = self.first[stop] - self.first[start]
        return self.second[stop] - self.second[start] - total.square() / (stop - start).clamp_min(1)


def _two(ordered: Tensor) -> Tensor:
    """The best split of sorted numbers in two; exact."""
    sums = _Prefix(ordered)
    n = len(ordered)
    left = torch.arange(1, n, device=ordered.device, dtype=torch.float64)
    below = sums.first[1:n]
    above = sums.first[n] - below
    # Σ‖x − mean‖² falls with what the means explain.
    best = int((below.square() / left + above.square() / (n - left)).argmax())
    return torch.stack([below[best] / left[best], above[best] / (n - left[best])]) + sums.shift


def _lloyd(sums: _Prefix, levels: Tensor) -> Tensor:
    levels = levels - sums.shift
    n = len(sums.ordered)
    for _ in range(_LLOYD_STEPS):
        inner = torch.searchsorted(sums.ordered, (levels[1:] + levels[:-1]) / 2)
        ends = torch.cat([inner.new_zeros(1), inner, inner.new_full((1,), n)])
        counts = ends.diff()
        means = sums.first[ends].diff() / counts.clamp_min(1)
        # A level without numbers stays where it is.
        moved = torch.where(counts > 0, means, levels).sort().values
        if torch.equal(moved, levels):
            break
        levels = moved
    return levels + sums.shift


def _histogram(sums: _Prefix, k: int) -> Tensor:
    """Ends of the best clustering of bins, `(k + 1,)`, by dynamic programming over where clusters end.

    Bins are finer where numbers are denser, by the cube root of the density, as the levels of a
    good codebook are.
    """
    bins = min(2048, max(512, 64 * k)) if k <= 64 else 1024
    n = len(sums.ordered)
    ends = _bin_ends(sums.ordered, max(bins, 2 * k)) if n > bins else torch.arange(n + 1)
    ends = ends.to(sums.ordered.device)
    cost = sums.cost(ends[:, None], ends[None, :])
    bad = torch.ones_like(cost, dtype=torch.bool).triu(1).logical_not()
    cost = cost.masked_fill(bad, torch.inf)
    best, origins = cost[0], []
    for _ in range(k - 1):
        best, origin = (best[:, None] + cost).min(0)
        origins.append(origin)
    cuts = [len(ends) - 1]
    for origin in reversed(origins):
        cuts.append(int(origin[cuts[-1]]))
    return ends[torch.tensor([0, *reversed(cuts)], device=ends.device)]


def _refine(sums: _Prefix, ends: Tensor) -> Tensor:
    """Levels of the clustering to which ends lead that move within windows around them."""
    share = torch.linspace(0, 1, _WINDOWS, dtype=torch.float64, device=ends.device)
    reached = float(sums.cost(ends[:-1], ends[1:]).sum())
    for _ in range(_WINDOW_ROUNDS):
        middle = (ends[1:] + ends[:-1]) / 2
        window = middle[:-1, None] + share * (middle[1:] - middle[:-1])[:, None]
        places = torch.cat([window.round().long(), ends[1:-1, None]], 1)
        moved = _shortest(sums, places, len(sums.ordered))
        found = float(sums.cost(moved[:-1], moved[1:]).sum())
        if found >= reached * (1 - 1e-9):
            break
        ends, reached = moved, found
    return sums.first[ends].diff() / ends.diff().clamp_min(1) + sums.shift


def _shortest(sums: _Prefix, places: Tensor, n: int) -> Tensor:
    """The best choice of one place for each inner end, `(k − 1, m)` → all ends, `(k + 1,)`."""
    steps = sums.cost(places[:-1, :, None], places[1:, None, :])
    steps = steps.masked_fill(places[:-1, :, None] >= places[1:, None, :], torch.inf)
    best, origins = sums.cost(places.new_zeros(1), places[0]), []
    for step in steps:
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
