"""Signals and time limits, to a search and to what stands around it."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Iterator

import pytest

from autocompress.engine import interruption
from autocompress.engine.interruption import Interrupted, Interruption, TimeOver


@pytest.fixture(autouse=True)
def grace(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """None, and the handlers are as before in the end."""
    monkeypatch.setattr(interruption, "_GRACE", 0.0)
    before = [signal.getsignal(signum) for signum in (signal.SIGINT, signal.SIGTERM)]
    yield
    assert [signal.getsignal(signum) for signum in (signal.SIGINT, signal.SIGTERM)] == before


@pytest.mark.parametrize("signum", [signal.SIGINT, signal.SIGTERM, signal.SIGHUP])
def test_a_signal_is_raised_where_nothing_asks_and_noted_where_something_does(signum: int) -> None:
    with Interruption() as interrupted:
        with interrupted.asked():
            assert not interrupted.overdue
            signal.raise_signal(signum)
            assert interrupted.overdue
        assert interrupted.signum == signum
    with pytest.raises(Interrupted), Interruption() as interrupted:
        signal.raise_signal(signum)


def signal_twice(interrupted: Interruption) -> None:
    with interrupted, interrupted.asked():
        signal.raise_signal(signal.SIGTERM)
        signal.raise_signal(signal.SIGINT)


def test_a_second_signal_ends_at_once() -> None:
    heard: list[int] = []
    with pytest.raises(KeyboardInterrupt):
        signal_twice(Interruption())
    with pytest.raises(KeyboardInterrupt):
        signal_twice(Interruption(at_once=heard.append))
    assert heard == [signal.SIGINT]


def test_who_was_to_hear_of_a_signal_hears_of_it_at_the_end() -> None:
    heard: list[int] = []
    before = signal.signal(signal.SIGTERM, lambda signum, frame: heard.append(signum))
    try:
        with Interruption() as interrupted, interrupted.asked():
            signal.raise_signal(signal.SIGTERM)
        assert heard == []
        interrupted.hand_on()
        assert heard == [signal.SIGTERM]
    finally:
        signal.signal(signal.SIGTERM, before)


def test_signals_that_are_ignored_stay_so() -> None:
    before = signal.signal(signal.SIGHUP, signal.SIG_IGN)
    try:
        with Interruption() as interrupted:
            signal.raise_signal(signal.SIGHUP)
        assert interrupted.signum is None
    finally:
        signal.signal(signal.SIGHUP, before)


def test_handlers_that_another_put_in_the_place_are_replaced() -> None:
    with Interruption() as interrupted:
        signal.signal(signal.SIGTERM, lambda *_: pytest.fail("Ray's"))
        with interrupted.asked():
            signal.raise_signal(signal.SIGTERM)
    assert interrupted.signum == signal.SIGTERM


def test_the_time_limit_ends_what_waits_and_leaves_what_asks() -> None:
    with Interruption(0.2) as interrupted:
        with pytest.raises(TimeOver):
            threading.Event().wait(60)
        assert interrupted.signum is None
        assert interrupted.left == 0
        assert interrupted.late
    with Interruption(0.05) as interrupted, interrupted.asked():
        time.sleep(0.3)
        assert interrupted.overdue
    time.sleep(0.3)  # nothing comes later


def test_what_a_search_ended_with_is_not_lost_to_the_time_limit() -> None:
    with Interruption(0.05) as interrupted:
        with interrupted.asked():
            time.sleep(0.2)
            interrupted.over()
        time.sleep(0.3)  # nothing comes
    with Interruption(0.05) as interrupted, interrupted.asked():
        with pytest.raises(TimeOver), interrupted.raised():
            threading.Event().wait(60)
        time.sleep(0.1)


def test_trials_end_before_the_time_limit_which_may_be_any() -> None:
    assert not Interruption().late
    with Interruption(1e300) as interrupted:
        assert not interrupted.late
        assert interrupted.left > 1e299
    short = Interruption(100.0)
    assert short._end - short._trials_end == pytest.approx(10)


def test_another_thread_asks_and_is_not_interrupted() -> None:
    seen: list[bool] = []

    def run() -> None:
        with Interruption(0.05) as interrupted:
            time.sleep(0.1)
            seen.append(interrupted.overdue)

    before = signal.getsignal(signal.SIGTERM)
    thread = threading.Thread(target=run)
    thread.start()
    thread.join()
    assert seen == [True]
    assert signal.getsignal(signal.SIGTERM) == before


def test_a_process_ends_as_a_signal_that_came_would_have_ended_it() -> None:
    script = (
        "import os, signal, time\n"
        "from autocompress.engine.interruption import Interruption\n"
        "with Interruption() as interruption, interruption.asked():\n"
        "    print('ready', flush=True)\n"
        "    while not interruption.overdue:\n"
        "        time.sleep(0.05)\n"
        "print('saved', flush=True)\n"
        "interruption.hand_on()\n"
        "print('not reached', flush=True)\n"
    )
    child = subprocess.Popen([sys.executable, "-c", script], stdout=subprocess.PIPE, text=True)
    assert child.stdout is not None
    assert child.stdout.readline() == "ready\n"
    os.kill(child.pid, signal.SIGTERM)
    assert child.stdout.read() == "saved\n"
    assert child.wait() == -signal.SIGTERM
