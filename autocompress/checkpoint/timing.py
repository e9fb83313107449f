"""Short timings of ONNX files in this process, enough to choose between forms of one model."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from typing import Any

# Rounds of all files in turn, and seconds of each file in one: forms that differ by a tenth are told apart.
_ROUNDS, _LEAST_SECONDS = 10, 0.01
# Larger ones are not loaded all at once.
_MOST_BYTES = 1 << 28


def seconds_of(contents: Sequence[bytes], arrays: Sequence[Any]) -> list[float]:
    """CPU seconds of a call of each file by one thread, the least of a few rounds: what disturbs only adds.

    Args:
        contents: of ONNX files with the same inputs.
        arrays: the inputs of a call, in order.
    """
    if len(contents) > 1 and sum(map(len, contents)) > _MOST_BYTES:
        return [seconds for content in contents for seconds in seconds_of([content], arrays)]
    calls = [_session(content, arrays) for content in contents]
    loops = [max(1, int(_LEAST_SECONDS / max(_timed(call, 2), 1e-7))) for call in calls]
    rounds = [[_timed(call, count) for call, count in zip(calls, loops, strict=True)] for _ in range(_ROUNDS)]
    return [min(column) for column in zip(*rounds, strict=True)]


def _session(content: bytes, arrays: Sequence[Any]) -> Callable[[], object]:
    import onnxruntime

    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = 1
    session = onnxruntime.InferenceSession(content, options, providers=["CPUExecutionProvider"])
    feed = dict(zip((given.name for given in session.get_inputs()), arrays, strict=True))
    return lambda: session.run(None, feed)


def _timed(call: Callable[[], object], loops: int) -> float:
    call()
    start = time.process_time()
    for _ in range(loops):
        call()
    return (time.process_time() - start) / loops
