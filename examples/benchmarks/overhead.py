"""What a search takes beside its trials, and trials beside training: trials of ten seconds, and of one.

    python examples/benchmarks/overhead.py
    python examples/benchmarks/overhead.py --seconds 3 --trials 12 --workers 1

Searches the digits, with as many epochs as make a trial take about so many seconds inside of training and
evaluation steps, which a first, short search tells. What is beside steps in a trial is what whoever
compresses a model by hand needs too: surgery, the export, checks, loading the file again. Between trials,
from the end of one to the start of the next on the same worker, are proposals, records, and what Ray takes.
The search as a whole is its wall time × workers, from the first start of a trial to the last end, over the
seconds of all trials: to what is between them comes a worker that waits at the end, where there is less
than one trial for each. Costs are MACs: where they are bytes, models are also stored as codes beside the
budget, which is work of its own. What else the machine does meanwhile counts too.
"""

from __future__ import annotations

import argparse
import os
import statistics
import tempfile
from datetime import datetime
from pathlib import Path
from typing import Any

from optuna.trial import FrozenTrial, TrialState

import autocompress as ac
from autocompress.report import Progress


def searched(out: Path, epochs: int, trials: int, workers: int) -> ac.SearchResult:
    """A search of the digits."""
    options: dict[str, Any] = {"epochs": epochs, "trials": trials, "workers": workers}
    return ac.search("digits", progress=Progress(), objectives=["accuracy", "macs"], out=out, **options)


def completed(result: ac.SearchResult) -> list[FrozenTrial]:
    """The trials of a search but the reference, in the order in which they began."""
    trials = [t for t in result.study.trials if t.number and t.state is TrialState.COMPLETE]
    return sorted(trials, key=lambda trial: trial.datetime_start or datetime.max)


def step_seconds(trial: FrozenTrial) -> float:
    """Seconds of a trial in training and evaluation steps."""
    return float(trial.user_attrs["details"]["step_seconds"])


def besides(trials: list[FrozenTrial], workers: int) -> tuple[float, float]:
    """Seconds outside of steps of a trial, on average over those that were not their worker's first: in the
    trial itself, and between the end of the one before it and its own."""
    own = [trial.user_attrs["details"]["seconds"] - step_seconds(trial) for trial in trials]
    free = sorted(trial.datetime_complete for trial in trials if trial.datetime_complete is not None)
    between = []
    for position, trial in enumerate(trials):
        assert trial.datetime_start is not None
        assert trial.duration is not None
        if position >= workers:
            # Whichever worker became free first takes the next trial.
            before = free[position - workers]
            waited = (trial.datetime_start - before).total_seconds()
            between.append(waited + trial.duration.total_seconds() - trial.user_attrs["details"]["seconds"])
    return statistics.mean(own[workers:]), statistics.mean(between)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("--seconds", type=float, nargs="+", default=[10.0, 1.0], help="of a trial")
    parser.add_argument("--trials", type=int, default=24)
    parser.add_argument("--workers", type=int, default=2)
    arguments = parser.parse_args()
    with tempfile.TemporaryDirectory() as scratch:
        first = 8
        trials = completed(searched(Path(scratch) / "first", first, 4, arguments.workers))
        epoch = statistics.median(map(step_seconds, trials)) / first
        print(f"one epoch takes {epoch:.2f} s; load of the machine {os.getloadavg()[0]:.1f}", flush=True)
        print("| trials | epochs | in steps, s | beside | between | trial ÷ steps | search ÷ trials |")
        print("| --- | --- | --- | --- | --- | --- | --- |")
        for wanted in arguments.seconds:
            epochs = max(1, round(wanted / epoch))
            result = searched(Path(scratch) / f"{wanted:g}", epochs, arguments.trials, arguments.workers)
            trials = completed(result)
            steps = statistics.mean(map(step_seconds, trials))
            own, between = besides(trials, arguments.workers)
            assert result.overhead is not None
            wall = (1 + result.overhead) * sum(map(step_seconds, trials))
            of_search = wall / sum(trial.user_attrs["details"]["seconds"] for trial in trials) - 1
            seconds = " | ".join(f"{value:.2f}" for value in (steps, own, between))
            shares = f"+{own / steps:.1%} | +{of_search:.1%}"
            print(f"| {len(trials)} | {epochs} | {seconds} | {shares} |", flush=True)


if __name__ == "__main__":
    main()
