"""What is looked at while jobs run."""

from __future__ import annotations

import contextlib
import time
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from autocompress.distribute import searcher
from autocompress.distribute.searcher import DriverScheduler, DriverSearcher, Left, Watch


class Driver(SimpleNamespace):
    """One that is asked, and told."""

    interrupted = False

    def overdue(self, number: int, seconds: float) -> bool:
        return number in self.late

    def waits(self, number: int, seconds: float) -> None:
        self.waiting.append(number)


@pytest.fixture
def watch(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Iterator[Watch]:
    driver: Any = Driver(late=set(), waiting=[])
    made = Watch(DriverSearcher(driver, tmp_path))
    monkeypatch.setattr(searcher.ray, "nodes", lambda: [{"Alive": True}])
    return made


def hand_out(watch: Watch, trial: str, number: int) -> None:
    watch.searcher.numbers[trial] = number
    watch.searcher.asked[trial] = 0.0


def test_jobs_wait_until_they_begin_and_are_killed_once_where_they_are_overdue(
    watch: Watch, monkeypatch: pytest.MonkeyPatch
) -> None:
    killed: list[str] = []
    monkeypatch.setattr(searcher.ray, "kill", killed.append)
    driver: Any = watch.searcher.driver
    hand_out(watch, "a", 1)
    hand_out(watch, "b", 2)
    begun = SimpleNamespace(trial_id="a", temporary_state=SimpleNamespace(ray_actor="actor"))
    watch.on_trial_start(0, [], begun)
    driver.late = {1, 2}
    watch.on_step_begin(0, [])
    watch.on_step_begin(1, [])
    assert killed == ["actor"]
    assert driver.waiting == [2, 2]
    assert watch.searcher.killed == {"a"}


def test_all_is_left_where_the_driver_was_interrupted(watch: Watch) -> None:
    driver: Any = watch.searcher.driver
    driver.interrupted = True
    with pytest.raises(Left) as left:
        watch.on_step_begin(0, [])
    assert left.value.reason == ""


def test_all_is_left_where_no_machine_is_there_any_more(
    watch: Watch, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(searcher.ray, "nodes", lambda: [{"Alive": False}])
    watch.on_step_begin(0, [])  # not at every step
    watch.looked = -1e9
    with pytest.raises(Left, match="the process of Ray that starts workers ended"):
        watch.on_step_begin(0, [])


@pytest.mark.parametrize(("ended", "lost"), [("gcs_server", True), ("log_monitor", False)])
def test_a_search_ends_with_ray_s_control_store_before_ray_ends_the_process(
    ended: str, lost: bool, watch: Watch, monkeypatch: pytest.MonkeyPatch
) -> None:
    node = SimpleNamespace(dead_processes=lambda: [(ended, object())])
    monkeypatch.setattr(searcher.ray._private.worker, "_global_node", node)
    # That would wait for the control store.
    monkeypatch.setattr(searcher.ray, "nodes", lambda: pytest.fail("Ray was asked"))
    with pytest.raises(Left, match="keeps track of the others") if lost else contextlib.nullcontext():
        watch.on_step_begin(0, [])


def test_a_free_worker_is_for_the_last_trial_as_others_wait_for_theirs_but_not_for_ever(
    watch: Watch, monkeypatch: pytest.MonkeyPatch
) -> None:
    scheduler = DriverScheduler(watch.searcher)
    trials = [SimpleNamespace(trial_id=name, status="PENDING") for name in "ab"]
    controller: Any = SimpleNamespace(get_live_trials=lambda: trials)
    now = time.monotonic()
    watch.searcher.asked = {"a": now - 5, "b": now, "c": now + 1}
    assert scheduler.choose_trial_to_run(controller).trial_id == "b"
    # It got none: the next that is free is for the first.
    assert scheduler.choose_trial_to_run(controller).trial_id == "a"
    trials.append(SimpleNamespace(trial_id="c", status="PENDING"))
    assert scheduler.choose_trial_to_run(controller).trial_id == "c"
    scheduler.pending = set()
    watch.searcher.asked["a"] = now - 100
    assert scheduler.choose_trial_to_run(controller).trial_id == "a"
    trials[:] = []
    assert scheduler.choose_trial_to_run(controller) is None
