"""Whether a search scales: to 64 workers, and to 1,500 trials.

    pip install torch-pruning
    python examples/benchmarks/search_scale.py workers [--task digits] [--trials 192] [--epochs 1] [--seeds 3]
        [--recorded RUN]
    python examples/benchmarks/search_scale.py trials [--trials 1500] [--early-stopping]

Both run the real driver, proposals and study (SQLite, in a temporary folder) in one process, without Ray, and
simulate the workers as a queue of events: a trial ends when its seconds have passed, and while the driver
proposes and records, its own seconds pass as well: those of its CPU, so that neither what else the machine
does nor its disk has a part in them.

`workers` really trains every trial. The seconds that it counts for are those that trials of its kind took
in a recorded run, or with one worker here, drawn at random. All numbers of workers train as many epochs;
fronts are judged as by `search_efficiency.py`, by hypervolume on test.

`trials` replaces training by a stand-in that counts for 0.2 s and draws metrics around a curve. It measures
how long a hundred trials take on two workers, what of that the driver takes, and its memory.
"""

from __future__ import annotations

import argparse
import heapq
import itertools
import json
import os
import random
import shutil
import statistics
import tempfile
import time
from collections import defaultdict
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, Protocol

import numpy as np
import torch
from rich.console import Console
from rich.table import Table

import autocompress as ac
from autocompress.checkpoint.program import load_program
from autocompress.checkpoint.store import MANIFEST, Checkpoint, kept_trials, trial_folder
from autocompress.distribute import Failure, Job
from autocompress.engine.driver import SearchDriver
from autocompress.engine.folder import RunFolder
from autocompress.engine.moasha import MoAsha, rungs
from autocompress.engine.prepare import Prepared, prepare
from autocompress.engine.results import open_study
from autocompress.engine.settings import Settings
from autocompress.errors import AutocompressError
from autocompress.measure import REPLICATES
from autocompress.rivals import Point as Rival
from autocompress.study import SearchStudy, sqlite_url
from autocompress.trial import Reference, TrialConfig, TrialResult, run_trial, train_reference

STAND_IN_SECONDS = 0.2
console = Console()


class Worker(Protocol):
    """Runs a trial of a search; what it ended with, and how many seconds that counts for."""

    def __call__(self, search: Search, job: Job) -> tuple[TrialResult | AutocompressError, float]: ...


@dataclass
class Search:
    """A search whose trials are run by simulated workers."""

    prepared: Prepared
    folder: RunFolder
    reference: Checkpoint
    study: SearchStudy
    driver: SearchDriver

    @staticmethod
    def begin(task: ac.Task, out: Path, **options: Any) -> Search:
        """Train the reference, or take the task's weights, and open the study."""
        settings = Settings(out=str(out), task=task.name, **options)
        prepared = prepare(task, settings)
        folder = RunFolder(prepared.out)
        for place in (folder.trials, folder.artifacts):
            place.mkdir(parents=True)
        reference = train_reference(prepared.task, folder.reference, prepared.measuring, settings.seed)
        metrics = reference.manifest["metrics"]
        study = SearchStudy(
            sqlite_url(folder.path),
            "scale",
            prepared.objectives,
            prepared.constraints,
            folder.artifacts,
            settings.sampler,
            settings.seed,
            sole_writer=True,
        )
        study.add_reference(metrics, {"config": reference.manifest["config"]})
        stopping = MoAsha(study, prepared.objectives) if settings.early_stopping else None
        driver = SearchDriver(prepared, study, folder.trials, metrics, ac.Progress(), stopping)
        return Search(prepared, folder, reference, study, driver)

    @property
    def metrics(self) -> Mapping[str, float]:
        """Those of the reference."""
        return self.reference.manifest["metrics"]


@dataclass
class Log:
    """What a simulation took, in seconds of its own clock where nothing else is said.

    Args:
        ends: when each trial was recorded.
        driver: what the driver took for each trial that ended: to record it, and to propose what followed.
        memory: of the process in bytes, when each trial was recorded.
        worked: that workers trained in all.
        epochs: that were trained in all.
    """

    ends: list[float] = field(default_factory=list)
    driver: list[float] = field(default_factory=list)
    memory: list[int] = field(default_factory=list)
    worked: float = 0.0
    epochs: int = 0


def simulate(search: Search, workers: int, run: Worker) -> Log:
    """Run a search to its end as if so many workers ran its trials side by side."""
    log, driver = Log(), search.driver
    now, spent = 0.0, 0.0
    running: list[tuple[float, int, Job, TrialResult | AutocompressError]] = []

    def timed(action: Callable[[], Any]) -> Any:
        nonlocal now, spent
        begun = time.process_time()
        answer = action()
        seconds = time.process_time() - begun
        now, spent = now + seconds, spent + seconds
        return answer

    def tell(job: Job, outcome: TrialResult | AutocompressError) -> None:
        if isinstance(outcome, AutocompressError):
            driver.failed(job.number, Failure(str(outcome)))
        elif all(driver.epoch(job.number, entry) for entry in outcome.history):
            driver.completed(job.number, outcome)
        else:
            driver.stopped(job.number)

    while True:
        while len(running) < workers and (job := timed(driver.next)) is not None:
            outcome, seconds = run(search, job)
            log.worked += seconds
            log.epochs += job.config.epochs
            heapq.heappush(running, (now + seconds, job.number, job, outcome))
        if not running:
            return log
        end, _, job, outcome = heapq.heappop(running)
        now = max(now, end)
        timed(lambda job=job, outcome=outcome: tell(job, outcome))
        log.ends.append(now)
        log.driver.append(spent)
        log.memory.append(resident())
        spent = 0.0


def resident() -> int:
    """Bytes of memory that this process holds (Linux)."""
    return int(Path("/proc/self/statm").read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE")


def kind(config: TrialConfig) -> str:
    """What the seconds of a trial hang on: its methods, and whether it trains."""
    methods = "+".join(stage.method for stage in config.stages) or "train on"
    return methods if config.epochs else f"{methods}, no training"


def recorded_seconds(run: str) -> dict[str, list[float]]:
    """The seconds of a run's trials by kind."""
    study, _ = open_study(RunFolder(Path(run)))
    seconds: dict[str, list[float]] = defaultdict(list)
    for trial in study.ended():
        details = trial.user_attrs.get("details", {})
        if trial.number and "seconds" in details:
            seconds[kind(TrialConfig.from_json(details["config"]))].append(details["seconds"])
    return seconds


class Trained:
    """A worker that really trains.

    Args:
        recorded: seconds by kind of trial that trials count for; None counts those that they take, which are
            kept here.
        seed: of the draws from them.
    """

    def __init__(self, recorded: Mapping[str, Sequence[float]] | None = None, seed: int = 0) -> None:
        self.recorded, self.draws = recorded, random.Random(seed)
        self.seconds: dict[str, list[float]] = defaultdict(list)
        self.reference: Reference | None = None

    def __call__(self, search: Search, job: Job) -> tuple[TrialResult | AutocompressError, float]:
        begun = time.process_time()
        outcome = self._run(search, job)
        alike = kind(job.config)
        self.seconds[alike].append(time.process_time() - begun)
        if self.recorded is None:
            return outcome, self.seconds[alike][-1]
        every = list(itertools.chain.from_iterable(self.recorded.values()))
        return outcome, self.draws.choice(self.recorded.get(alike, every))

    def _run(self, search: Search, job: Job) -> TrialResult | AutocompressError:
        if self.reference is None:
            prepared = search.prepared
            self.reference = Reference.of(search.reference, prepared.model, prepared.settings.artifact)
        reported: list[dict[str, float]] = []  # with what rungs compare, which the history lacks
        try:
            result = run_trial(
                search.prepared.task,
                self.reference,
                job.config,
                trial_folder(search.folder.trials, job.number),
                search.prepared.measuring,
                lambda entry: reported.append(dict(entry)),
                trials=search.folder.trials,
                shut_out=lambda metrics, drawn: job.rivals.shut_out(Rival(metrics, drawn)),
            )
        except AutocompressError as error:
            return error
        return replace(result, history=reported)


class StandIn:
    """A worker that does not train: a model costs a little less than its parent, and is as accurate as its
    cost lets it, but for luck. Its resamples are as of 360 rows of which models get mostly the same wrong.

    Args:
        seed: of what it draws.
    """

    def __init__(self, seed: int = 0) -> None:
        self.draws = np.random.default_rng(seed)
        self.shares: dict[int, float] = {0: 1.0}
        self.common = self.draws.normal(0.0, 0.01, REPLICATES)

    def __call__(self, search: Search, job: Job) -> tuple[TrialResult | AutocompressError, float]:
        config, reference = job.config, search.metrics
        codes = not config.epochs
        share = self.shares[config.parent] * float(self.draws.uniform(0.85, 1.0))
        share *= 0.25 if codes else 1.0
        self.shares[job.number] = share
        loss = 0.002 / share ** (0.5 if codes else 1.0) + float(self.draws.gamma(2.0, 0.004))
        accuracy = max(0.1, reference["accuracy"] - loss)
        costs = {name: reference[name] * share for name in ("macs", "params", "bytes", "weight_bytes")}
        metrics = {name: value for name, value in costs.items() if name in reference} | {"accuracy": accuracy}
        drawn = {"accuracy": (accuracy + self.common + self.draws.normal(0.0, 0.004, REPLICATES)).tolist()}
        if not job.rivals.shut_out(Rival(metrics, drawn)):
            self._store(search, job, metrics, codes)
        compared = rungs(config.epochs) if search.driver.stopping else ()
        early = {f"rung/{name}": value for name, value in metrics.items()}
        history = [
            {"epoch": epoch, "seconds": 0.0, **(early if epoch in compared else {})}
            for epoch in range(1, config.epochs + 1)
        ]
        return TrialResult(
            metrics,
            history,
            difference=0.0,
            seconds=STAND_IN_SECONDS,
            step_seconds=STAND_IN_SECONDS,
            replicates=drawn,
            validation_rows=360,
        ), STAND_IN_SECONDS

    @staticmethod
    def _store(search: Search, job: Job, metrics: Mapping[str, float], codes: bool) -> None:
        """A checkpoint with the reference's files, whose manifest tells of this trial."""
        folder = trial_folder(search.folder.trials, job.number)
        shutil.copytree(search.reference.path, folder)
        manifest = dict(search.reference.manifest) | {"config": job.config.to_json(), "metrics": metrics}
        if codes:
            manifest["profile"] = None
        (folder / MANIFEST).write_text(json.dumps(manifest))


def compare_workers(arguments: argparse.Namespace) -> None:
    """Print what searches are worth by their number of workers, and what the driver took."""
    import search_efficiency as efficiency  # needs torch-pruning

    counts = sorted({1, *arguments.workers})
    worths: dict[int, list[float]] = {workers: [] for workers in counts}
    logs: dict[int, list[Log]] = {workers: [] for workers in counts}
    with tempfile.TemporaryDirectory() as scratch:
        arguments.rates = arguments.steps = None  # of torch-pruning
        setting = efficiency.prepared(arguments, Path(scratch))
        (cost,) = setting.reference_costs
        for seed in range(1, arguments.seeds + 1):
            recorded = recorded_seconds(arguments.recorded) if arguments.recorded else None
            for workers in counts:
                search = Search.begin(
                    setting.task,
                    Path(scratch) / f"{seed}-{workers}",
                    objectives=("accuracy", cost),
                    trials=arguments.trials,
                    epochs=arguments.epochs,
                    workers=workers,
                    seed=seed,
                )
                worker = Trained(recorded, seed)
                log = simulate(search, workers, worker)
                recorded = recorded or worker.seconds
                points = front_points(search, setting)
                worths[workers].append(efficiency.hypervolume(points, setting.base, lambda point: point.test))
                logs[workers].append(log)
                console.print(f"seed {seed}, {workers} workers: {worths[workers][-1]:.3f}", highlight=False)
                shutil.rmtree(search.folder.path)
    table = Table(title=f"{arguments.task}, {arguments.trials} × {arguments.epochs} epochs, {cost}")
    for column in (
        "workers",
        "hypervolume",
        "range",
        "of one worker's",
        "epochs",
        "trials a second",
        "driver, ms a trial",
        "driver busy",
        "workers busy",
    ):
        table.add_column(column, justify="right")
    for workers in counts:
        seconds = [log.ends[-1] for log in logs[workers]]
        trials = [len(log.ends) for log in logs[workers]]
        driver = [sum(log.driver) for log in logs[workers]]
        median = statistics.median
        table.add_row(
            str(workers),
            f"{median(worths[workers]):.3f}",
            f"{min(worths[workers]):.3f} to {max(worths[workers]):.3f}",
            f"{median(worths[workers]) / median(worths[1]):.2f}",
            f"{median(log.epochs for log in logs[workers]):.0f}",
            f"{sum(trials) / sum(seconds):.1f}",
            f"{1000 * sum(driver) / sum(trials):.0f}",
            f"{sum(driver) / sum(seconds):.0%}",
            f"{sum(log.worked for log in logs[workers]) / workers / sum(seconds):.0%}",
        )
    console.print(table)


def front_points(search: Search, setting: Any) -> list[Any]:
    """The front of a search as points of `search_efficiency`."""
    import search_efficiency as efficiency

    kept = {0, *kept_trials(search.folder.trials)}
    ((cost, reference_cost),) = setting.reference_costs.items()
    points = []
    for trial in search.study.front(search.metrics, kept):
        if trial.number:
            metrics = trial.user_attrs["metrics"]
            file = next(trial_folder(search.folder.trials, trial.number).glob("model.*"))
            test = efficiency.accuracy(load_program(file), setting.task, setting.task.test)
            points.append(efficiency.Point(metrics[cost] / reference_cost, metrics["accuracy"], test))
    return points


def compare_hundreds(arguments: argparse.Namespace) -> None:
    """Print how long a hundred trials took at the beginning and at the end, and the driver's memory."""
    table = Table(title=f"{arguments.trials} trials of {STAND_IN_SECONDS} s on {arguments.workers} workers")
    for column in ("cost", "hundred", "seconds", "of the first", "driver, ms a trial", "MB", "kept"):
        table.add_column(column, justify="left" if column == "cost" else "right")
    for cost in arguments.costs:
        with tempfile.TemporaryDirectory() as scratch:
            search = Search.begin(
                ac.data.load_task("digits").with_recipe(epochs=3, reference_epochs=3),
                Path(scratch) / "run",
                objectives=("accuracy", cost),
                trials=arguments.trials,
                workers=arguments.workers,
                early_stopping=arguments.early_stopping,
                seed=1,
            )
            log = simulate(search, arguments.workers, StandIn())
            kept = len(kept_trials(search.folder.trials))
        begins = [0.0, *log.ends]
        hundreds = range(0, len(log.ends) - 99, 100)
        first = log.ends[99]
        for begin in sorted({hundreds[0], hundreds[len(hundreds) // 2], hundreds[-1]}):
            seconds = begins[begin + 100] - begins[begin]
            table.add_row(
                cost,
                f"{begin + 1} to {begin + 100}",
                f"{seconds:.1f}",
                f"{seconds / first:.2f}",
                f"{1000 * statistics.mean(log.driver[begin : begin + 100]):.0f}",
                f"{log.memory[begin + 99] / 1e6:.0f}",
                str(kept) if begin == hundreds[-1] else "",
            )
    console.print(table)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    commands = parser.add_subparsers(required=True)
    workers = commands.add_parser("workers", help="64 workers beside one")
    workers.add_argument("--task", choices=["digits", "fashion_mnist", "cifar10", "table"], default="digits")
    workers.add_argument("--cost", choices=["macs", "bytes"], nargs=1, default=["macs"])
    workers.add_argument("--workers", type=int, nargs="*", default=[1, 8, 64])
    workers.add_argument("--trials", type=int, default=192)
    workers.add_argument("--epochs", type=int, default=1)
    workers.add_argument("--reference-epochs", type=int)
    workers.add_argument("--rows", type=int, help="of the training split, drawn at random; all by default")
    workers.add_argument("--seeds", type=int, default=3)
    workers.add_argument("--recorded", help="run whose trials' seconds count; those of one worker by default")
    workers.add_argument("--data-root")
    workers.set_defaults(run=compare_workers)
    trials = commands.add_parser("trials", help="the last hundred of 1,500 trials beside the first")
    trials.add_argument("--costs", nargs="*", choices=["macs", "bytes"], default=["bytes", "macs"])
    trials.add_argument("--workers", type=int, default=2)
    trials.add_argument("--trials", type=int, default=1500)
    trials.add_argument("--early-stopping", action="store_true")
    trials.set_defaults(run=compare_hundreds)
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    arguments.run(arguments)


if __name__ == "__main__":
    main()
