"""Measures one model: task metrics on a split, sizes and costs of the artefact."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field
from pathlib import Path

from torch import Tensor, nn

from autocompress.errors import DivergedError
from autocompress.graph.costs import count_params, layer_macs
from autocompress.metrics.accuracy import accuracy
from autocompress.metrics.latency import LatencySettings, measure_latency
from autocompress.score import SCORE, TAU, acc_comp
from autocompress.task import Batches, MetricFn, Task
from autocompress.training import Clock, predict

MINIMISED = (
    *("bytes", "weight_bytes", "latency", "macs", "params"),
    *("loss", "error", "mse", "mae", "rmse", "perplexity", "wer", "cer"),
)
MAXIMISED = ("accuracy", "top5", "f1", "precision", "recall", "auc", "auroc", "map", "iou", "r2", "psnr")
STATIC = ("bytes", "weight_bytes", "latency", "macs", "params")


@dataclass(frozen=True)
class Subject:
    """What is measured.

    Args:
        program: the artefact, loaded from its file.
        program_file: that file.
        model: the compact module it was exported from, for counts.
        bytes: size of that file.
        weight_bytes: what tensors take of it.
        example: `(B, ...)`.
        reference: the reference's program file, None where the subject is the reference.
        reference_metrics: the reference's, empty where the subject is the reference.
        tau: weight of accuracy in `acc_comp`.
    """

    program: Callable[[Tensor], Tensor]
    program_file: Path
    model: nn.Module
    bytes: int
    weight_bytes: int
    example: Tensor
    reference: Path | None = None
    reference_metrics: Mapping[str, float] = field(default_factory=dict)
    tau: float = TAU


def task_metrics(task: Task) -> Mapping[str, MetricFn]:
    """The task's own metrics; top-1 accuracy where it names none."""
    return task.metrics if task.metrics is not None else {"accuracy": accuracy}


def known_metrics(task: Task) -> dict[str, str]:
    """Metric name → direction for Optuna; "" where the name does not tell."""
    directions = dict.fromkeys(MINIMISED, "minimize") | dict.fromkeys(MAXIMISED, "maximize")
    own = task_metrics(task)
    # The score is of accuracy and size together.
    score = {SCORE: "maximize"} if "accuracy" in own else {}
    return {name: directions.get(name, "") for name in (*own, *STATIC)} | score


def measure_split(program: Callable[[Tensor], Tensor], batches: Batches, task: Task) -> dict[str, float]:
    """The task's metrics over a split.

    Raises:
        DivergedError: a metric is NaN or infinite.
    """
    outputs, targets = predict(program, batches)
    values = {name: float(fn(outputs, targets)) for name, fn in task_metrics(task).items()}
    for name, value in values.items():
        if not math.isfinite(value):
            raise DivergedError(f"metric {name} is {value}.")
    return values


def measure(
    subject: Subject, task: Task, wanted: Iterable[str], latency: LatencySettings, clock: Clock
) -> dict[str, float]:
    """All cheap metrics, latency where it is wanted, task metrics on the validation split."""
    assert task.val is not None
    with clock.running():
        values = measure_split(subject.program, task.val, task)
    values["bytes"] = subject.bytes
    values["weight_bytes"] = subject.weight_bytes
    values["params"] = count_params(subject.model)
    values["macs"] = layer_macs(subject.model, subject.example).get("", 0)
    if "latency" in wanted:
        with clock.running():
            found = measure_latency(subject.program_file, subject.reference, subject.example, latency)
        if subject.reference is None:
            values["latency"] = found.milliseconds
        else:
            values["latency"] = found.ratio * subject.reference_metrics["latency"]
        values["latency_spread"] = found.spread
    if SCORE in wanted:
        whole = subject.reference_metrics.get("params", values["params"])
        values[SCORE] = acc_comp(values["accuracy"], values["params"], whole, subject.tau)
    return values
