"""Values that processes share."""

import multiprocessing
import os
import time
from pathlib import Path

import pytest

from autocompress import sharing
from autocompress.sharing import once


def compute(folder: Path) -> tuple[int, str]:
    """Who computed it; leaves a file for every time that it was, and waits for both to have started."""
    made = folder / f"made-by-{os.getpid()}"
    made.write_text("")
    while len(list(folder.glob("started-*"))) < 2:
        time.sleep(0.01)
    return os.getpid(), "value"


def worker(folder: Path, answers: "multiprocessing.Queue[tuple[int, str]]") -> None:
    (folder / f"started-{os.getpid()}").write_text("")
    with sharing.sharing(folder / "shared"):
        answers.put(once(("spectrum", 1), lambda: compute(folder)))


def test_two_processes_that_start_together_compute_a_value_once(tmp_path):
    context = multiprocessing.get_context("spawn")
    answers = context.Queue()
    both = [context.Process(target=worker, args=(tmp_path, answers)) for _ in range(2)]
    for process in both:
        process.start()
    answered = [answers.get() for _ in both]
    for process in both:
        process.join()
    assert answered[0] == answered[1]
    assert len(list(tmp_path.glob("made-by-*"))) == 1


def test_other_keys_are_other_values(tmp_path):
    with sharing.sharing(tmp_path):
        assert once("a", lambda: 1) == 1
        assert once("b", lambda: 2) == 2
        assert once("a", lambda: pytest.fail("computed again")) == 1


def test_nothing_is_kept_outside(tmp_path):
    with sharing.sharing(tmp_path):
        once("a", lambda: 1)
    assert once("a", lambda: 2) == 2


def test_a_full_folder_takes_no_more_but_values_are_right(tmp_path, monkeypatch):
    monkeypatch.setattr(sharing, "_MOST_BYTES", 10)
    with sharing.sharing(tmp_path):
        assert once("a", lambda: "x" * 100) == "x" * 100
        assert once("a", lambda: "computed again") == "computed again"
    assert not list(tmp_path.glob("*.pickle"))
