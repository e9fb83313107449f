"""One-dimensional k-means against exhaustive search and scikit-learn."""

from __future__ import annotations

import itertools

import numpy as np
import pytest
import torch
from sklearn.cluster import KMeans

from autocompress.methods.lc.kmeans import kmeans, nearest


def distortion(x: np.ndarray, levels: np.ndarray) -> float:
    return float(np.square(x[:, None] - levels[None]).min(1).sum())


def best(x: np.ndarray, k: int) -> float:
    """The least distortion over all ways to cut the sorted numbers."""
    ordered, least = np.sort(x), np.inf
    for cuts in itertools.combinations(range(1, len(x)), k - 1):
        parts = np.split(ordered, cuts)
        least = min(least, sum(float(np.square(p - p.mean()).sum()) for p in parts))
    return least


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


@pytest.mark.parametrize("k", [2, 3, 16, 64])
@pytest.mark.parametrize("draw", ["normal", "clusters", "outlier", "ties", "one level"])
def test_each_number_has_the_code_of_its_nearest_level(k: int, draw: str) -> None:
    rng = np.random.default_rng(0)
    x = {
        "normal": rng.normal(size=3000),
        "clusters": rng.normal(rng.integers(0, 20, 3000), 0.05),
        "outlier": np.append(rng.normal(size=2999), 1e6),  # nearly all borders lie in one cell
        "ties": np.round(rng.normal(size=3000), 1),
        "one level": np.full(3000, 0.3),
    }[draw].astype(np.float32)
    levels = np.quantile(x, np.linspace(0, 1, k)).astype(np.float32)
    codes = nearest(torch.from_numpy(x), torch.from_numpy(levels)).numpy()
    assert np.array_equal(codes, np.searchsorted((levels[1:] + levels[:-1]) / 2, x))
    assert np.allclose(np.abs(x - levels[codes]), np.abs(x[:, None] - levels[None]).min(1), atol=1e-6)


def test_a_later_c_step_is_of_bounded_length_and_those_after_it_go_on(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    x = torch.randn(20000, generator=torch.Generator().manual_seed(0))
    steps: list[int] = []
    original = torch.searchsorted

    def counted(*args: torch.Tensor) -> torch.Tensor:
        steps.append(1)
        return original(*args)

    monkeypatch.setattr(torch, "searchsorted", counted)
    levels, reached = torch.linspace(-0.01, 0.01, 16), []
    for _ in range(20):
        steps.clear()
        levels, _ = kmeans(x, 16, levels)
        assert 1 <= len(steps) <= 30
        reached.append(distortion(x.numpy(), levels.numpy()))
    assert all(later <= earlier * (1 + 1e-6) for earlier, later in itertools.pairwise(reached))
    assert reached[0] > 1.3 * reached[-1]
    assert len(steps) < 30
    assert reached[-1] <= distortion(x.numpy(), kmeans(x, 16)[0].numpy()) * 1.01
