"""What a search takes beside training: trials of ten seconds, and of one.

    python examples/benchmarks/overhead.py
    python examples/benchmarks/overhead.py --seconds 3 --trials 12 --workers 1

Searches the digits, with as many epochs as make a trial take about so many seconds inside of training and
evaluation steps, which a first, short search tells. Overhead is (wall time × workers − time in steps) ÷ time
in steps, from the first start of a trial to the last end: proposals, surgery, exports, checks, loading
files again, and workers that wait at the end. Costs are MACs: where they are bytes, models are also stored as
codes beside the budget, which is work of its own. What else the machine does meanwhile counts too.
"""

from __future__ import annotations

import argparse
import os
import statistics
import tempfile
from pathlib import Path
from typing import Any

import optuna

import autocompress as ac
from autocompress.report import Progress


def searched(out: Path, epochs: int, trials: int, workers: int) -> tuple[ac.SearchResult, list[float], float]:
    """A search, the seconds in steps of each of its trials, and the median of those outside of them."""
    options: dict[str, Any] = {"epochs": epochs, "trials": trials, "workers": workers}
    result = ac.search("digits", progress=Progress(), objectives=["accuracy", "macs"], out=out, **options)
    complete = [t for t in result.study.trials if t.number and t.state is optuna.trial.TrialState.COMPLETE]
    details = [trial.user_attrs["details"] for trial in complete]
    outside = statistics.median(detail["seconds"] - detail["step_seconds"] for detail in details)
    return result, [detail["step_seconds"] for detail in details], outside


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("--seconds", type=float, nargs="+", default=[10.0, 1.0], help="of a trial")
    parser.add_argument("--trials", type=int, default=24)
    parser.add_argument("--workers", type=int, default=2)
    arguments = parser.parse_args()
    with tempfile.TemporaryDirectory() as scratch:
        first = 8
        _, seconds, _ = searched(Path(scratch) / "first", first, 4, arguments.workers)
        epoch = statistics.median(seconds) / first
        print(f"one epoch takes {epoch:.2f} s; load of the machine {os.getloadavg()[0]:.1f}", flush=True)
        print("| seconds of a trial in steps | outside of them | epochs | trials | workers | overhead |")
        print("| --- | --- | --- | --- | --- | --- |")
        for wanted in arguments.seconds:
            epochs = max(1, round(wanted / epoch))
            out = Path(scratch) / f"{wanted:g}"
            result, seconds, outside = searched(out, epochs, arguments.trials, arguments.workers)
            assert result.overhead is not None
            row = [statistics.median(seconds), outside, epochs, len(seconds), arguments.workers]
            print(f"| {' | '.join(f'{value:.3g}' for value in row)} | {result.overhead:.1%} |", flush=True)


if __name__ == "__main__":
    main()
