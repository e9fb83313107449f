"""What a search tells whoever watches it."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from autocompress.measure import Objective


@dataclass(frozen=True)
class TrialBegin:
    """What a trial is going to do.

    Args:
        number: of the trial.
        parent: number of the trial that it starts from; 0 is the reference.
        move: what it does to its parent, in a few words.
        epochs: that it trains; 0 where it only stores weights as codes.
    """

    number: int
    parent: int
    move: str
    epochs: int


@dataclass(frozen=True)
class TrialEnd:
    """How a trial ended.

    Args:
        number: of the trial.
        state: "complete", "pruned" or "fail".
        metrics: of the model, of one that was stopped early as it was then; empty where there are none.
        reference: metrics of the reference.
        remark: what else there is to say; of a trial that failed, why.
        feasible: whether the model satisfies the constraints.
        extra: whether the trial is beside the budget, as those are that store weights as codes.
    """

    number: int
    state: str
    metrics: Mapping[str, float]
    reference: Mapping[str, float]
    remark: str
    feasible: bool = True
    extra: bool = False


class Progress:
    """Receives the events of a search; this base class shows none of them."""

    def search_begins(self, objectives: Sequence[Objective]) -> None:
        """The search looks for models that are good in these objectives."""

    def note(self, text: str) -> None:
        """A line worth reading."""

    def reference_epoch(self, epoch: int, epochs: int) -> None:
        """The training of the reference started (epoch 0) or finished an epoch; of 0 epochs where it has
        weights, and is only measured."""

    def trials_before(self, ends: Sequence[TrialEnd]) -> None:
        """How the trials of earlier calls ended."""

    def trials_begin(self, done: int, total: int) -> None:
        """Trials start, some of them done by an earlier call."""

    def trial_begin(self, begin: TrialBegin) -> None:
        """A trial starts."""

    def trial_epoch(self, number: int, epoch: int, epochs: int) -> None:
        """A trial started (epoch 0) or finished an epoch."""

    def epoch_log(self, number: int, values: Mapping[str, float]) -> None:
        """What an epoch logged, such as its loss, of a trial or of the reference, which is trial 0."""

    def trial_end(self, end: TrialEnd) -> None:
        """A trial ended."""

    def final(self, done: int, total: int) -> None:
        """Points of the front are measured once more."""

    def close(self) -> None:
        """The search ended; take the live display down."""
