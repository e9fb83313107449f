"""Ray Tune's searcher and scheduler, both thin: every decision is the driver's."""

from __future__ import annotations

import base64
import json
import pickle
from typing import Any

from ray.tune.schedulers import FIFOScheduler, TrialScheduler
from ray.tune.search import Searcher

from autocompress.distribute.driver import Driver, ReferenceJob, WaitJob
from autocompress.distribute.worker import MESSAGE
from autocompress.errors import one_line
from autocompress.trial import TrialResult


class DriverSearcher(Searcher):  # type: ignore[misc]
    """Hands out the driver's jobs. It saves nothing: the study is the only record of trials."""

    def __init__(self, driver: Driver) -> None:
        super().__init__(metric=[MESSAGE], mode=["max"])
        self.driver = driver
        self.numbers: dict[str, int] = {}
        self.outcomes: dict[str, tuple[str, Any]] = {}
        self.stopped: set[str] = set()
        self.exhausted = False

    def suggest(self, trial_id: str) -> Any:
        """Hand Tune the driver's next job as a configuration, or say that there is none left."""
        job = self.driver.next()
        if job is None and self.numbers:
            return None  # ask again: what a running trial ends with may call for another
        if job is None:
            self.exhausted = True
            return Searcher.FINISHED
        self.numbers[trial_id] = job.number
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
        kind, content = self.outcomes.pop(trial_id, ("", None))
        if kind == "result":
            self.driver.completed(number, None if content is None else TrialResult(**content))
        elif kind == "failure":
            self.driver.failed(number, content)
        elif kind == "error":
            raised = pickle.loads(base64.b64decode(content))
            self.driver.failed(number, one_line(raised), raised)
        elif trial_id in self.stopped:
            self.driver.stopped(number)
        else:
            self.driver.failed(number, "the worker process died")

    def save(self, checkpoint_path: str) -> None:
        """Save nothing, because the study is what a search resumes from."""

    def restore(self, checkpoint_path: str) -> None:
        """Restore nothing, because nothing was saved."""

    def __getstate__(self) -> dict[str, Any]:
        # Tune pickles itself for a restore that is never done: the study is what resumes.
        return {}


class DriverScheduler(FIFOScheduler):  # type: ignore[misc]
    """Tells the driver of each epoch, and stops a trial that it does not want to go on with."""

    def __init__(self, searcher: DriverSearcher) -> None:
        super().__init__()
        self.searcher = searcher

    def on_trial_result(self, tune_controller: Any, trial: Any, result: dict[str, Any]) -> str:
        """Pass an epoch on to the driver, who may stop the trial; keep a result or a failure for its end."""
        kind, content = json.loads(result[MESSAGE])
        if kind != "entry":
            self.searcher.outcomes[trial.trial_id] = (kind, content)
            return str(TrialScheduler.CONTINUE)
        number = self.searcher.numbers[trial.trial_id]
        if self.searcher.driver.epoch(number, content):
            return str(TrialScheduler.CONTINUE)
        self.searcher.stopped.add(trial.trial_id)
        return str(TrialScheduler.STOP)
