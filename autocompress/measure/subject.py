"""Measures one model: task metrics on a split, sizes and costs of the artefact."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from autocompress.measure.artifact import peak_memory
from autocompress.measure.evaluation import measure_split, task_metrics
from autocompress.measure.latency import LatencySettings, measure_latency
from autocompress.measure.resampling import rounded
from autocompress.score import SCORE, TAU, acc_comp
from autocompress.task import Inputs, Task
from autocompress.task.inputs import repeated_rows
from autocompress.training.loop import Clock

STATIC = ("bytes", "weight_bytes", "latency", "memory", "macs", "params")
# Of these, those that only a file has: they are measured by running it, where they are wanted.
OF_FILES = ("latency", "memory")
MINIMISED = (
    *STATIC,
    *("loss", "error", "mse", "mae", "rmse", "perplexity", "wer", "cer"),
)
MAXIMISED = ("accuracy", "top5", "f1", "precision", "recall", "auc", "auroc", "map", "iou", "r2", "psnr")


@dataclass(frozen=True)
class Subject:
    """What is measured.

    Args:
        program: the artefact, loaded from its file; the model itself where it has none.
        program_file: that file; None where only what is measured of files would need it.
        params: numbers of the model.
        macs: multiply-accumulates of one input.
        bytes: size of that file.
        weight_bytes: what tensors take of it.
        example: `(B, ...)`.
        reference: the reference's program file, None where the subject is the reference.
        reference_metrics: the reference's, empty where the subject is the reference.
        tau: weight of accuracy in `acc_comp`.
    """

    program: Callable[[Inputs], Any]
    program_file: Path | None
    params: int
    macs: int
    bytes: int
    weight_bytes: int
    example: Inputs
    reference: Path | None = None
    reference_metrics: Mapping[str, float] = field(default_factory=dict)
    tau: float = TAU


@dataclass(frozen=True)
class Measured:
    """What a model measured.

    Args:
        metrics: task metrics on the validation split, sizes and costs.
        errors: standard errors of task metrics and `acc_comp`; NaN where one is not known.
        replicates: of the same metrics, over resamples of the split's rows; see `Score`.
        rows: of the split.
        classes: see `SplitScores`.
        session: settings of the runtime that latency was least with; empty where it was not measured.
    """

    metrics: dict[str, float]
    errors: dict[str, float]
    replicates: dict[str, list[float]]
    rows: int
    classes: list[tuple[int, int]] = field(default_factory=list)
    session: dict[str, Any] = field(default_factory=dict)

    @property
    def known_errors(self) -> dict[str, float]:
        """Those that are known; JSON has no NaN."""
        return {name: error for name, error in self.errors.items() if math.isfinite(error)}


def known_metrics(task: Task) -> dict[str, str]:
    """Metric name → direction for Optuna; "" where neither the name nor the metric object tells."""
    directions = dict.fromkeys(MINIMISED, "minimize") | dict.fromkeys(MAXIMISED, "maximize")
    objects = {True: "maximize", False: "minimize", None: ""}
    own = {
        name: directions.get(name) or objects[getattr(metric, "higher_is_better", None)]
        for name, metric in task_metrics(task).items()
    }
    # The score is of accuracy and size together.
    score = {SCORE: "maximize"} if "accuracy" in own else {}
    return own | {name: directions[name] for name in STATIC} | score


def measure(
    subject: Subject,
    task: Task,
    wanted: Iterable[str],
    latency: LatencySettings,
    clock: Clock,
    resampled: bool = True,
) -> Measured:
    """All cheap metrics, latency and memory where they are wanted, task metrics on the validation split.

    Args:
        subject: what is measured.
        task: whose validation split and metrics count.
        wanted: metrics beside the cheap ones.
        latency: how that is measured.
        clock: counts the seconds.
        resampled: whether standard errors and replicates are wanted too.

    Raises:
        DivergedError: a metric is NaN or infinite.
        TaskError: a metric failed, or returned something else than a number.
    """
    assert task.val is not None
    with clock.running():
        scores = measure_split(subject.program, task.val, task, resampled)
    values, errors, replicates = scores.values, scores.errors, scores.replicates
    values["bytes"] = subject.bytes
    values["weight_bytes"] = subject.weight_bytes
    values["params"] = subject.params
    values["macs"] = subject.macs
    with clock.running():
        of_file, session = _of_file(subject, wanted, latency)
    values |= of_file
    if SCORE in wanted:
        base = subject.reference_metrics.get("params", values["params"])

        def score(accuracy: float) -> float:
            return acc_comp(accuracy, values["params"], base, subject.tau)

        values[SCORE] = score(values["accuracy"])
        errors[SCORE] = subject.tau * errors["accuracy"]
        replicates[SCORE] = rounded(map(score, replicates["accuracy"]))
    return Measured(values, errors, replicates, scores.rows, scores.classes, session)


def _of_file(
    subject: Subject, wanted: Iterable[str], latency: LatencySettings
) -> tuple[dict[str, float], dict[str, Any]]:
    """What is measured by running the subject's file, and the settings of the runtime."""
    values: dict[str, float] = {}
    session: dict[str, Any] = {}
    file = subject.program_file
    if "latency" in wanted:
        assert file is not None
        base = subject.reference_metrics.get("latency")
        timing = measure_latency(file, subject.reference, subject.example, latency, base)
        values |= {"latency": timing.milliseconds, "latency_spread": timing.spread}
        session = dict(timing.session)
    if "memory" in wanted:
        assert file is not None
        values["memory"] = peak_memory(file, repeated_rows(subject.example, latency.batch_size))
    return values, session
