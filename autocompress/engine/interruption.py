"""What ends a search before its budget does: a signal, or its time limit."""

from __future__ import annotations

import _thread
import contextlib
import math
import signal
import threading
import time
from collections.abc import Callable, Iterator
from types import FrameType, TracebackType
from typing import Any

# Of the time limit, at most, what is kept for measuring the front when no trial runs any more; and what a
# trial may take beyond its part to end an epoch, in seconds.
_SHARE_OF_END, _MOST_FOR_END, _GRACE = 0.1, 60.0, 3.0
# Those that ask a process to end; a terminal that is closed sends the last. Windows lacks it.
_SIGNALS = [getattr(signal, name) for name in ("SIGINT", "SIGTERM", "SIGHUP") if hasattr(signal, name)]
INTERRUPTED = 128  # and the number of the signal are the exit code


class Interrupted(KeyboardInterrupt):
    """A signal came while nothing asked whether one did."""


class TimeOver(Interrupted):
    """The time limit came while nothing asked for it."""


class Interruption:
    """Says whether a search is to end before its budget, and ends what does not ask.

    Inside of it, SIGINT, SIGTERM and SIGHUP raise `Interrupted` in the main thread, and a time limit that was
    missed by some seconds raises `TimeOver`; inside of `asked` both are only noted, for who asks at places
    where ending leaves nothing half done. A second signal ends the process at once. Signals that are ignored,
    as by nohup, stay so. In any other thread than the main one nothing is raised: a time limit holds where it
    is asked for.

    Args:
        timeout: seconds from now on; None is no limit.
        at_once: ends the process at a second signal, whose number it is given; None has the handlers that
            were there before hear of it.

    Attributes:
        signum: the signal that came; None where none did.
    """

    def __init__(self, timeout: float | None = None, at_once: Callable[[int], object] | None = None) -> None:
        self.timeout, self.at_once = timeout, at_once
        limit = math.inf if timeout is None else timeout
        self._end = time.monotonic() + limit
        self._trials_end = self._end - min(_SHARE_OF_END * limit, _MOST_FOR_END)
        self.signum: int | None = None
        self._is_asked = self._is_late = self._is_over = False
        self._before: dict[int, Any] = {}
        self._alarm: threading.Timer | None = None
        self._ringing = threading.Lock()

    def __enter__(self) -> Interruption:
        if threading.current_thread() is threading.main_thread():
            for signum in _SIGNALS:
                before = signal.getsignal(signum)
                if before is not signal.SIG_IGN:
                    self._before[signum] = before
                    signal.signal(signum, self._hear)
            if self.timeout is not None:
                self._alarm = threading.Timer(min(self.left + _GRACE, threading.TIMEOUT_MAX), self._ring)
                self._alarm.daemon = True
                self._alarm.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._is_asked = True
        if self._alarm is not None:
            self._alarm.cancel()
        with self._ringing:
            self._restore()

    @property
    def left(self) -> float:
        """Seconds that are left, at least 0; infinite without a limit."""
        return max(0.0, self._end - time.monotonic())

    @property
    def late(self) -> bool:
        """Whether the time for trials is over; what is left is for measuring the front."""
        return time.monotonic() > self._trials_end

    @property
    def overdue(self) -> bool:
        """Whether what trains is to be ended wherever it is."""
        return self.signum is not None or time.monotonic() > self._trials_end + _GRACE

    @contextlib.contextmanager
    def asked(self) -> Iterator[None]:
        """Only note inside what comes; for what asks `late` and `overdue` some times a second."""
        with self._asking(True):
            # Ray has put a handler of its own in the place of ours.
            for signum in self._before:
                signal.signal(signum, self._hear)
            yield

    def over(self) -> None:
        """The search has ended, in time or not: what it ends with is not lost to the time limit any more."""
        with self._ringing:
            self._is_over = True

    @contextlib.contextmanager
    def raised(self) -> Iterator[None]:
        """Raise what comes, inside of `asked`; for what may wait and does not ask."""
        with self._asking(False):
            yield

    @contextlib.contextmanager
    def _asking(self, is_asked: bool) -> Iterator[None]:
        before, self._is_asked = self._is_asked, is_asked
        try:
            yield
        finally:
            self._is_asked = before

    def hand_on(self) -> None:
        """Have what would have heard of SIGTERM or SIGHUP hear of it, once the search has ended."""
        if self.signum not in (None, signal.SIGINT):
            signal.raise_signal(self.signum)

    def _hear(self, signum: int, frame: FrameType | None) -> None:
        if self._is_late and signum == signal.SIGTERM:
            self._is_late = False
            if self._is_asked:
                return
            raise TimeOver
        if self.signum is not None:
            self._restore()
            if self.at_once is not None:
                self.at_once(signum)
            signal.raise_signal(signum)
            return
        self.signum = signum
        if not self._is_asked:
            raise Interrupted

    def _ring(self) -> None:
        """End what the main thread waits for, such as data of the user's that never come."""
        while self._before and self.signum is None and not self._is_over:
            with self._ringing:
                if self._before and not (self._is_asked or self._is_over):
                    self._is_late = True
                    _send(signal.SIGTERM)
                    return
            time.sleep(0.1)

    def _restore(self) -> None:
        for signum, before in self._before.items():
            # None is a handler that was not set from Python.
            signal.signal(signum, signal.SIG_DFL if before is None else before)
        self._before.clear()


def _send(signum: signal.Signals) -> None:
    """Send the main thread a signal: nothing else ends what waits in the system."""
    if hasattr(signal, "pthread_kill"):
        signal.pthread_kill(threading.main_thread().ident or 0, signum)
    else:  # Windows, where the signal is seen once the thread runs Python again
        _thread.interrupt_main(signum)
