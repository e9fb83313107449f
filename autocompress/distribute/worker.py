"""What runs in a worker process: the reference, and one trial after the other, on what is fetched once."""

from __future__ import annotations

import gc
import json
import pickle
import queue
import warnings
from collections.abc import Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, dataclass
from functools import cache
from pathlib import Path
from typing import Any

import ray
import torch
from ray import tune

from autocompress.checkpoint.store import trial_folder
from autocompress.errors import AutocompressError, one_line
from autocompress.rivals import Point, Rivals
from autocompress.sharing import sharing
from autocompress.task import Task
from autocompress.trial import Measuring, Reference, TrialConfig, run_trial, train_reference

MESSAGE = "message"
# One entry a process: actors are reused, so only the first trial of a worker fetches anything.
_FETCHED: dict[str, Shared] = {}


@dataclass(frozen=True)
class Shared:
    """What all trials of a run have in common; `computed` is the folder of what they compute but once."""

    task: Task
    reference: Reference
    measuring: Measuring
    trials: Path
    computed: Path
    use_gpu: bool
    threads: int


@dataclass(frozen=True)
class ReferenceJob:
    """The reference to train, the folder of its checkpoint, and with how many threads."""

    task: Task
    folder: Path
    measuring: Measuring
    seed: int
    use_gpu: bool
    threads: int


def reference_epochs(handle: list[Any]) -> Iterator[Mapping[str, float]]:
    """Train and store the reference, giving each epoch's entry as it ends.

    Args:
        handle: the object reference of a `ReferenceJob`, in a list so that Ray does not resolve it.
    """
    job: ReferenceJob = ray.get(handle[0])
    entries: queue.SimpleQueue[Mapping[str, float] | None] = queue.SimpleQueue()

    def run() -> None:
        torch.set_num_threads(job.threads)
        warnings.simplefilter("ignore")
        try:
            train_reference(job.task, job.folder, job.measuring, job.seed, entries.put, _device(job.use_gpu))
        finally:
            entries.put(None)

    with ThreadPoolExecutor(1) as pool:
        training = pool.submit(run)
        while (entry := entries.get()) is not None:
            yield dict(entry)
        training.result()


def _device(use_gpu: bool) -> str:
    return "cuda" if use_gpu and torch.cuda.is_available() else "cpu"


def train(config: Mapping[str, Any], handle: list[Any]) -> None:
    """Ray's trainable: runs one trial and reports its epochs, then its result or its failure.

    Args:
        config: `{"number": ..., "config": ..., "rivals": ...}`.
        handle: the object reference of `Shared`, in a list so that Ray does not resolve it.
    """
    key = handle[0].hex()
    if key not in _FETCHED:
        _FETCHED.clear()
        _FETCHED[key] = ray.get(handle[0])
    shared = _FETCHED[key]
    torch.set_num_threads(shared.threads)
    # Workers have no console of their own: warnings there would only interleave with the display.
    warnings.simplefilter("ignore")
    rivals: Rivals = pickle.loads(config["rivals"])
    try:
        with sharing(shared.computed):
            result = run_trial(
                shared.task,
                shared.reference,
                TrialConfig.from_json(config["config"]),
                trial_folder(shared.trials, config["number"]),
                shared.measuring,
                report=lambda entry: _send("entry", dict(entry)),
                device=_device(shared.use_gpu),
                trials=shared.trials,
                shut_out=lambda metrics, replicates: rivals.shut_out(Point(metrics, replicates)),
            )
    except AutocompressError as error:
        # An expected failure ends the trial, not the worker process.
        _send("failure", one_line(error))
    except Exception as error:
        _send("failure", f"{type(error).__name__}: {one_line(error)}")
    else:
        _send("result", asdict(result))
    _freeze_imports()


@cache
def _freeze_imports() -> None:
    """Keep what the first trial imported out of garbage collection, once: half a million objects of PyTorch's
    exporter and its like, which each full collection of a later trial would walk through."""
    gc.collect()
    gc.freeze()


def _send(kind: str, content: Any) -> None:
    # One string, which Tune passes on as it is, where it would flatten and track a mapping.
    tune.report({MESSAGE: json.dumps([kind, content])})
