"""The process that measures artefacts, their time or their memory, and prints one JSON line.

Time is that of two programs in alternating pairs. Each side of a pair is the fastest of a few short runs in
a row, in CPU time; the order within a pair is flipped each round. The ratio is that of the lower quartiles
over all rounds: on a busy machine other processes empty the caches and interrupt, which only ever adds time,
and not to both sides alike.

Memory is the greatest that a call takes beyond what the process had before the program was loaded.
"""

from __future__ import annotations

import ctypes
import gc
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
# Settings of a runtime, its default first; another must be faster by more than noise. ONNX Runtime optimises
# graphs at several levels, OpenVINO plans a call for sizes that are known.
SETTINGS: dict[str, list[dict[str, Any]]] = {
    ".onnx": [{"graph_optimization_level": level} for level in ("all", "extended", "basic")],
    ".xml": [{"static_shapes": False}, {"static_shapes": True}],
}
GAIN = 0.95
_PROCESS = Path("/proc/self")


def _onnxruntime(
    path: str, arrays: list[Any], threads: int, graph_optimization_level: str = "all"
) -> Callable[[], object]:
    import onnxruntime

    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = threads
    options.graph_optimization_level = getattr(
        onnxruntime.GraphOptimizationLevel, f"ORT_ENABLE_{graph_optimization_level.upper()}"
    )
    options.add_session_config_entry("session.intra_op.allow_spinning", "0")
    session = onnxruntime.InferenceSession(path, options, providers=["CPUExecutionProvider"])
    feed = dict(zip((given.name for given in session.get_inputs()), arrays, strict=True))
    return lambda: session.run(None, feed)


def _openvino(
    path: str, arrays: list[Any], threads: int, static_shapes: bool = False
) -> Callable[[], object]:
    import openvino

    core = openvino.Core()
    model = core.read_model(path)
    if static_shapes:
        model.reshape({i: list(array.shape) for i, array in enumerate(arrays)})
    # In single precision, and where the system puts it: another measuring may have the first core.
    options = {"EXECUTION_MODE_HINT": "ACCURACY", "ENABLE_CPU_PINNING": False}
    compiled = core.compile_model(model, "CPU", options | {"INFERENCE_NUM_THREADS": threads})
    request = compiled.create_infer_request()
    return lambda: request.infer(arrays, share_inputs=True, share_outputs=True)


def _loader(path: str, inputs: Any, threads: int, **settings: Any) -> Callable[[], object]:
    arrays = [leaf.numpy() for leaf in tree_leaves(inputs) if isinstance(leaf, torch.Tensor)]
    if path.endswith(".onnx"):
        return _onnxruntime(path, arrays, threads, **settings)
    if path.endswith(".xml"):
        return _openvino(path, arrays, threads, **settings)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        module = torch.export.load(Path(path)).module()
    args, kwargs = inputs
    return lambda: module(*args, **kwargs)


def _fastest(
    path: str, inputs: Any, threads: int, least: float
) -> tuple[Callable[[], object], dict[str, Any]]:
    """A program's call by the settings of its runtime that are fastest, and these.

    Args:
        path: of its file.
        inputs: of a call.
        threads: at most.
        least: seconds of the short runs that settings are compared by.
    """
    choices = SETTINGS.get(Path(path).suffix)
    if choices is None:
        return _loader(path, inputs, threads), {"threads": threads}
    best: tuple[Callable[[], object], dict[str, Any]] | None = None
    reached = float("inf")
    for count in dict.fromkeys((threads, 1)):
        for settings in choices:
            call = _loader(path, inputs, count, **settings)
            seconds = _best_of(call, _loops(call, least))
            if seconds < GAIN * reached:
                reached = seconds
                best = call, {"threads": count, **settings}
    assert best is not None
    return best


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


def _loops(call: Callable[[], object], least: float) -> int:
    """Calls in a row that take so many seconds; the first ones only warm up."""
    _seconds(call, 3)
    return max(1, int(least / max(_seconds(call, 3), 1e-7)) + 1)


def latency(job: dict[str, Any], inputs: Any) -> dict[str, Any]:
    """Time two programs, one against the other."""
    least = job["least_seconds"] / RUNS
    chosen = [_fastest(path, inputs, job["threads"], least) for path in job["programs"]]
    calls = [call for call, _ in chosen]
    loops = [_loops(call, least) for call in calls]
    times: list[list[float]] = [[], []]
    for round_number in range(job["pairs"]):
        for which in (0, 1) if round_number % 2 == 0 else (1, 0):
            times[which].append(_best_of(calls[which], loops[which]))
    reference, own = (_lower_quartile(side) for side in times)
    paired = sorted(b / a for a, b in zip(*times, strict=True))
    spread = (paired[len(paired) * 3 // 4] - paired[len(paired) // 4]) / statistics.median(paired)
    return {
        "ratio": own / reference,
        "spread": spread,
        "milliseconds": 1000 * own,
        "session": chosen[1][1],
    }


def _lower_quartile(values: list[float]) -> float:
    return statistics.quantiles(values, n=4)[0] if len(values) > 1 else values[0]


def memory(job: dict[str, Any], inputs: Any) -> dict[str, Any]:
    """The bytes that a call of a program takes at most, with what the loaded program holds."""
    (path,) = job["programs"]
    # What the runtime itself needs from its first program on is none of this program's.
    _loader(path, inputs, job["threads"])()
    before = _resident()
    call = _loader(path, inputs, job["threads"])
    after = _resident()
    call()
    return {"bytes": max(_peak() - before, after - before, 0)}


def _resident() -> int:
    """Bytes that the process holds now; from here on its peak is counted anew, where Linux is below."""
    gc.collect()
    if not _PROCESS.is_dir():
        return _peak()
    # What was freed is handed back, as else it would be counted as held.
    ctypes.CDLL(None).malloc_trim(0)
    (_PROCESS / "clear_refs").write_text("5")
    return _status("VmRSS")


def _peak() -> int:
    """The most bytes that the process held."""
    if not _PROCESS.is_dir():
        import resource  # which Windows lacks

        unit = 1 if sys.platform == "darwin" else 1024
        return unit * resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return _status("VmHWM")


def _status(entry: str) -> int:
    lines = (_PROCESS / "status").read_text().splitlines()
    return 1024 * next(int(line.split()[1]) for line in lines if line.startswith(f"{entry}:"))


def main() -> None:
    """Measure the programs of the job given on the command line, and print what was found."""
    job = json.loads(sys.argv[1])
    torch.set_num_threads(job["threads"])
    inputs = torch.load(job["inputs"], weights_only=True)
    with torch.inference_mode():
        print(json.dumps({"latency": latency, "memory": memory}[job["kind"]](job, inputs)))


if __name__ == "__main__":
    main()
