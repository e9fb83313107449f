"""All settings of a search: what identifies a run, and what may differ when it is continued.

The command line's defaults are those of `Settings`, so this module imports PyTorch and Optuna where it
needs them: `--help` does not wait for them.
"""

from __future__ import annotations

import math
import re
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field, fields
from typing import Any

from autocompress.errors import SettingsError, one_line
from autocompress.plugins import Suggest, space_name
from autocompress.score import TAU

# What executes a run may change when it is continued; everything else says which run it is.
EXECUTION = (
    "trials",
    "timeout",
    "trial_timeout",
    "workers",
    "cpus_per_trial",
    "gpus_per_trial",
    "keep",
    "ray_address",
    "mlflow",
    "wandb",
)
# Which checkpoints of trials stay in RUN, the fewest first; `engine.retention` says what they mean.
KEEP = ("front", "near", "all")
# Where something lies says nothing of what it is, which digests tell.
PLACES = ("data_root", "weights", "out")


_TYPES: dict[str, type] = {
    "str": str,
    "int": int,
    "float": float,
    "bool": bool,
    "None": type(None),
    "tuple[str, ...]": tuple,
    "Mapping[str, float]": Mapping,
}


@dataclass(frozen=True)
class Settings:
    """Settings of one search, as on the command line; None stands for "the default".

    The default constraints are `accuracy>=0.9*ref` where accuracy is the first objective, because a front
    is not to end in toys, and `bytes<=ref`, or `bytes|latency<=ref` where one of several must be less:
    what is neither smaller nor faster is not compressed. An empty tuple lifts them.

    Search spaces are modules, files, or functions `suggest(trial, profile)`, which are stored by name.

    `timeout` and `trial_timeout` are seconds, of the whole search and of one trial, but not of the reference.

    With `distill=False` no trial learns from a teacher, be it the best model so far or the task's own.

    `mlflow` is the tracking URI of an MLflow server or folder, `wandb` a project of Weights & Biases: each
    trial that ends becomes a run there.

    `keep` says which checkpoints stay in the run folder: "near" those that are on the front or within noise
    of it, that trials may start from, or that codes of these were made of; "front" the front's alone, once
    the search has come to its end; "all" each trial's.

    `exclude` names layers that methods leave as they are, `at_least` the least share of a layer's channels,
    or of its rank, that stays. A layer is named by its module, which stands for all inside of it, by a
    pattern as "layer1.*", or by its class as "Conv2d".

    `latency_by` is a function `by(path)` of the user's own, or "module:function", which returns the
    milliseconds of a call of a file, on whatever it is to run on; it is given `batch_size` and `threads` too
    where it takes arguments of these names. It is stored by name.

    Raises:
        SettingsError: a value is out of range or unknown.
    """

    task: str = "digits"
    model: str | None = None
    weights: str | None = None
    data_root: str | None = None
    image_size: int = 224
    methods: tuple[str, ...] | None = None
    spaces: tuple[str | Suggest, ...] = ()
    objectives: tuple[str, ...] = ("accuracy", "bytes")
    constraints: tuple[str, ...] | None = None
    trials: int = 24
    timeout: float | None = None
    trial_timeout: float | None = None
    epochs: int | None = None
    steps_per_epoch: int | None = None
    workers: int | None = None
    cpus_per_trial: float = 1.0
    gpus_per_trial: float = 0.0
    sampler: str = "auto"
    early_stopping: bool = False
    distill: bool = True
    seed: int = 0
    artifact: str = "pt2"
    latency_batch_size: int = 1
    latency_threads: int = 1
    latency_by: str | Callable[..., float] | None = None
    tau: float = TAU
    out: str | None = None
    storage: str | None = None
    ray_address: str | None = None
    mlflow: str | None = None
    wandb: str | None = None
    warm_start: str | None = None
    target: str | None = None
    keep: str = "near"
    exclude: tuple[str, ...] = ()
    at_least: Mapping[str, float] = field(default_factory=dict)

    def __post_init__(self) -> None:
        from autocompress.checkpoint import ARTIFACTS
        from autocompress.study import SAMPLERS
        from autocompress.task.limits import check_limits

        self._check_types()
        check_limits(self.exclude, self.at_least)
        least_one = ("trials", "epochs", "steps_per_epoch", "workers", "image_size")
        for name in (*least_one, "latency_batch_size", "latency_threads"):
            value = getattr(self, name)
            if value is not None and value < 1:
                raise SettingsError(f"{name} must be at least 1 but got {value}.")
        for name in ("timeout", "trial_timeout"):
            seconds = getattr(self, name)
            if seconds is not None and not 0 < seconds < math.inf:
                raise SettingsError(f"{name} must be greater than 0 seconds and finite but got {seconds:g}.")
        if not self.cpus_per_trial > 0:
            raise SettingsError(f"cpus_per_trial must be greater than 0 but got {self.cpus_per_trial}.")
        if not self.gpus_per_trial >= 0:
            raise SettingsError(f"gpus_per_trial must be at least 0 but got {self.gpus_per_trial}.")
        if self.methods is not None and not self.methods:
            raise SettingsError("methods must name at least one method but got none.")
        if self.sampler not in SAMPLERS:
            raise SettingsError(f"sampler must be one of {', '.join(SAMPLERS)} but got {self.sampler!r}.")
        if self.artifact not in ARTIFACTS:
            raise SettingsError(f"artifact must be one of {', '.join(ARTIFACTS)} but got {self.artifact!r}.")
        if self.keep not in KEEP:
            raise SettingsError(f"keep must be one of {', '.join(KEEP)} but got {self.keep!r}.")
        if not 0 <= self.tau <= 1:
            raise SettingsError(f"tau must be in [0, 1] but got {self.tau}.")
        if not 0 <= self.seed < 2**32:
            raise SettingsError(f"seed must be in [0, 2^32) but got {self.seed}.")

    def _check_types(self) -> None:
        """Values may come from a configuration file, which knows no types of ours."""
        spaces = self.spaces if isinstance(self.spaces, tuple) else (None,)
        if not all(isinstance(space, str) or callable(space) for space in spaces):
            raise SettingsError(
                f"spaces must be modules, files or functions suggest(trial, profile) but got {self.spaces!r}."
            )
        if not (self.latency_by is None or isinstance(self.latency_by, str) or callable(self.latency_by)):
            raise SettingsError(
                f"latency_by must be 'module:function' or a function of a path but got {self.latency_by!r}."
            )
        for option in fields(self):
            if option.name in ("spaces", "latency_by"):
                continue
            value = getattr(self, option.name)
            allowed = [_TYPES[name.strip()] for name in str(option.type).split("|")]
            if not any(_is(value, kind) for kind in allowed):
                raise SettingsError(f"{option.name} must be of type {option.type} but got {value!r}.")

    def check_machine(self) -> None:
        """Refuse what this machine lacks, before a search; a stored run may come from another one.

        Raises:
            SettingsError: GPUs are wanted that are not there.
        """
        import torch

        there = torch.cuda.device_count()
        if self.ray_address is None and self.gpus_per_trial > there:
            raise SettingsError(
                f"gpus_per_trial must be at most the {there} GPUs that CUDA has here "
                f"but got {self.gpus_per_trial:g}."
            )

    @property
    def parallel(self) -> int:
        """Trials at a time: as given, else as many as the CPUs and GPUs that this process may use carry."""
        if self.workers is not None:
            return self.workers
        import torch
        from joblib import cpu_count

        most = int(cpu_count() // self.cpus_per_trial)
        if self.gpus_per_trial and self.ray_address is None:
            most = min(most, int(torch.cuda.device_count() // self.gpus_per_trial))
        return max(1, most)

    def identity(self) -> dict[str, Any]:
        """The settings that say which run this is, JSON-able."""
        skipped = (*EXECUTION, *PLACES)
        return {name: value for name, value in self.to_json().items() if name not in skipped}

    def to_json(self) -> dict[str, Any]:
        """All settings; what is a function by its name alone, storages and addresses without secrets."""
        from autocompress.remote import is_address, shown
        from autocompress.study import masked

        values = {f.name: getattr(self, f.name) for f in fields(self)}
        values["spaces"] = [_name(space) for space in self.spaces]
        values["latency_by"] = None if self.latency_by is None else _name(self.latency_by)
        values["at_least"] = dict(self.at_least)
        for name in ("storage", "mlflow"):
            values[name] = None if values[name] is None else masked(values[name])
        for name in ("out", "warm_start"):
            if values[name] is not None and is_address(values[name]):
                values[name] = shown(values[name])
        return {k: list(v) if isinstance(v, tuple) else v for k, v in values.items()}

    @staticmethod
    def from_json(data: dict[str, Any]) -> Settings:
        """Settings as stored.

        Raises:
            SettingsError: they are of another version.
        """
        values: dict[str, Any] = {k: tuple(v) if isinstance(v, list) else v for k, v in data.items()}
        try:
            return Settings(**values)
        except TypeError as error:
            raise SettingsError(f"settings of the run must be known but: {one_line(error)}") from error


def _name(function: str | Suggest) -> str:
    return function if isinstance(function, str) else space_name(function)


def _is(value: object, kind: type) -> bool:
    if kind is float:
        return isinstance(value, (int, float)) and not isinstance(value, bool)
    if kind is tuple:
        return isinstance(value, tuple) and all(isinstance(item, str) for item in value)
    return isinstance(value, kind) and (kind is bool or not isinstance(value, bool))


def parse_duration(name: str, text: str) -> float:
    """Seconds of "90", "90s", "30m" or "2h", given for a setting.

    Raises:
        SettingsError: another form.
    """
    match = re.fullmatch(r"\s*([0-9]*\.?[0-9]+)\s*([smh]?)\s*", text)
    if match is None:
        raise SettingsError(f"{name} must read like '90s', '30m' or '2h' but got {text!r}.")
    return float(match[1]) * {"": 1, "s": 1, "m": 60, "h": 3600}[match[2]]


def parse_amount(name: str, text: str) -> float:
    """A number of "9000", "9k", "9kB" or "9KiB", given for a setting.

    Tables print thousands of bytes as kB, so k, M and G are powers of 1000; KiB, MiB and GiB of 1024.

    Raises:
        SettingsError: another form; a count of parameters or MACs has no bytes.
    """
    match = re.fullmatch(r"\s*([0-9]+\.?[0-9]*|\.[0-9]+)\s*([kmg]?)(ib|b)?\s*", text, re.IGNORECASE)
    counted = name in ("params", "macs")
    if match is None or (match[3] and (counted or (match[3].lower() == "ib" and not match[2]))):
        forms = "'9000', '9k' or '1.5M'" if counted else "'9000', '9kB', '1.5MB' or '2MiB'"
        raise SettingsError(f"{name} must read like {forms} but got {text!r}.")
    step = 1024.0 if (match[3] or "").lower() == "ib" else 1000.0
    return float(match[1]) * float(step ** " kmg".index(match[2].lower() or " "))


def parse_list(text: str) -> tuple[str, ...]:
    """Items of a comma-separated list."""
    return tuple(item.strip() for item in text.split(",") if item.strip())


def parse_shares(items: Iterable[str]) -> dict[str, float]:
    """Shares by pattern, of "layer1.*=0.5".

    Raises:
        SettingsError: another form.
    """
    shares: dict[str, float] = {}
    for item in items:
        pattern, equals, share = item.rpartition("=")
        try:
            shares[pattern.strip()] = float(share)
        except ValueError:
            equals = ""
        if not equals or not pattern.strip():
            raise SettingsError(f"at_least must read like 'layer1.*=0.5' but got {item!r}.")
    return shares
