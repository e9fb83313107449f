"""What a search takes beside training: trials of ten seconds, and of one.

    python examples/benchmarks/overhead.py
    python examples/benchmarks/overhead.py --seconds 3 --trials 12 --workers 1

Searches the digits as `autocompress search digits` does, with as many epochs as make a trial take about so
many seconds inside of training and evaluation steps, which a first, short search tells. Overhead is
(wall time × workers − time in steps) ÷ time in steps, from the first trial's start to the last one's end:
proposals, surgery, exports, checks, loading files again in fresh processes, and workers that wait at the end.
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


def searched(out: Path, epochs: int, trials: int, workers: int) -> tuple[ac.SearchResult, list[float]]:
    """A search, and the seconds in steps of each of its trials that trained."""
    options: dict[str, Any] = {"epochs": epochs, "trials": trials, "workers": workers}
    result = ac.search("digits", progress=Progress(), out=out, **options)
    complete = [t for t in result.study.trials if t.number and t.state is optuna.trial.TrialState.COMPLETE]
    trained = [t.user_attrs["details"] for t in complete if t.user_attrs["details"]["config"]["epochs"]]
    return result, [details["step_seconds"] for details in trained]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("--seconds", type=float, nargs="+", default=[10.0, 1.0], help="of a trial")
    parser.add_argument("--trials", type=int, default=24)
    parser.add_argument("--workers", type=int, default=2)
    arguments = parser.parse_args()
    with tempfile.TemporaryDirectory() as scratch:
        first, most = Path(scratch) / "first", 8
        _, seconds = searched(first, most, 4, arguments.workers)
        epoch = statistics.median(seconds) / most
        print(f"one epoch takes {epoch:.2f} s; load of the machine {os.getloadavg()[0]:.1f}", flush=True)
        print(
            "| seconds of a trial | epochs | trials | workers | overhead |\n| --- | --- | --- | --- | --- |"
        )
        for wanted in arguments.seconds:
            epochs = max(1, round(wanted / epoch))
            out = Path(scratch) / f"{wanted:g}"
            result, seconds = searched(out, epochs, arguments.trials, arguments.workers)
            assert result.overhead is not None
            row = [
                f"{statistics.median(seconds):.1f}",
                str(epochs),
                str(len(seconds)),
                str(arguments.workers),
            ]
            print(f"| {' | '.join(row)} | {result.overhead:.1%} |", flush=True)


if __name__ == "__main__":
    main()
