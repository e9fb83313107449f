"""What runs in a worker process: one trial after the other, on task and weights fetched once."""

from __future__ import annotations

import gc
import json
import pickle
import warnings
from collections.abc import Mapping
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
from autocompress.trial import Measuring, Reference, TrialConfig, run_trial

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
                device="cuda" if shared.use_gpu and torch.cuda.is_available() else "cpu",
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
