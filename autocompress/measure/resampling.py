"""Standard errors by bootstrap, with resamples that all models of a split have in common.

A validation split is a sample of rows; with other rows a metric would have come out differently. The
bootstrap draws the rows anew, with replacement, and takes the standard deviation of the metric over the
draws (Efron & Tibshirani, *An Introduction to the Bootstrap*, 1993, equation 6.6; its section 6.4 finds 50 to
200 draws enough for a standard error: with 100 the error is itself known to 1/√198, 7 %).

A draw of n rows with replacement takes each row Binomial(n, 1/n) times, which is Poisson(1) but for the
condition that they add up to n. Weights of Poisson(1), independent from row to row, need neither n nor the
rows again, so that batches can be forgotten as they pass (Oza & Russell, *Online Bagging and Boosting*, 2001;
Chamandy et al., *Estimating Uncertainty for Massive Data Streams*, Google, 2012).

The weights come from a fixed seed in the order of the rows, however these are batched. So two models that
are measured on the same split share their resamples, and the differences of their replicates are paired:
what is hard on both cancels.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

REPLICATES = 100
# Any constant; not one that data of an example or a test are likely to be drawn from, too.
_SEED = 0x0DDB_A11D_5EED


def _poisson_table() -> NDArray[np.uint8]:
    """Poisson(1) as 2^16 equally likely weights: right to 10⁻⁵, and drawn ten times as fast as by NumPy."""
    below = np.cumsum([math.exp(-1) / math.factorial(weight) for weight in range(10)])
    return np.searchsorted(np.round(below * 2**16), np.arange(2**16), side="right").astype(np.uint8)


_POISSON = _poisson_table()


@dataclass(frozen=True)
class Score:
    """A metric's value over a split, its replicates over resampled rows, and its standard error.

    Args:
        value: over the rows as they are.
        replicates: over each resample that the metric is defined for, to 6 significant digits. Two lists
            of `REPLICATES` entries are of the same resamples, one by one; shorter ones need not be.
        error: standard deviation of the replicates; NaN where it is not known.
    """

    value: float
    replicates: list[float]
    error: float


class Resamples:
    """Weights of the rows of one split, drawn as the rows come."""

    def __init__(self) -> None:
        self._generator = np.random.default_rng(_SEED)

    def draw(self, rows: int) -> Tensor:
        """How often each of the next rows is in each resample, `(rows, REPLICATES)`, uint8."""
        uniform = self._generator.integers(0, len(_POISSON), (rows, REPLICATES), dtype=np.uint16)
        return torch.from_numpy(_POISSON[uniform])


def repeated(weights: Tensor) -> Tensor:
    """Row indices, each as often as its weight says, `(rows,)` → `(sum of weights,)`."""
    return torch.arange(len(weights)).repeat_interleave(weights.long())


def score_of(value: float, replicates: Sequence[float], least: float = math.nan) -> Score:
    """A value with what its replicates say of it.

    Replicates that are not finite are left out. Where fewer than half are left, none is kept and the error is
    NaN. So it is where all are equal, as for a function that is 1 on every row: that says that these rows
    cannot tell the error, not that there is none.

    Args:
        value: over the rows as they are.
        replicates: one for each resample, NaN where the metric is not defined.
        least: the error is no less, where it is known better; NaN where it is not.
    """
    usable = [replicate for replicate in replicates if math.isfinite(replicate)]
    if len(usable) < REPLICATES / 2:
        return Score(value, [], least)
    deviation = float(np.std(usable, ddof=1))
    # Equal replicates may differ in their last bit, as sums in another order do.
    if deviation <= 1e-12 * max(map(abs, usable)):
        deviation = math.nan
    error = float(np.fmax(deviation, least))
    return Score(value, rounded(usable), error)


def rounded(replicates: Iterable[float]) -> list[float]:
    """To 6 significant digits: a hundred of them are stored for each metric of each trial."""
    return [float(f"{replicate:.6g}") for replicate in replicates]
