"""MO-ASHA: trials that others are ahead of in all objectives, or crowd out, are stopped early.

Schmucker et al., *Multi-objective Asynchronous Successive Halving*, arXiv 2106.12639, in the variant that
stops trials instead of pausing them: a trial is compared once, with those that reached the rung before it.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from autocompress.measure import Objective
from autocompress.pareto import preference
from autocompress.study import SearchStudy

# The paper's η, and a first rung after one epoch.
REDUCTION, FIRST_RUNG = 3, 1
# What is compared at rungs in the place of what only files have.
_INSTEAD = {"latency": "macs", "memory": "weight_bytes"}


def rungs(epochs: int) -> tuple[int, ...]:
    """Epochs after which trials are compared, r_min·η^k, without the last one, which stops nothing."""
    compared, epoch = [], FIRST_RUNG
    while epoch < epochs:
        compared.append(epoch)
        epoch *= REDUCTION
    return tuple(compared)


class MoAsha:
    """Compares what trials would give if they ended now. All that it knows is in the study, so that it goes
    on after a resume, and where other processes search in the same study.

    What only files have is not measured at rungs: MACs are compared in the place of latency, bytes of weights
    in that of memory.

    Args:
        study: where rungs are recorded.
        objectives: of the search, primary first.
    """

    def __init__(self, study: SearchStudy, objectives: Sequence[Objective]) -> None:
        self.study = study
        # A metric once, where it is an objective and stands for another one as well.
        self.signs = {_compared(o.metric): -1.0 if o.maximised else 1.0 for o in objectives}

    def stops(self, number: int, epoch: int, metrics: Mapping[str, float]) -> str | None:
        """Record a trial at a rung, and judge it.

        Args:
            number: of the trial.
            epoch: the rung.
            metrics: of the model that the trial would end with now.

        Returns:
            Why it stops, in a line; None where it goes on.
        """
        self.study.record_rung(number, epoch, metrics)
        standings = self.study.rung(epoch)
        position = list(standings).index(number)
        better = ahead([self._costs(standing) for standing in standings.values()], position)
        if goes_on(better, len(standings)):
            return None
        return f"stopped at rung {epoch}: {better} of the {len(standings) - 1} others there are better"

    def _costs(self, metrics: Mapping[str, float]) -> list[float]:
        return [sign * metrics[name] for name, sign in self.signs.items()]


def ahead(costs: Sequence[Sequence[float]], position: int) -> int:
    """How many points come before one, in the order of fronts and within a front of its ε-net."""
    return preference(costs).index(position)


def goes_on(better: int, trials: int) -> bool:
    """Whether a trial is among the best 1/η of its rung: those before it are no greater share of it.

    Of fewer than η trials 1/η is not one: all go on.
    """
    return trials < REDUCTION or better * REDUCTION <= trials


def _compared(metric: str) -> str:
    return _INSTEAD.get(metric, metric)
