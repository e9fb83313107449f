"""Codebooks whose codes have few bits of entropy, against all that a search over thresholds finds."""

from __future__ import annotations

import itertools

import numpy as np
import pytest
import torch

from autocompress.errors import SettingsError
from autocompress.methods.lc import EntropyCodebook
from autocompress.methods.lc.entropy import entropy, entropy_codebook
from autocompress.methods.lc.kmeans import kmeans
from autocompress.methods.lc.scheme import View


@pytest.fixture
def weights() -> torch.Tensor:
    return torch.from_numpy(np.random.default_rng(0).standard_t(3, 20000)).float() * 0.05


def error(x: torch.Tensor, levels: torch.Tensor, codes: torch.Tensor) -> float:
    return float((x - levels[codes]).double().square().sum())


@pytest.mark.parametrize("bits", [0.05, 0.3, 1.0, 2.5])
def test_codes_have_the_bits_that_they_may_and_one_level_is_zero(weights: torch.Tensor, bits: float) -> None:
    levels, codes = entropy_codebook(weights, 16, bits)
    assert 0.9 * bits < entropy(codes, 16) <= bits
    assert int((levels == 0).sum()) == 1


def test_it_loses_less_than_k_means_of_the_same_entropy(weights: torch.Tensor) -> None:
    levels, codes = kmeans(weights, 8)
    trained = entropy_codebook(weights, 32, entropy(codes, 8))
    assert error(weights, *trained) < 0.8 * error(weights, levels, codes)


def test_with_three_levels_it_is_as_good_as_any_thresholds() -> None:
    x = torch.from_numpy(np.random.default_rng(1).laplace(size=3000))
    levels, codes = entropy_codebook(x, 3, 0.6)
    best = np.inf
    edges = torch.linspace(0.2, 5, 49, dtype=x.dtype)
    for low, high in itertools.product(-edges, edges):
        tried = (x > low).long() + (x > high).long()
        if entropy(tried, 3) <= 0.6:
            outer = [
                x[tried == side].mean() if bool((tried == side).any()) else x.new_zeros(()) for side in (0, 2)
            ]
            centres = torch.stack([outer[0], x.new_zeros(()), outer[1]])
            best = min(best, error(x, centres, tried))
    assert error(x, levels, codes) < 1.02 * best


def test_more_bits_than_are_needed_are_those_of_k_means(weights: torch.Tensor) -> None:
    levels, codes = entropy_codebook(weights, 4, 8.0)
    assert error(weights, levels, codes) < 1.2 * error(weights, *kmeans(weights, 4))


@pytest.mark.parametrize("x", [[0.0] * 30, [-0.7] * 30, [0.4], [1.0, -1.0, 1.0, 0.5, -0.5, 0.5]])
def test_few_numbers_and_equal_ones_are_fine(x: list[float]) -> None:
    numbers = torch.tensor(x)
    levels, codes = entropy_codebook(numbers, 4, 8.0)
    assert levels.isfinite().all()
    assert codes.shape == numbers.shape
    assert int(codes.max()) < len(levels)


def test_later_steps_go_on_from_the_last_levels(weights: torch.Tensor) -> None:
    scheme, view = EntropyCodebook(bits=0.5, k=8), View(((20000,),))
    first = scheme.solve(weights, 1.0, view)
    again = scheme.solve(weights, 1.0, view, first)
    distances = [float((weights - encoding.dense()).square().sum()) for encoding in (first, again)]
    assert distances[1] < 1.02 * distances[0]


@pytest.mark.parametrize(
    ("options", "message"),
    [({"bits": 0.0}, r"bits must be in \(0, 8\]"), ({"k": 1}, r"k must be in \[2, 256\]")],
)
def test_settings_out_of_range_are_refused(options: dict[str, float], message: str) -> None:
    with pytest.raises(SettingsError, match=message):
        EntropyCodebook(**options)  # type: ignore[arg-type]
