"""`run_trial`: from the reference and a configuration to a measured checkpoint; knows no scheduler."""

from __future__ import annotations

import math
import random
import time
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from autocompress import plugins
from autocompress.checkpoint.store import ARTIFACTS, Checkpoint, Writer
from autocompress.compressors._base import Compressor, CompressorState
from autocompress.errors import SettingsError, TaskError, one_line
from autocompress.materialize import materialize
from autocompress.metrics import Subject, measure
from autocompress.metrics.latency import LatencySettings
from autocompress.plan import plan_to_json
from autocompress.task import Task
from autocompress.training import Trainer, reestimate_batch_norm

BATCH_NORM_BATCHES = 50


@dataclass(frozen=True)
class Stage:
    """One compressor of a trial: a method and the fields of its `Config`."""

    method: str
    config: Mapping[str, Any]


@dataclass(frozen=True)
class TrialConfig:
    """All that tells one trial from another; JSON-able.

    Args:
        stages: compressors in order; none trains the reference itself further.
        epochs: of the whole trial.
        compress_share: share of the epochs that train with compressors; the rest fine-tunes.
        lr_scale: factor on the recipe's learning rate.
        seed: of everything random in the trial.
    """

    stages: tuple[Stage, ...] = ()
    epochs: int = 10
    compress_share: float = 0.5
    lr_scale: float = 1.0
    seed: int = 0

    def __post_init__(self) -> None:
        if self.epochs < 1:
            raise SettingsError(f"epochs must be at least 1 but got {self.epochs}.")
        if not 0 < self.compress_share <= 1:
            raise SettingsError(f"compress_share must be in (0, 1] but got {self.compress_share}.")
        if not self.lr_scale > 0:
            raise SettingsError(f"lr_scale must be greater than 0 but got {self.lr_scale}.")

    def to_json(self) -> dict[str, Any]:
        return asdict(self)

    @staticmethod
    def from_json(data: Mapping[str, Any]) -> TrialConfig:
        stages = tuple(Stage(s["method"], s["config"]) for s in data["stages"])
        return TrialConfig(**{**data, "stages": stages})


@dataclass(frozen=True)
class Reference:
    """The trained reference model: weights as arrays, its program file and its metrics."""

    state: Mapping[str, NDArray[Any]]
    program: Path
    metrics: Mapping[str, float]


@dataclass(frozen=True)
class Measuring:
    """What to measure: the wanted metrics, the artefact that counts, and latency's settings."""

    metrics: tuple[str, ...] = ("accuracy", "bytes")
    artifact: str = "pt2"
    latency: LatencySettings = field(default_factory=LatencySettings)


@dataclass(frozen=True)
class TrialResult:
    """What a trial found; `step_seconds` were spent inside training and evaluation steps."""

    metrics: Mapping[str, float]
    history: list[dict[str, float]]
    proof: float
    seconds: float
    step_seconds: float


def run_trial(
    task: Task,
    reference: Reference,
    config: TrialConfig,
    folder: Path,
    measuring: Measuring | None = None,
    report: Callable[[Mapping[str, float]], None] = lambda entry: None,
    device: str = "cpu",
) -> TrialResult:
    """Compress the reference by a configuration, write the checkpoint and measure it as loaded.

    Args:
        task: with a validation split.
        reference: where training starts.
        config: what to do.
        folder: checkpoint folder, which appears whole or not at all.
        measuring: what to measure on which artefact.
        report: receives each epoch's entry.
        device: on which to train; artefacts are measured on the CPU.

    Raises:
        DivergedError: the loss or a metric became NaN or infinite.
        ProofError: the compact model does not equal the masked one.
        TrialError: the model cannot be exported.
    """
    start = time.perf_counter()
    seed_everything(config.seed)
    model = task.model()
    load_state(model, reference.state)
    model.to(device)
    trainer = Trainer(task, config.epochs, config.lr_scale, report)
    compressing = math.ceil(config.compress_share * config.epochs) if config.stages else 0
    plans, proof = [], 0.0
    for position, stage in enumerate(config.stages):
        epochs = split_epochs(compressing, len(config.stages))[position]
        compressor = make_compressor(stage)
        model, plan, stage_proof = compress_stage(model, task, compressor, trainer, epochs)
        plans.append({"method": stage.method, "edits": plan})
        proof = max(proof, stage_proof)
    trainer.fit(model, config.epochs - compressing)
    writer = Writer(folder)
    try:
        metrics = _measured(writer, model, task, reference, measuring or Measuring(), trainer)
        manifest = {
            "task": task.name,
            "model": task.model_name,
            "config": config.to_json(),
            "metrics": metrics,
            "input": task.input_spec().to_json(),
            "proof": {"max_relative_difference": proof},
            "stages": plans,
            "history": trainer.history,
        }
        writer.commit(manifest)
    finally:
        writer.discard()
    return TrialResult(metrics, trainer.history, proof, time.perf_counter() - start, trainer.clock.seconds)


def compress_stage(
    model: nn.Module, task: Task, compressor: Compressor[Any], trainer: Trainer, epochs: int
) -> tuple[nn.Module, list[dict[str, Any]], float]:
    """Train with one compressor, carry its plan out and re-estimate batch norm.

    Returns:
        The compact model, the plan as JSON-able data, and the proof's relative difference.
    """
    device = next(model.parameters()).device
    state = compressor.attach(model, task)
    trainer.fit(state.model, epochs, CompressorHooks(compressor, state))
    plan = compressor.plan(state)
    plain = compressor.release(state).to("cpu")
    done = materialize(plain, plan, task.example())
    done.model.to(device)
    with trainer.clock.running():
        reestimate_batch_norm(done.model, task.train, BATCH_NORM_BATCHES)
    return done.model, plan_to_json(plan), done.proof


@dataclass
class CompressorHooks:
    """Lets the training loop call a compressor without knowing of compressors."""

    compressor: Compressor[Any]
    state: CompressorState

    def param_groups(self) -> list[tuple[list[nn.Parameter], float, float | None]]:
        groups = self.compressor.param_groups(self.state)
        return [(group.params, group.lr_scale, group.weight_decay) for group in groups]

    def penalty(self) -> Tensor:
        return self.compressor.penalty(self.state)

    def after_step(self, progress: float) -> None:
        self.compressor.after_step(self.state, progress)

    def after_epoch(self, progress: float) -> Mapping[str, float]:
        return self.compressor.after_epoch(self.state, progress)


def train_reference(
    task: Task,
    folder: Path,
    measuring: Measuring,
    seed: int = 0,
    report: Callable[[Mapping[str, float]], None] = lambda entry: None,
    device: str = "cpu",
) -> Checkpoint:
    """Train the reference (or take the task's weights), store it like any checkpoint and measure it.

    Raises:
        TaskError: the task's weights do not fit its model.
        DivergedError: the loss or a metric became NaN or infinite.
    """
    seed_everything(seed)
    model = task.model().to(device)
    epochs = task.recipe.reference_epochs or task.recipe.epochs
    trainer = Trainer(task, epochs, report=report)
    if task.weights is not None:
        load_state(model, {name: t.numpy() for name, t in task.weights.items()})
    else:
        trainer.fit(model, epochs)
    writer = Writer(folder)
    try:
        metrics = _measured(writer, model, task, None, measuring, trainer)
        return writer.commit(
            {
                "task": task.name,
                "model": task.model_name,
                "config": TrialConfig(epochs=epochs, seed=seed).to_json(),
                "metrics": metrics,
                "input": task.input_spec().to_json(),
                "proof": {"max_relative_difference": 0.0},
                "stages": [],
                "history": trainer.history,
            }
        )
    finally:
        writer.discard()


def _measured(
    writer: Writer,
    model: nn.Module,
    task: Task,
    reference: Reference | None,
    measuring: Measuring,
    trainer: Trainer,
) -> dict[str, float]:
    """Export, load again from the file, and measure what was loaded."""
    model = model.to("cpu").eval()
    example = task.example()
    checkpoint = writer.write(model, example, measuring.artifact)
    subject = Subject(
        program=checkpoint.program(measuring.artifact),
        program_file=checkpoint.path / ARTIFACTS[measuring.artifact][0],
        model=model,
        bytes=checkpoint.bytes(measuring.artifact),
        example=example,
        reference=reference.program if reference else None,
        reference_latency=reference.metrics.get("latency") if reference else None,
    )
    return measure(subject, task, measuring.metrics, measuring.latency, trainer.clock)


def make_compressor(stage: Stage) -> Compressor[Any]:
    """The configured compressor of a stage.

    Raises:
        SettingsError: the method or a field of its configuration is unknown or out of range.
    """
    cls = plugins.compressor(stage.method)
    try:
        config = cls.Config(**stage.config)
    except TypeError as error:
        raise SettingsError(f"config of {stage.method} is not usable: {one_line(error)}") from error
    made: Compressor[Any] = cls(config)
    return made


def split_epochs(epochs: int, parts: int) -> list[int]:
    """Share epochs out over stages as evenly as can be, earlier ones first."""
    return [epochs // parts + (position < epochs % parts) for position in range(parts)]


def load_state(model: nn.Module, state: Mapping[str, NDArray[Any]]) -> None:
    """Copy arrays into a model's state.

    Raises:
        TaskError: names or shapes do not fit the model.
    """
    # Copied, because arrays shared between workers are read-only.
    tensors = {name: torch.from_numpy(np.array(array)) for name, array in state.items()}
    try:
        model.load_state_dict(tensors)
    except RuntimeError as error:
        lines = [line.strip() for line in str(error).splitlines() if line.strip()]
        raise TaskError(f"weights must fit the model but: {' '.join(lines[1:3])[:300]}") from error


def seed_everything(seed: int) -> None:
    """Seed Python, NumPy and PyTorch."""
    random.seed(seed)
    np.random.seed(seed % 2**32)  # noqa: NPY002  (the user's own code may draw from it)
    torch.manual_seed(seed)
