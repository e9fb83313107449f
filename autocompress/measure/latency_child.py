"""The process that times two programs in alternating pairs and prints one JSON line.

Each side of a pair is the fastest of a few short runs in a row, in CPU time; the order within a pair is
flipped each round. The ratio is that of the lower quartiles over all rounds: on a busy machine other
processes empty the caches and interrupt, which only ever adds time, and not to both sides alike.
"""

from __future__ import annotations

import json
import statistics
import sys
import time
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from torch.utils._pytree import tree_leaves

RUNS = 8  # short runs in each half of a pair


def _loader(path: str, inputs: Any, threads: int) -> Callable[[], object]:
    if path.endswith(".onnx"):
        import onnxruntime

        options = onnxruntime.SessionOptions()
        options.intra_op_num_threads = threads
        options.add_session_config_entry("session.intra_op.allow_spinning", "0")
        session = onnxruntime.InferenceSession(path, options, providers=["CPUExecutionProvider"])
        arrays = [leaf.numpy() for leaf in tree_leaves(inputs) if isinstance(leaf, torch.Tensor)]
        feed = dict(zip((given.name for given in session.get_inputs()), arrays, strict=True))
        return lambda: session.run(None, feed)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        module = torch.export.load(Path(path)).module()
    args, kwargs = inputs
    return lambda: module(*args, **kwargs)


def _seconds(call: Callable[[], object], loops: int) -> float:
    # CPU time holds on a loaded machine, but adds up over threads.
    clock = time.process_time if torch.get_num_threads() == 1 else time.perf_counter
    start = clock()
    for _ in range(loops):
        call()
    return (clock() - start) / loops


def _best_of(call: Callable[[], object], loops: int) -> float:
    """The fastest of several short runs: interrupted ones and full caches only ever add time."""
    return min(_seconds(call, loops) for _ in range(RUNS))


def main() -> None:
    """Time the programs of the job given on the command line, one against the other, and print the times."""
    job = json.loads(sys.argv[1])
    torch.set_num_threads(job["threads"])
    inputs = torch.load(job["inputs"], weights_only=True)
    with torch.inference_mode():
        calls = [_loader(path, inputs, job["threads"]) for path in job["programs"]]
        for call in calls:
            _seconds(call, 3)
        least = job["least_seconds"] / RUNS
        loops = [max(1, int(least / max(_seconds(c, 3), 1e-7)) + 1) for c in calls]
        times: list[list[float]] = [[], []]
        for round_number in range(job["pairs"]):
            for which in (0, 1) if round_number % 2 == 0 else (1, 0):
                times[which].append(_best_of(calls[which], loops[which]))
    reference, own = (_lower_quartile(side) for side in times)
    paired = sorted(b / a for a, b in zip(*times, strict=True))
    spread = (paired[len(paired) * 3 // 4] - paired[len(paired) // 4]) / statistics.median(paired)
    print(json.dumps({"ratio": own / reference, "spread": spread, "milliseconds": 1000 * own}))


def _lower_quartile(values: list[float]) -> float:
    return statistics.quantiles(values, n=4)[0] if len(values) > 1 else values[0]


if __name__ == "__main__":
    main()
