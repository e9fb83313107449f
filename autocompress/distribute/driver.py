"""What the executor asks of the search: the next job, and to hear how each one ended."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Protocol

from autocompress.rivals import Rivals
from autocompress.trial import TrialConfig, TrialResult


@dataclass(frozen=True)
class Job:
    """One trial to run, and the points that its model must pass to be kept."""

    number: int
    config: TrialConfig
    rivals: Rivals


class Driver(Protocol):
    """The search, as seen by what executes its trials. All calls come from one thread."""

    def next(self) -> Job | None:
        """The next trial; None where there is none to start, at least until one that runs has ended."""
        ...

    def epoch(self, number: int, entry: Mapping[str, float]) -> bool:
        """Hear of an epoch; whether to go on with the trial."""
        ...

    def completed(self, number: int, result: TrialResult) -> None:
        """Hear that a trial ended with a result."""

    def stopped(self, number: int) -> None:
        """Hear that a trial ended early because `epoch` said so."""

    def failed(self, number: int, reason: str) -> None:
        """Hear that a trial ended without a result, and why."""
