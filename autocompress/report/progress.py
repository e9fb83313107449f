"""What a search tells whoever watches it."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass


@dataclass(frozen=True)
class TrialEnd:
    """How a trial ended.

    Args:
        number: of the trial.
        state: "complete", "pruned" or "fail".
        metrics: of the model, of one that was stopped early as it was then; empty where there are none.
        reference: metrics of the reference.
        remark: what else there is to say.
    """

    number: int
    state: str
    metrics: Mapping[str, float]
    reference: Mapping[str, float]
    remark: str


class Progress:
    """Receives the events of a search; this base class shows none of them."""

    def note(self, text: str) -> None:
        """A line worth reading."""

    def reference_epoch(self, epoch: int, epochs: int) -> None:
        """The reference finished an epoch."""

    def trials_begin(self, done: int, total: int) -> None:
        """Trials start, some of them done by an earlier call."""

    def trial_epoch(self, number: int, epoch: int, epochs: int) -> None:
        """A trial started (epoch 0) or finished an epoch."""

    def trial_end(self, end: TrialEnd) -> None:
        """A trial ended."""

    def final(self, done: int, total: int) -> None:
        """Points of the front are measured once more."""

    def close(self) -> None:
        """The search ended; take the live display down."""
