"""What the executor asks of a run: the next job, and to hear how each one ended."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Literal, Protocol

from autocompress.rivals import Rivals
from autocompress.trial import TrialConfig, TrialResult


@dataclass(frozen=True)
class ReferenceJob:
    """The reference to train and store, which is number 0.

    Args:
        seed: of its training.
        threads: it may use more than a trial, because nothing runs beside it.
    """

    seed: int
    threads: int
    number: int = 0


@dataclass(frozen=True)
class WaitJob:
    """Nothing to do until a file is there: a worker starts meanwhile, which then takes trials.

    Tune gives a trial that waits for a new worker the first one that becomes free, and starts none: where
    trials are shorter than a worker's start, no second worker would ever come.

    Args:
        number: below 0.
        until: the file.
    """

    number: int
    until: Path


@dataclass(frozen=True)
class Job:
    """One trial to run, and the points that its model must pass to be kept."""

    number: int
    config: TrialConfig
    rivals: Rivals


@dataclass(frozen=True)
class Failure:
    """Why a job ended without a result.

    Args:
        reason: in a line.
        traceback: where it was raised.
        kind: "memory" or "disk" where that ran out, "checkpoint" where one that it needed is damaged,
            "diverged" where a loss or a metric was no number any more.
        error: itself, where the reference failed.
    """

    reason: str
    traceback: str = ""
    kind: Literal["memory", "disk", "checkpoint", "diverged"] | None = None
    error: Exception | None = None


class Driver(Protocol):
    """A run, as seen by what executes its jobs. All calls come from one thread."""

    def next(self) -> Job | ReferenceJob | WaitJob | None:
        """The next job; None where there is none to start, at least until one that runs has ended."""
        ...

    def epoch(self, number: int, entry: Mapping[str, float]) -> bool:
        """Hear of an epoch; whether to go on with the job."""
        ...

    @property
    def interrupted(self) -> bool:
        """Whether all is to be left as it is, at once; who runs it is not told of how jobs ended."""
        ...

    def overdue(self, number: int, seconds: float) -> bool:
        """Say whether a job that has run for so many seconds is to be ended now, wherever it is.

        It is asked several times a second of each job that runs.
        """
        ...

    def waits(self, number: int, seconds: float) -> None:
        """Hear, several times a second, for how long a job has waited for a worker."""

    def completed(self, number: int, result: TrialResult | None) -> None:
        """Hear that a trial ended with a result; None of the reference, which is stored, and of a wait."""

    def stopped(self, number: int) -> None:
        """Hear that a trial ended early because `epoch` said so."""

    def killed(self, number: int, where: str) -> None:
        """Hear that a job was ended because `overdue` said so; where it was then, as a traceback, which is
        empty where that is not known."""

    def died(self, number: int) -> None:
        """Hear that the process of a job died."""

    def failed(self, number: int, failure: Failure) -> None:
        """Hear that a job ended without a result, and why."""
