"""The driver of a whole run: the reference first, then the search."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Mapping
from pathlib import Path

from autocompress.distribute import Job, ReferenceJob, WaitJob
from autocompress.engine.driver import SearchDriver
from autocompress.errors import ClusterError
from autocompress.trial import TrialResult


class ReferenceFirst:
    """Has the reference trained, where trials will be, and hands over to the search that begins with it.

    The other workers start meanwhile, and wait.

    Args:
        job: the reference.
        workers: trials at a time.
        ended: the file by which workers are told that the reference has ended.
        begin: makes the search, once the reference is stored.
        report: hears of each of the reference's epochs.

    Attributes:
        search: what runs the trials; None until the reference is stored.
        error: why there will be no reference; None unless it failed.
    """

    def __init__(
        self,
        job: ReferenceJob,
        workers: int,
        ended: Path,
        begin: Callable[[], SearchDriver],
        report: Callable[[Mapping[str, float]], None],
    ) -> None:
        self.begin, self.report, self.ended = begin, report, ended
        # One that a killed run left would end waits at once.
        ended.unlink(missing_ok=True)
        waits = [WaitJob(-number, ended) for number in range(1, workers)]
        self.jobs: deque[ReferenceJob | WaitJob] = deque([job, *waits])
        self.trained = False
        self.search: SearchDriver | None = None
        self.error: Exception | None = None

    @property
    def live(self) -> bool:
        """Whether trials run whose end was never told."""
        return self.search is not None and self.search.live

    def abandon(self) -> None:
        """Record trials that were cut off, so that the same command runs them again."""
        if self.search is not None:
            self.search.abandon()

    def next(self) -> Job | ReferenceJob | WaitJob | None:
        """The reference and the waits, nothing while it trains or after it failed, and then trials."""
        if self.trained and self.search is None:
            self.search = self.begin()
        if self.search is not None:
            return self.search.next()
        return self.jobs.popleft() if self.jobs and self.error is None else None

    def epoch(self, number: int, entry: Mapping[str, float]) -> bool:
        """Report an epoch of the reference, or pass on that of a trial."""
        if self.search is not None:
            return self.search.epoch(number, entry)
        self.report(entry)
        return True

    def completed(self, number: int, result: TrialResult | None) -> None:
        """Take note that the reference is stored, or pass on a trial's result."""
        if number == 0:
            self.trained = True
            self._tell()
        elif number > 0 and self.search is not None:
            self.search.completed(number, result)

    def stopped(self, number: int) -> None:
        """Pass on that a trial was stopped; the reference never is."""
        if number > 0 and self.search is not None:
            self.search.stopped(number)

    def failed(self, number: int, reason: str, error: Exception | None = None) -> None:
        """Take note of why there is no reference, or pass on a trial's failure."""
        if number == 0:
            self.error = error or ClusterError(f"{reason} while the reference trained")
            self._tell()
        elif number > 0 and self.search is not None:
            self.search.failed(number, reason, error)

    def _tell(self) -> None:
        self.ended.parent.mkdir(exist_ok=True)
        self.ended.touch()
