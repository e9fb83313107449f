"""Latency: a ratio to the reference, measured in alternating pairs in a process of its own, or what a
function of the user's own says."""

from __future__ import annotations

import inspect
import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from autocompress.child import MOST_SECONDS
from autocompress.errors import SettingsError, TrialError, one_line
from autocompress.measure.artifact import exclusive, measured_apart
from autocompress.task.inputs import Inputs, repeated_rows

# `by(path)` or `by(path, batch_size=…, threads=…)` → milliseconds of a call.
LatencyBy = Callable[..., float]


@dataclass(frozen=True)
class LatencySettings:
    """How latency is measured.

    Args:
        batch_size: inputs per call.
        threads: of the measured process, at most.
        pairs: alternating reference/candidate pairs.
        least_ms: least CPU time of each half of a pair, in milliseconds.
        by: a function of the user's own that measures in place of all this, see `own_latency`.
    """

    batch_size: int = 1
    threads: int = 1
    pairs: int = 60
    least_ms: float = 20.0
    by: LatencyBy | None = None

    def __post_init__(self) -> None:
        for name in ("batch_size", "threads", "pairs"):
            if getattr(self, name) < 1:
                raise SettingsError(f"latency {name} must be at least 1 but got {getattr(self, name)}.")

    def quick(self) -> LatencySettings:
        """A third of the pairs: enough to steer a search while other trials run."""
        return replace(self, pairs=max(1, self.pairs // 3))


@dataclass(frozen=True)
class Latency:
    """CPU-time ratio to the reference, relative spread of its pairs, own milliseconds a call, and the
    settings of the runtime that were fastest: threads, ONNX Runtime's level of graph optimisation, whether
    OpenVINO knew the sizes of inputs before."""

    ratio: float
    spread: float
    milliseconds: float
    session: Mapping[str, Any] = field(default_factory=dict)


def measure_latency(
    program: Path,
    reference: Path | None,
    example: Inputs,
    settings: LatencySettings,
    reference_ms: float | None = None,
    limit: float = MOST_SECONDS,
) -> Latency:
    """Time a program file against the reference's (itself where None), one file at a time on this machine.

    Args:
        program: `.pt2`, `.onnx` or `.xml`.
        reference: the same format.
        example: inputs, `(B, ...)`; repeated or cut to the batch size.
        settings: how; by a function of the user's own where there is one.
        reference_ms: milliseconds of the reference, where they are known: a model's are then its ratio times
            these.
        limit: seconds that this may take, waiting for others that measure included; a function of the user's
            own takes what it takes.

    Raises:
        TrialError: the measuring process, or the user's own function, failed, or it took too long.
    """
    if settings.by is not None:
        with exclusive(limit):
            own = own_latency(settings.by, program, settings)
        return Latency(own / reference_ms if reference_ms else 1.0, 0.0, own)
    timed = measured_apart(
        "latency",
        [reference or program, program],
        repeated_rows(example, settings.batch_size),
        limit,
        threads=settings.threads,
        pairs=settings.pairs,
        least_seconds=settings.least_ms / 1000,
    )
    latency = Latency(**timed)
    return latency if reference_ms is None else replace(latency, milliseconds=latency.ratio * reference_ms)


def own_latency(by: LatencyBy, program: Path, settings: LatencySettings) -> float:
    """What a user's own function says of a file: milliseconds of a call.

    It is called with the file's path, and with `batch_size` and `threads` as keywords where it takes
    arguments of these names.

    Raises:
        TrialError: it fails, or returns something else than a number that is greater than 0.
    """
    try:
        taken: Mapping[str, inspect.Parameter] = inspect.signature(by).parameters
    except (TypeError, ValueError):  # of what is written in C
        taken = {}
    every = any(parameter.kind is parameter.VAR_KEYWORD for parameter in taken.values())
    options = {"batch_size": settings.batch_size, "threads": settings.threads}
    try:
        returned = by(program, **{name: value for name, value in options.items() if every or name in taken})
    except Exception as error:  # the user's own code may raise anything
        raise TrialError(
            f"latency_by must return the milliseconds of a call of a file but failed on '{program.name}': "
            f"{type(error).__name__}: {one_line(error)}"
        ) from error
    try:
        milliseconds = float(returned)
    except (TypeError, ValueError):
        milliseconds = math.nan
    if not 0 < milliseconds < math.inf:
        raise TrialError(
            f"latency_by must return the milliseconds of a call, a number greater than 0, but returned "
            f"{returned!r} for '{program.name}'."
        )
    return milliseconds
