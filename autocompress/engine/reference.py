"""The driver of a whole run: the reference first, then the search."""

from __future__ import annotations

from collections.abc import Callable, Mapping

from autocompress.distribute import Job, ReferenceJob
from autocompress.engine.driver import SearchDriver
from autocompress.errors import ClusterError
from autocompress.trial import TrialResult


class ReferenceFirst:
    """Has the reference trained, where trials will be, and hands over to the search that begins with it.

    Args:
        job: the reference.
        begin: makes the search, once the reference is stored.
        report: hears of each of the reference's epochs.

    Attributes:
        search: what runs the trials; None until the reference is stored.
        error: why there will be no reference; None unless it failed.
    """

    def __init__(
        self,
        job: ReferenceJob,
        begin: Callable[[], SearchDriver],
        report: Callable[[Mapping[str, float]], None],
    ) -> None:
        self.begin, self.report = begin, report
        self.waiting: ReferenceJob | None = job
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

    def next(self) -> Job | ReferenceJob | None:
        """The reference, nothing while it trains or after it failed, and then the search's trials."""
        if self.trained and self.search is None:
            self.search = self.begin()
        if self.search is not None:
            return self.search.next()
        job, self.waiting = self.waiting, None
        return job

    def epoch(self, number: int, entry: Mapping[str, float]) -> bool:
        """Report an epoch of the reference, or pass on that of a trial."""
        if self.search is not None:
            return self.search.epoch(number, entry)
        self.report(entry)
        return True

    def completed(self, number: int, result: TrialResult | None) -> None:
        """Take note that the reference is stored, or pass on a trial's result."""
        if self.search is not None:
            self.search.completed(number, result)
        self.trained = True

    def stopped(self, number: int) -> None:
        """Pass on that a trial was stopped; the reference never is."""
        if self.search is not None:
            self.search.stopped(number)

    def failed(self, number: int, reason: str, error: Exception | None = None) -> None:
        """Take note of why there is no reference, or pass on a trial's failure."""
        if self.search is not None:
            self.search.failed(number, reason, error)
        else:
            self.error = error or ClusterError(f"{reason} while the reference trained")
