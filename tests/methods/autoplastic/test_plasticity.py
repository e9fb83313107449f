"""The published rule's equations against NumPy."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from autocompress.methods.autoplastic.plasticity import Plasticity, averaged, channel_stability, stability

RULE = Plasticity(
    relative=False, decay=0.9, epsilon=0.85, eta=0.005, p_min=0.5, c_min=0.4, c_max=0.995
)  # as published


@pytest.fixture
def weights() -> tuple[np.ndarray, np.ndarray]:
    rng = np.random.default_rng(0)
    average = rng.normal(size=(6, 4, 3, 3))
    return average + 0.01 * rng.normal(size=average.shape), average


@pytest.mark.parametrize("relative", [False, True])
def test_stability_of_a_block_and_of_each_channel(
    weights: tuple[np.ndarray, np.ndarray], relative: bool
) -> None:
    now, then = weights
    moved, size = np.linalg.norm(now - then), np.linalg.norm(then)
    expected = np.exp(-moved / size if relative else -moved)
    now_t, then_t = torch.tensor(now), torch.tensor(then)
    assert stability(now_t, then_t, relative).item() == pytest.approx(expected)
    for channel, value in enumerate(channel_stability(now_t, then_t, relative).tolist()):
        moved, size = np.linalg.norm(now[channel] - then[channel]), np.linalg.norm(then[channel])
        assert value == pytest.approx(np.exp(-moved / size if relative else -moved))


def test_averages_follow_the_weights_by_a_tenth(weights: tuple[np.ndarray, np.ndarray]) -> None:
    now, then = weights
    average = averaged(torch.tensor(now), torch.tensor(then), 0.9)
    assert np.allclose(average.numpy(), 0.9 * then + 0.1 * now)


def test_inclusion_rises_below_epsilon_and_falls_from_it_on_within_its_bounds() -> None:
    s = np.array([0.0, 0.3, 0.849, 0.85, 0.97, 1.0, 0.2, 0.9])
    p = np.array([0.7, 0.7, 0.7, 0.7, 0.7, 0.7, 0.999, 0.501])
    rise, fall = 0.005 * np.maximum(0.05, 1 - s), 0.005 * np.maximum(0.05, s)
    expected = np.clip(np.where(s < 0.85, p + rise, p - fall), 0.5, 1.0)
    assert np.allclose(RULE.inclusion(torch.tensor(p), torch.tensor(s)).numpy(), expected)
    assert expected[6] == 1.0
    assert expected[7] == 0.5


def test_connectivity_rises_where_unstable_and_falls_where_gradients_are_lowest() -> None:
    rng = np.random.default_rng(1)
    s, gradient = rng.uniform(0.6, 1.0, 20), rng.uniform(size=20)
    c = rng.uniform(0.4, 0.995, 20)
    s[:2], c[:2], gradient[:2] = (0.0, 1.0), (0.994, 0.401), (1.0, 0.0)
    expected = np.where(s < 0.85, c + 0.005 * np.maximum(0.05, 1 - s), c)
    quiet = gradient <= np.quantile(gradient, 0.2)
    expected = np.clip(np.where(quiet, expected - 0.005, expected), 0.4, 0.995)
    connectivity = RULE.connectivity(torch.tensor(c), torch.tensor(s), torch.tensor(gradient))
    assert np.allclose(connectivity.numpy(), expected)
    assert quiet.sum() == 4
    assert connectivity[0] == pytest.approx(0.995)
    assert connectivity[1] == pytest.approx(0.4)


def test_mixing_is_trained_in_unstable_blocks_alone() -> None:
    assert RULE.trains_mixing(torch.tensor([0.2, 0.85, 0.9])).tolist() == [True, False, False]
