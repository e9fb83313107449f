"""The driver of a whole run: the reference first, then the search."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Mapping
from pathlib import Path

from autocompress.distribute import Failure, Job, ReferenceJob, WaitJob
from autocompress.engine.driver import WAIT_SECONDS, WAITS, SearchDriver
from autocompress.engine.interruption import Interruption
from autocompress.engine.saving import Saver
from autocompress.errors import ClusterError, SearchFailedError
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
        interruption: ends the reference too.
        note: shows a line.
        saver: uploads the run to its store; None where it is in none.

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
        interruption: Interruption | None = None,
        note: Callable[[str], None] = lambda text: None,
        saver: Saver | None = None,
    ) -> None:
        self.saver = saver
        self.begin, self.report, self.ended, self.note = begin, report, ended, note
        self.interruption = interruption or Interruption()
        # One that a killed run left would end waits at once.
        ended.unlink(missing_ok=True)
        waits = [WaitJob(-number, ended) for number in range(1, workers)]
        self.jobs: deque[ReferenceJob | WaitJob] = deque([job, *waits])
        self.trained = self.waited = False
        self.search: SearchDriver | None = None
        self.error: Exception | None = None

    @property
    def fatal(self) -> Exception | None:
        """What ended the search, of what no trial has to do with."""
        if self.search is not None:
            return self.search.fatal
        return None if self.saver is None else self.saver.error

    @property
    def live(self) -> bool:
        """Whether trials run whose end was never told."""
        return self.search is not None and self.search.live

    def leave(self) -> None:
        """Record nothing of trials that are cut off: the next call does."""
        if self.search is not None:
            self.search.leave()

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
        ended = self.error is not None or self.fatal is not None or self.interruption.overdue
        return self.jobs.popleft() if self.jobs and not ended else None

    def epoch(self, number: int, entry: Mapping[str, float]) -> bool:
        """Report an epoch of the reference, or pass on that of a trial."""
        if self.search is not None:
            return self.search.epoch(number, entry)
        self.report(entry)
        return True

    @property
    def interrupted(self) -> bool:
        """Whether a signal came."""
        return self.interruption.signum is not None

    def overdue(self, number: int, seconds: float) -> bool:
        """Whether the search is over before it began, or a trial of it is to be ended."""
        if number > 0 and self.search is not None:
            return self.search.overdue(number, seconds)
        return self.fatal is not None or self.interruption.overdue

    def waits(self, number: int, seconds: float) -> None:
        """Say that nothing has begun yet, or pass on that a trial waits."""
        if self.search is not None:
            self.search.waits(number, seconds)
        elif number == 0 and seconds > WAIT_SECONDS and not self.waited:
            self.waited = True
            self.note(f"the reference {WAITS}")

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

    def killed(self, number: int, where: str) -> None:
        """Take note that there was no time for the reference, or pass on that a trial was ended."""
        if number == 0 and self.fatal is None and self.interruption.signum is None:
            self._fail(
                SearchFailedError(
                    f"timeout must leave time to train the reference but {self.interruption.timeout:g} s "
                    "were over before (give more)"
                )
            )
        elif number > 0 and self.search is not None:
            self.search.killed(number, where)

    def died(self, number: int) -> None:
        """Take note that the reference's process died, or pass on that a trial's did."""
        if number == 0:
            self._fail(ClusterError("the worker process died while the reference trained"))
        elif number > 0 and self.search is not None:
            self.search.died(number)

    def failed(self, number: int, failure: Failure) -> None:
        """Take note of why there is no reference, or pass on a trial's failure."""
        if number == 0:
            self._fail(failure.error or ClusterError(failure.reason))
        elif number > 0 and self.search is not None:
            self.search.failed(number, failure)

    def _fail(self, error: Exception) -> None:
        self.error = error
        self._tell()

    def _tell(self) -> None:
        self.ended.parent.mkdir(exist_ok=True)
        self.ended.touch()
