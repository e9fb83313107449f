"""Ray Tune's searcher, scheduler and callback, all thin: every decision is the driver's."""

from __future__ import annotations

import base64
import contextlib
import json
import pickle
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import ray
from ray.tune import Callback, ProgressReporter
from ray.tune.experiment import Trial
from ray.tune.schedulers import FIFOScheduler, TrialScheduler
from ray.tune.search import Searcher

from autocompress.distribute.driver import Driver, Failure, ReferenceJob, WaitJob
from autocompress.distribute.worker import EPOCHS, MESSAGE, where_file
from autocompress.errors import one_line
from autocompress.trial import TrialResult


class DriverSearcher(Searcher):  # type: ignore[misc]
    """Hands out the driver's jobs. It saves nothing: the study is the only record of trials.

    Args:
        driver: whose jobs they are.
        computed: folder in which workers note where they are.

    Attributes:
        numbers: of the jobs that were handed out and have not ended, by Tune's name.
        asked: when each of these was handed out, in seconds of `time.monotonic`.
        exhausted: whether there are no more jobs.
        error: what the driver raised, of which Tune passes on the text alone.
    """

    def __init__(self, driver: Driver, computed: Path) -> None:
        super().__init__(metric=[MESSAGE], mode=["max"])
        self.driver, self.computed = driver, computed
        self.numbers: dict[str, int] = {}
        self.asked: dict[str, float] = {}
        self.outcomes: dict[str, tuple[str, Any]] = {}
        self.stopped: set[str] = set()
        self.killed: set[str] = set()
        self.exhausted = False
        self.error: Exception | None = None

    def suggest(self, trial_id: str) -> Any:
        """Hand Tune the driver's next job as a configuration, or say that there is none left."""
        job = self.driver.next()
        if job is None and self.numbers:
            return None  # ask again: what a running trial ends with may call for another
        if job is None:
            self.exhausted = True
            return Searcher.FINISHED
        self.numbers[trial_id] = job.number
        self.asked[trial_id] = time.monotonic()
        if isinstance(job, ReferenceJob):
            return {"number": job.number, "seed": job.seed, "threads": job.threads}
        if isinstance(job, WaitJob):
            return {"number": job.number, "until": str(job.until)}
        # Bytes, which Tune passes on as they are, where it would walk through what it can look into.
        return {"number": job.number, "config": job.config.to_json(), "rivals": pickle.dumps(job.rivals)}

    def on_trial_complete(
        self, trial_id: str, result: dict[str, Any] | None = None, error: bool = False
    ) -> None:
        """Tell the driver how a trial ended; one that left no word has lost its worker."""
        number = self.numbers.pop(trial_id, None)
        if number is None:
            return
        del self.asked[trial_id]
        with self.keeping_errors():
            self._tell(trial_id, number)

    @contextlib.contextmanager
    def keeping_errors(self) -> Iterator[None]:
        """Keep what the driver raises inside."""
        try:
            yield
        except Exception as error:
            self.error = error
            raise

    def _tell(self, trial_id: str, number: int) -> None:
        kind, content = self.outcomes.pop(trial_id, ("", None))
        if kind == "result":
            self.driver.completed(number, None if content is None else TrialResult(**content))
        elif kind == "failure":
            self.driver.failed(number, Failure(**content))
        elif kind == "error":
            raised = pickle.loads(base64.b64decode(content))
            self.driver.failed(number, Failure(one_line(raised), error=raised))
        elif trial_id in self.stopped:
            self.driver.stopped(number)
        elif trial_id in self.killed:
            self.driver.killed(number, _where(where_file(self.computed, number)))
        else:
            self.driver.died(number)

    def save(self, checkpoint_path: str) -> None:
        """Save nothing, because the study is what a search resumes from."""

    def restore(self, checkpoint_path: str) -> None:
        """Restore nothing, because nothing was saved."""

    def __getstate__(self) -> dict[str, Any]:
        # Tune pickles itself for a restore that is never done: the study is what resumes.
        return {}


def _where(file: Path) -> str:
    """Of what a worker noted of all its threads, the one that ran the trial."""
    threads = file.read_text().split("\n\n") if file.is_file() else []
    return next((thread for thread in threads if "in run_trial" in thread), "")


class Silence(ProgressReporter):  # type: ignore[misc]
    """Reports nothing: Tune's own reporter clears the output of a notebook's cell, where the display is."""

    def should_report(self, trials: list[Any], done: bool = False) -> bool:
        """Never."""
        return False

    def report(self, trials: list[Any], done: bool, *sys_info: str) -> None:
        """Report nothing."""


# That a worker may take to start; what waits longer waits for a CPU or GPU.
_START_SECONDS = 60.0


class DriverScheduler(FIFOScheduler):  # type: ignore[misc]
    """Tells the driver of each epoch, and stops a trial that it does not want to go on with."""

    def __init__(self, searcher: DriverSearcher) -> None:
        super().__init__()
        self.searcher = searcher
        self.pending: set[str] = set()

    def choose_trial_to_run(self, tune_controller: Any) -> Any:
        """Give a worker that is free to the trial that was asked for last, as others wait for their own.

        The first in the row would take it, and have its own stopped while it starts: where trials are shorter
        than a worker's start, none would ever take the place of one that died.
        """
        asked = self.searcher.asked
        pending = {
            trial.trial_id: trial
            for trial in tune_controller.get_live_trials()
            if trial.status == Trial.PENDING and trial.trial_id in asked
        }
        before, self.pending = self.pending, set(pending)
        if not pending:
            return None
        first, last = (which(pending, key=lambda name: asked[name]) for which in (min, max))
        others_wait_for_theirs = time.monotonic() - asked[first] < _START_SECONDS
        return pending[last if last not in before and others_wait_for_theirs else first]

    def on_trial_result(self, tune_controller: Any, trial: Any, result: dict[str, Any]) -> str:
        """Pass epochs on to the driver, who may stop the trial; keep a result or a failure for its end."""
        kind, content, entries = json.loads(result[MESSAGE])
        number = self.searcher.numbers[trial.trial_id]
        with self.searcher.keeping_errors():
            goes_on = all(self.searcher.driver.epoch(number, entry) for entry in entries)
        if kind != EPOCHS:
            self.searcher.outcomes[trial.trial_id] = (kind, content)
        elif not goes_on:
            self.searcher.stopped.add(trial.trial_id)
            return str(TrialScheduler.STOP)
        return str(TrialScheduler.CONTINUE)


class Left(BaseException):
    """Jobs are left as they are; what Tune would do of other errors is for a Ray that goes on.

    Args:
        reason: why, in a line; none where the driver was interrupted.
    """

    def __init__(self, reason: str = "") -> None:
        super().__init__(reason)
        self.reason = reason


# Between two looks at whether Ray is still there.
_LOOK_SECONDS = 5.0


def _lost_track() -> bool:
    """Whether the control store of a Ray that was started here ended; after a while Ray itself would end
    this process, with nothing told or cleared away."""
    node = getattr(ray._private.worker, "_global_node", None)
    return node is not None and any(kind == "gcs_server" for kind, _ in node.dead_processes())


class Watch(Callback):  # type: ignore[misc]
    """Ends jobs that are overdue by ending their processes: what hangs hears nothing else.

    Args:
        searcher: that hands out the jobs.
    """

    def __init__(self, searcher: DriverSearcher) -> None:
        self.searcher = searcher
        self.looked = time.monotonic()
        # Tune's name of each job that runs → its trial, and when it began.
        self.running: dict[str, tuple[Any, float]] = {}

    def on_trial_start(self, iteration: int, trials: list[Any], trial: Any, **info: Any) -> None:
        """Take note of when a job begins on its worker."""
        self.running[trial.trial_id] = trial, time.monotonic()

    def on_step_begin(self, iteration: int, trials: list[Any], **info: Any) -> None:
        """Look at all jobs, which Tune lets us do some ten times a second.

        Raises:
            Left: the driver was interrupted, or what Ray cannot do without is not there any more.
        """
        searcher, now = self.searcher, time.monotonic()
        if searcher.driver.interrupted:
            raise Left
        if _lost_track():
            raise Left("the process of Ray that keeps track of the others ended")
        if now > self.looked + _LOOK_SECONDS:
            self.looked = now
            if not any(node["Alive"] for node in ray.nodes()):
                # Tune would wait for one forever.
                raise Left("the process of Ray that starts workers ended")
        for trial_id in self.running.keys() - searcher.numbers.keys():
            del self.running[trial_id]
        for trial_id, number in list(searcher.numbers.items()):
            if trial_id not in self.running:
                searcher.driver.waits(number, now - searcher.asked[trial_id])
                continue
            trial, begun = self.running[trial_id]
            actor = trial.temporary_state.ray_actor
            if trial_id not in searcher.killed and actor and searcher.driver.overdue(number, now - begun):
                searcher.killed.add(trial_id)
                ray.kill(actor)
