"""What runs in a worker process: the reference, and one trial after the other, on what is fetched once."""

from __future__ import annotations

import base64
import contextlib
import errno
import faulthandler
import gc
import json
import os
import pickle
import shutil
import sys
import tempfile
import time
import traceback
import warnings
from collections.abc import Iterator, Mapping
from dataclasses import asdict, dataclass
from functools import cache, cached_property
from pathlib import Path
from typing import Any

import ray
import torch
from ray import tune
from ray.exceptions import RayError

from autocompress.checkpoint import open_checkpoint
from autocompress.checkpoint.program import export_program, load_program
from autocompress.checkpoint.store import REFERENCE, TRIALS, taken_over_folder, trial_folder
from autocompress.distribute.folders import Folders, Served
from autocompress.distribute.surroundings import limit_memory
from autocompress.errors import AutocompressError, CheckpointError, DivergedError, one_line
from autocompress.rivals import Point, Rivals
from autocompress.sharing import COMPUTED, sharing
from autocompress.task import Task
from autocompress.task.checks import fresh_model
from autocompress.trial import Measuring, Reference, TrialConfig, run_trial, rung_metrics, train_reference

MESSAGE = "message"
EPOCHS = "epochs"
# Between two messages that tell of nothing but epochs: so many times as long as the last one waited for its
# answer, and from so many seconds to so many.
_WAITS, _LEAST_SECONDS, _MOST_SECONDS = 100, 2.0, 30.0
# One entry a process: actors are reused, so only the first trial of a worker fetches anything.
_FETCHED: dict[str, Shared] = {}


@dataclass(frozen=True)
class Shared:
    """What all jobs of a run have in common.

    Args:
        task: the model and its data.
        artifact: the file that the reference is compared by.
        measuring: what is measured of each model.
        root: the run folder, on the driver's machine.
        use_gpu: whether jobs run on a GPU, where there is one.
        threads: of a trial.
        trial_timeout: seconds after which the driver ends a trial; None is never.
        memory: bytes that a worker may take beyond what it starts with; None is any number.
        served: how machines that do not see the run folder reach it; None where there are none.
    """

    task: Task
    artifact: str
    measuring: Measuring
    root: Path
    use_gpu: bool
    threads: int
    trial_timeout: float | None = None
    memory: int | None = None
    served: Served | None = None

    @cached_property
    def folders(self) -> Folders:
        """The run's folders as this process reaches them."""
        return Folders(self.root, self.served)

    @cached_property
    def stored_reference(self) -> Reference:
        """The reference, read once in each process."""
        stored = open_checkpoint(self.folders.root / REFERENCE)
        return Reference.of(stored, fresh_model(self.task), self.artifact)


def _device(use_gpu: bool) -> str:
    return "cuda" if use_gpu and torch.cuda.is_available() else "cpu"


def train(config: Mapping[str, Any], handle: list[Any], paths: list[str]) -> None:
    """Ray's trainable: runs one job and reports its epochs, then its result or its failure.

    Args:
        config: `{"number", "config", "rivals"}` of a trial, `{"number", "seed", "threads"}` of the reference,
            `{"number", "until"}` of a wait.
        handle: the object reference of `Shared`, in a list so that Ray does not resolve it.
        paths: `sys.path` of the driver's process, of which Ray itself passes on only some.
    """
    sys.path.extend(path for path in paths if path not in sys.path)
    try:
        shared = _fetched(handle[0])
    except RayError as error:
        said = one_line(error).removeprefix("System error: ")
        where = "what it is made of must be importable there as it is here"
        reason = f"the task could not be loaded in a worker process: {said} ({where})"
        Messages().send(
            "failure", {"reason": reason, "traceback": traceback.format_exc()[-_MOST_CHARACTERS:]}
        )
        return
    if shared.memory is not None:
        limit_memory(shared.memory)
    torch.set_num_threads(config.get("threads", shared.threads))
    # Workers have no console of their own: warnings there would only interleave with the display.
    warnings.simplefilter("ignore")
    if "config" in config:
        _train_trial(config, shared)
    elif "until" in config:
        _get_ready()
        while not shared.folders.exists(config["until"]):
            time.sleep(0.05 if shared.folders.server is None else 0.5)
        Messages().send("result", None)
        return
    else:
        _train_reference(config["seed"], shared)
    _freeze_imports()


def _fetched(handle: Any) -> Shared:
    key = handle.hex()
    if key not in _FETCHED:
        _FETCHED.clear()
        _FETCHED[key] = ray.get(handle)
    return _FETCHED[key]


def _train_trial(config: Mapping[str, Any], shared: Shared) -> None:
    rivals: Rivals = pickle.loads(config["rivals"])
    trial, folders, messages = TrialConfig.from_json(config["config"]), shared.folders, Messages()
    trials = folders.root / TRIALS
    checkpoint = trial_folder(trials, config["number"])
    try:
        with (
            folders.fetched([folders.root / REFERENCE, *_parents(trial, trials)]),
            _noting_where(shared, config["number"]),
            sharing(folders.root / COMPUTED),
            shared.task.opened() as task,
        ):
            result = run_trial(
                task,
                shared.stored_reference,
                trial,
                checkpoint,
                shared.measuring,
                report=messages.epoch,
                device=_device(shared.use_gpu),
                trials=trials,
                shut_out=lambda metrics, replicates: rivals.shut_out(Point(metrics, replicates)),
            )
            folders.send(checkpoint)
    except Exception as error:
        # A failure ends the trial, not the worker process.
        messages.send("failure", _described(error, folders.disk))
    else:
        messages.send("result", asdict(result))


def _parents(config: TrialConfig, trials: Path) -> list[Path]:
    """Checkpoints that a trial starts from and learns from, beside the reference's."""
    own = [trial_folder(trials, number) for number in (config.parent, config.teacher) if number]
    return own + ([taken_over_folder(trials, config.taken_over)] if config.taken_over else [])


# Of a traceback, at the end of which it says what happened.
_MOST_CHARACTERS = 6000
# A disk with fewer free bytes is full.
_LEAST_FREE = 1 << 20


def _described(error: Exception, folder: Path) -> dict[str, Any]:
    """Why a trial failed that writes to the disk of a folder, as `Failure` says it."""
    named = isinstance(error, AutocompressError)
    return {
        "reason": one_line(error) if named else f"{type(error).__name__}: {one_line(error)}",
        "traceback": traceback.format_exc()[-_MOST_CHARACTERS:],
        "kind": _kind(error, folder),
    }


def _kind(error: BaseException | None, folder: Path) -> str | None:
    """What kind of failure an error, or what led to it, is of those that the driver acts upon; PyTorch's and
    safetensors' errors have neither class nor number."""
    if isinstance(error, CheckpointError):
        return "checkpoint"
    if isinstance(error, DivergedError):
        return "diverged"
    while error is not None:
        if isinstance(error, (MemoryError, torch.OutOfMemoryError)) or "can't allocate memory" in str(error):
            return "memory"
        no_space = isinstance(error, OSError) and error.errno in (errno.ENOSPC, errno.EDQUOT)
        if no_space or os.strerror(errno.ENOSPC) in str(error):
            return "disk"
        if "file write failed" in str(error) and shutil.disk_usage(folder).free < _LEAST_FREE:
            return "disk"
        error = error.__cause__ or error.__context__
    return None


def where_file(computed: Path, number: int) -> Path:
    """The file that says where a trial was shortly before its time was over."""
    return computed / f"where-{number}.txt"


@contextlib.contextmanager
def _noting_where(shared: Shared, number: int) -> Iterator[None]:
    """Have a trial that does not end in time say where it is, before the driver ends its process.

    That works while other code than Python's runs and hangs.
    """
    if shared.trial_timeout is None:
        yield
        return
    computed = shared.folders.root / COMPUTED
    computed.mkdir(parents=True, exist_ok=True)
    with where_file(computed, number).open("w") as file:
        faulthandler.dump_traceback_later(0.95 * shared.trial_timeout, file=file)
        try:
            yield
        finally:
            faulthandler.cancel_dump_traceback_later()


def _train_reference(seed: int, shared: Shared) -> None:
    messages = Messages()
    device = _device(shared.use_gpu)
    try:
        with shared.folders.fetched(), shared.task.opened() as task:
            folder = shared.folders.root / REFERENCE
            train_reference(task, folder, shared.measuring, seed, messages.epoch, device)
            shared.folders.send(folder)
    except Exception as error:
        messages.send("error", base64.b64encode(_pickled(error)).decode())
    else:
        messages.send("result", None)


def _pickled(error: Exception) -> bytes:
    """An error that is raised in the driver's process as if it had been raised there, with where it was."""
    error.add_note(traceback.format_exc())
    try:
        pickled: bytes = ray.cloudpickle.dumps(error)
        pickle.loads(pickled)
    except Exception:
        # Not every error can be made again from its arguments.
        return pickle.dumps(RuntimeError(f"{type(error).__name__}: {one_line(error)}"))
    return pickled


@cache
def _freeze_imports() -> None:
    """Keep what the first trial imported out of garbage collection, once: half a million objects of PyTorch's
    exporter and its like, which each full collection of a later trial would walk through."""
    gc.collect()
    gc.freeze()


def _get_ready() -> None:
    """Do once what a process needs seconds for the first time: import and set up PyTorch's exporter."""
    with tempfile.TemporaryDirectory() as folder:
        file = Path(folder) / "model.pt2"
        export_program(torch.nn.Linear(1, 1), torch.zeros(2, 1), file)
        load_program(file)(torch.zeros(2, 1))


class Messages:
    """What a job tells the driver.

    It waits for an answer to each message, for those of epochs a hundredth of the time. Short epochs are
    told together, but for one after which the driver may stop the trial.
    """

    def __init__(self) -> None:
        self.entries: list[dict[str, float]] = []
        self.next_time = 0.0

    def epoch(self, entry: Mapping[str, float]) -> None:
        """Tell of an epoch, at once or with later ones."""
        self.entries.append(dict(entry))
        if rung_metrics(entry) or time.monotonic() > self.next_time:
            self.send(EPOCHS, None)

    def send(self, kind: str, content: Any) -> None:
        """Tell of the epochs that were not told yet and of something else."""
        start = time.monotonic()
        # One string, which Tune passes on as it is, where it would flatten and track a mapping.
        tune.report({MESSAGE: json.dumps([kind, content, self.entries])})
        self.entries = []
        end = time.monotonic()
        self.next_time = end + min(max(_LEAST_SECONDS, _WAITS * (end - start)), _MOST_SECONDS)
