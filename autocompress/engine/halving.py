"""Multi-objective successive halving: after a rung, the dominated half of the trials is stopped.

Jamieson & Talwalkar, *Non-stochastic Best Arm Identification*, 2016, with Pareto ranks instead of a
single score, and asynchronous: a trial is compared with those that reached the rung before it.
"""

from __future__ import annotations

import math
from collections.abc import Mapping

from autocompress.pareto import dominates

LEAST_TRIALS = 4


class Halving:
    """Compares (training loss, mean keep ratio) of trials at a quarter and half of their epochs.

    Args:
        epochs: of one trial.
    """

    def __init__(self, epochs: int) -> None:
        self.rungs = sorted({math.ceil(epochs / 4), math.ceil(epochs / 2)} - {epochs})
        self.seen: dict[int, dict[int, tuple[float, float]]] = {rung: {} for rung in self.rungs}
        self.last_ratio: dict[int, float] = {}

    def promising(self, number: int, entry: Mapping[str, float]) -> bool:
        """Whether a trial that reports an epoch should go on."""
        ratios = [value for name, value in entry.items() if name.startswith("ratio/")]
        if ratios:
            self.last_ratio[number] = sum(ratios) / len(ratios)
        epoch = int(entry["epoch"])
        if epoch not in self.seen:
            return True
        standing = (entry["loss"], self.last_ratio.get(number, 1.0))
        rung = self.seen[epoch]
        rung[number] = standing
        if len(rung) < LEAST_TRIALS:
            return True
        # Pareto strength: how many others dominate each trial; the worse half is stopped.
        beaten_by = {n: sum(dominates(o, v) for o in rung.values()) for n, v in rung.items()}
        if beaten_by[number] == 0:
            return True
        better = sum(1 for n, count in beaten_by.items() if count < beaten_by[number] and n != number)
        return better < len(rung) / 2
