"""The process that times two programs in alternating pairs and prints one JSON line.

A ratio of CPU times within one pair holds on a loaded machine, where wall times and minima do not;
the order within a pair is flipped each round.
"""

from __future__ import annotations

import json
import statistics
import sys
import time
import warnings
from collections.abc import Callable
from pathlib import Path

import torch


def _loader(path: str, inputs: torch.Tensor, threads: int) -> Callable[[], object]:
    if path.endswith(".onnx"):
        import onnxruntime

        options = onnxruntime.SessionOptions()
        options.intra_op_num_threads = threads
        options.add_session_config_entry("session.intra_op.allow_spinning", "0")
        session = onnxruntime.InferenceSession(path, options, providers=["CPUExecutionProvider"])
        feed = {session.get_inputs()[0].name: inputs.numpy()}
        return lambda: session.run(None, feed)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        module = torch.export.load(Path(path)).module()
    return lambda: module(inputs)


def _seconds(call: Callable[[], object], loops: int) -> float:
    # CPU time holds on a loaded machine, but adds up over threads.
    clock = time.process_time if torch.get_num_threads() == 1 else time.perf_counter
    start = clock()
    for _ in range(loops):
        call()
    return (clock() - start) / loops


def main() -> None:
    job = json.loads(sys.argv[1])
    torch.set_num_threads(job["threads"])
    inputs = torch.load(job["inputs"], weights_only=True)
    with torch.inference_mode():
        calls = [_loader(path, inputs, job["threads"]) for path in job["programs"]]
        for call in calls:
            _seconds(call, 3)
        loops = [max(1, int(job["least_seconds"] / max(_seconds(c, 3), 1e-7)) + 1) for c in calls]
        ratios, own = [], []
        for round_number in range(job["pairs"]):
            order = (0, 1) if round_number % 2 == 0 else (1, 0)
            times = {which: _seconds(calls[which], loops[which]) for which in order}
            ratios.append(times[1] / times[0])
            own.append(times[1])
    ratio = statistics.median(ratios)
    quartiles = statistics.quantiles(ratios, n=4) if len(ratios) > 1 else [ratio] * 3
    spread = (quartiles[2] - quartiles[0]) / ratio
    result = {"ratio": ratio, "spread": spread, "milliseconds": 1000 * statistics.median(own)}
    print(json.dumps(result))


if __name__ == "__main__":
    main()
