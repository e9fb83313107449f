"""One-dimensional k-means against exhaustive search and scikit-learn."""

from __future__ import annotations

import itertools

import numpy as np
import pytest
import torch
from sklearn.cluster import KMeans

from autocompress.methods.lc.kmeans import kmeans


def distortion(x: np.ndarray, levels: np.ndarray) -> float:
    return float(np.square(x[:, None] - levels[None]).min(1).sum())


def best(x: np.ndarray, k: int) -> float:
    """The least distortion over all ways to cut the sorted numbers."""
    ordered, found = np.sort(x), np.inf
    for cuts in itertools.combinations(range(1, len(x)), k - 1):
        parts = np.split(ordered, cuts)
        found = min(found, sum(float(np.square(p - p.mean()).sum()) for p in parts))
    return found


@pytest.mark.parametrize("k", [1, 2, 3, 4])
@pytest.mark.parametrize("seed", range(5))
def test_small_problems_are_solved_exactly(k: int, seed: int) -> None:
    x = np.random.default_rng(seed).standard_t(2, 14)
    levels, codes = kmeans(torch.from_numpy(x), k)
    assert distortion(x, levels.numpy()) == pytest.approx(best(x, k), rel=1e-9)
    assert np.allclose(np.square(x - levels.numpy()[codes]).sum(), distortion(x, levels.numpy()))


@pytest.mark.parametrize("k", [2, 4, 16, 64])
@pytest.mark.parametrize("draw", ["normal", "heavy", "uniform", "clusters"])
def test_no_worse_than_ten_restarts_of_scikit_learn(k: int, draw: str) -> None:
    rng = np.random.default_rng(0)
    x = {
        "normal": rng.normal(size=6000),
        "heavy": rng.standard_t(3, 6000),
        "uniform": rng.uniform(size=6000),
        "clusters": rng.normal(rng.integers(0, 20, 6000), 0.05),
    }[draw].astype(np.float32)
    levels, _ = kmeans(torch.from_numpy(x), k)
    theirs = KMeans(k, n_init=10, random_state=0).fit(x[:, None])
    assert distortion(x, levels.numpy()) <= theirs.inertia_ * (1 + 1e-4)


@pytest.mark.parametrize("x", [[0.5] * 9, [0.0] * 4, [1.0], [3.0, -1.0], [1.0, 1.0, 2.0]])
@pytest.mark.parametrize("k", [1, 2, 3, 8])
def test_few_distinct_numbers(x: list[float], k: int) -> None:
    values = torch.tensor(x)
    levels, codes = kmeans(values, k)
    assert len(levels) <= k
    if len(set(x)) <= k:
        assert torch.equal(levels[codes], values)
    else:
        assert distortion(values.numpy(), levels.numpy()) == pytest.approx(best(values.numpy(), k))


def test_starting_from_other_levels_leads_to_a_fixed_point() -> None:
    x = torch.randn(3000, generator=torch.Generator().manual_seed(0))
    levels, codes = kmeans(x, 8, torch.linspace(-2, 2, 8))
    means = torch.stack([x[codes == i].double().mean() for i in range(8)]).float()
    assert torch.allclose(levels, means, atol=1e-5)


@pytest.mark.parametrize("k", [4, 16])
@pytest.mark.parametrize("moved", [1e-3, 1e-2])
def test_the_last_levels_are_as_good_a_start_as_a_histogram(k: int, moved: float) -> None:
    generator = torch.Generator().manual_seed(0)
    x = 0.05 * torch.randn(20000, generator=generator)
    levels, codes = kmeans(x, k)
    # As a few optimiser steps leave it: nearer to the levels, and moved.
    later = 0.8 * x + 0.2 * levels[codes] + moved * torch.randn(20000, generator=generator)
    warm, cold = (distortion(later.numpy(), kmeans(later, k, start)[0].numpy()) for start in (levels, None))
    assert warm <= cold * 1.01
