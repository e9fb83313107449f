"""Resamples: their distribution, and that they follow the rows and nothing else."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from scipy.stats import chisquare, poisson

from autocompress.measure.resampling import REPLICATES, Resamples, repeated


def test_weights_are_poisson_of_mean_one() -> None:
    weights = Resamples().draw(5000).numpy()
    counts = np.bincount(weights.ravel(), minlength=7)
    expected = poisson.pmf(np.arange(6), 1) * weights.size
    tail = weights.size - expected.sum()
    assert chisquare([*counts[:6], counts[6:].sum()], [*expected, tail]).pvalue > 0.01
    assert weights.mean() == pytest.approx(1, abs=0.005)
    assert weights.var() == pytest.approx(1, abs=0.01)


def test_resamples_and_rows_are_independent() -> None:
    weights = Resamples().draw(4000).double()
    correlations = torch.corrcoef(weights.T) - torch.eye(REPLICATES)
    assert correlations.abs().max() < 5 / 4000**0.5
    neighbours = torch.corrcoef(torch.stack([weights[:-1].flatten(), weights[1:].flatten()]))[0, 1]
    assert abs(neighbours) < 0.01


def test_weights_follow_the_rows_however_they_are_batched() -> None:
    together, apart = Resamples(), Resamples()
    expected = together.draw(50)
    assert torch.equal(torch.cat([apart.draw(rows) for rows in (1, 2, 0, 17, 30)]), expected)


def test_a_row_is_repeated_as_often_as_its_weight() -> None:
    assert repeated(torch.tensor([0, 2, 1, 0, 3], dtype=torch.uint8)).tolist() == [1, 1, 2, 4, 4, 4]
