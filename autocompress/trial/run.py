"""`run_trial`: from a parent and a configuration to a measured checkpoint; knows no scheduler."""

from __future__ import annotations

import copy
import random
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from autocompress.checkpoint.onnx_options import metadata_of
from autocompress.checkpoint.program import files_of, program_on, weight_bytes
from autocompress.checkpoint.rebuilding import read_edits, rebuild_from
from autocompress.checkpoint.store import (
    LOSS,
    UNQUANTISED,
    Checkpoint,
    Writer,
    open_checkpoint,
    taken_over_folder,
    trial_folder,
)
from autocompress.checkpoint.weights import load_loss
from autocompress.errors import CheckpointError, TaskError
from autocompress.graph import analyse, within
from autocompress.graph.costs import count_params, layer_macs, profile
from autocompress.graph.layers import layer_summaries
from autocompress.measure import Measured, Subject, measure
from autocompress.surgery import Edit, Encode, apply, check_equal, joined
from autocompress.surgery.preparation import prepare_model
from autocompress.task import Task, on_device
from autocompress.task.checks import apply_prepare, called, fresh_model, make_model, make_teacher
from autocompress.task.criterion import changed_tensors, load_changed
from autocompress.task.limits import settle
from autocompress.task.pretrained import load_weights
from autocompress.task.random_state import generators_of
from autocompress.training.distillation import Distillation
from autocompress.training.loop import Trainer
from autocompress.trial.config import TrialConfig
from autocompress.trial.int8 import int8_data
from autocompress.trial.measuring import (
    Measuring,
    Reference,
    measure_unexported,
    with_estimated_bytes,
)
from autocompress.trial.rungs import RungMeter
from autocompress.trial.sensitivity import with_losses
from autocompress.trial.stages import compress_in_stages, make_method


@dataclass(frozen=True)
class TrialResult:
    """What a trial found; JSON-able.

    Args:
        metrics: of the compressed model, as loaded from its file.
        history: one entry per epoch.
        difference: greatest relative difference of the compact model to what was trained at full size.
        seconds: the trial took.
        step_seconds: of them inside training and evaluation steps.
        method_seconds: of these between optimiser steps, by the methods themselves, such as LC's C steps.
        errors: standard errors of task metrics and `acc_comp`; a metric whose error is not known has none.
        replicates: of the same metrics, over resamples of the validation rows that all trials share.
        validation_rows: how many they are.
        estimated: metrics that were not measured, because the model was not exported.
        int8: how the file was quantised, see `Quantized`; None where it was not.
    """

    metrics: Mapping[str, float]
    history: list[dict[str, float]]
    difference: float
    seconds: float
    step_seconds: float
    method_seconds: float = 0.0
    errors: Mapping[str, float] = field(default_factory=dict)
    replicates: Mapping[str, list[float]] = field(default_factory=dict)
    validation_rows: int = 0
    estimated: list[str] = field(default_factory=list)
    int8: Mapping[str, Any] | None = None


# Whether a candidate cannot be kept, by the least that its metrics can be, and by their replicates.
ShutOut = Callable[[Mapping[str, float], Mapping[str, Sequence[float]]], bool]


def run_trial(
    task: Task,
    reference: Reference,
    config: TrialConfig,
    folder: Path,
    measuring: Measuring | None = None,
    report: Callable[[Mapping[str, float]], None] = lambda entry: None,
    device: str = "cpu",
    shut_out: ShutOut | None = None,
    trials: Path | None = None,
) -> TrialResult:
    """Compress a parent's model by a configuration, write the checkpoint and measure it as loaded.

    A model that cannot be kept is measured as it is, without a file: exporting it and loading it again would
    take as long as all the rest of a small trial but its training.

    Args:
        task: with a validation split; opened, where equal trials are to get equal data whatever was drawn.
        reference: the parent and the teacher where the configuration names no other; what costs are relative
            to.
        config: what to do.
        folder: checkpoint folder, which appears whole or not at all.
        measuring: what to measure on which artefact, and after which epochs beside.
        report: receives each epoch's entry; at a rung with "rung/<metric>" of what the model would be now.
        device: on which to train, and to run the artefact for its task metrics where it computes there what
            it does on the CPU; latency is that of the CPU.
        shut_out: says of which models there need be no checkpoint; None writes each.
        trials: folder of the checkpoints of the trials that the configuration names as parent or teacher;
            beside it lies what was taken over from another run.

    Raises:
        CheckpointError: the parent's or the teacher's checkpoint is missing or damaged.
        DivergedError: the loss or a metric became NaN or infinite.
        ProofError: the compact model does not equal the masked one, or edits and weights make another one.
        CheckpointError: edits and weights do not make the compact model again.
        TrialError: the model cannot be exported.
    """
    start = time.perf_counter()
    task = _limited(task, reference)
    seed_everything(config.seed, task)
    origin = _Origin(task, reference, trials)
    model, edits = origin.start(config)
    model.to(device)
    distillation = _distillation(origin, config, device, model)
    measuring = measuring or Measuring()
    meter = RungMeter(task, reference, measuring)
    trainer = Trainer(task, config.epochs, config.lr_scale, report, distillation, watch=meter)
    load_changed(trainer.criterion, origin.loss(config))
    methods = [make_method(stage) for stage in config.stages]
    compressed = compress_in_stages(model, task, methods, trainer, config.compress_share)
    model, difference = compressed.model.to("cpu").eval(), compressed.difference
    macs = layer_macs(model, task.example())
    if shut_out is not None and measuring.without_file:
        unexported = measure_unexported(model, task, reference, measuring, trainer.clock, macs)
        if shut_out(unexported.metrics, unexported.replicates):
            estimated = ("bytes", "weight_bytes")
            return _result(with_estimated_bytes(unexported, reference), trainer, difference, start, estimated)
    stored = _Stored(config, reference, difference, joined([*edits, *compressed.edits]))
    checkpoint, measured = _store(folder, model, macs, task, measuring, trainer, stored, torch.device(device))
    result = _result(measured, trainer, difference, start)
    return replace(result, int8=checkpoint.manifest["int8"])


def _result(
    measured: Measured, trainer: Trainer, difference: float, start: float, estimated: Sequence[str] = ()
) -> TrialResult:
    return TrialResult(
        measured.metrics,
        trainer.history,
        difference,
        time.perf_counter() - start,
        trainer.clock.seconds,
        trainer.clock.method_seconds,
        measured.known_errors,
        measured.replicates,
        measured.rows,
        list(estimated),
    )


@dataclass(frozen=True)
class _Origin:
    """Makes the models that a trial starts from and learns from."""

    task: Task
    reference: Reference
    trials: Path | None

    def start(self, config: TrialConfig) -> tuple[nn.Module, list[Edit]]:
        """What a trial starts from, in evaluation mode, and the edits that lead to it from the user's."""
        if config.taken_over:
            return self._rebuilt(taken_over_folder, config.taken_over)
        return self.model(config.parent)

    def model(self, number: int) -> tuple[nn.Module, list[Edit]]:
        """A trial's model, in evaluation mode, and the edits that lead to it from the user's."""
        if number == 0:
            model = apply(fresh_model(self.task), self.reference.edits, self.task.example())
            load_state(model, self.reference.state)
            return model, [*self.reference.edits]
        return self._rebuilt(trial_folder, number)

    def loss(self, config: TrialConfig) -> Mapping[str, Tensor]:
        """What training changed of the loss beside the model that a trial starts from."""
        if config.taken_over or config.parent:
            folder_of = taken_over_folder if config.taken_over else trial_folder
            assert self.trials is not None
            return load_loss(folder_of(self.trials, config.taken_over or config.parent) / LOSS)
        return self.reference.loss

    def _rebuilt(self, folder_of: Callable[[Path, int], Path], number: int) -> tuple[nn.Module, list[Edit]]:
        if self.trials is None:
            raise CheckpointError(f"trial {number} must have a checkpoint but no folder of trials is given.")
        folder = folder_of(self.trials, number)
        if folder_of is trial_folder:
            open_checkpoint(folder)  # what changed on the disk would go on in all that comes of it
        return rebuild_from(fresh_model(self.task), folder, self.task.example()).eval(), read_edits(folder)


def _distillation(
    origin: _Origin, config: TrialConfig, device: str, parent: nn.Module
) -> Distillation | None:
    if not config.distill_weight:
        return None
    if origin.task.teacher is not None:
        teacher = make_teacher(origin.task)
    elif config.teacher == config.parent:
        teacher = copy.deepcopy(parent)
    else:
        teacher = origin.model(config.teacher)[0]
    return Distillation(teacher.to(device).eval(), config.distill_weight, config.distill_temperature)


def train_reference(
    task: Task,
    folder: Path,
    measuring: Measuring,
    seed: int = 0,
    report: Callable[[Mapping[str, float]], None] = lambda entry: None,
    device: str = "cpu",
) -> Checkpoint:
    """Train the reference (or take the task's weights), prepare it, store it like any checkpoint and measure
    it.

    Raises:
        TaskError: the task's weights do not fit its model, or its `prepare` fails.
        DivergedError: the loss or a metric became NaN or infinite.
    """
    given = task.limits
    seed_everything(seed, task)
    model = make_model(task).to(device)
    task = task if given is not None else replace(task, limits=settle(model))
    epochs = task.recipe.reference_epochs or task.recipe.epochs
    trainer = Trainer(task, epochs, report=report, reference=True)
    if task.weights is not None:
        load_weights(model, task.weights)
    else:
        trainer.fit(model, epochs)
    model, edits = prepare_model(apply_prepare(task, model), task.example())
    task = task if given is not None else replace(task, limits=settle(model))
    model.to("cpu").eval()
    macs = layer_macs(model, task.example())
    config = TrialConfig(epochs=epochs, seed=seed)
    plain = UNQUANTISED.get(measuring.artifact, measuring.artifact)
    measuring = replace(measuring, artifact=plain)
    stored = _Stored(config, edits=edits)
    return _store(folder, model, macs, task, measuring, trainer, stored, torch.device(device))[0]


def _limited(task: Task, reference: Reference) -> Task:
    """The task with what is frozen as its limits, where it has none: methods may freeze more for a while."""
    if task.limits is not None:
        return task
    return replace(task, limits=settle(apply(fresh_model(task), reference.edits, task.example())))


@dataclass(frozen=True)
class _Stored:
    """What a checkpoint says of how its model came about; `reference` is None for the reference."""

    config: TrialConfig
    reference: Reference | None = None
    difference: float = 0.0
    edits: tuple[Edit, ...] = ()


def _store(
    folder: Path,
    model: nn.Module,
    macs: Mapping[str, int],
    task: Task,
    measuring: Measuring,
    trainer: Trainer,
    stored: _Stored,
    device: torch.device,
) -> tuple[Checkpoint, Measured]:
    """Export a model, measure it as loaded again from the file, and commit the checkpoint."""
    writer = Writer(folder)
    try:
        measured = _measured(writer, model, macs, task, stored, measuring, trainer, device)
        checkpoint = writer.commit(
            {
                "task": task.name,
                "model": task.model_name,
                "config": stored.config.to_json(),
                "metrics": measured.metrics,
                "errors": measured.known_errors,
                "replicates": measured.replicates,
                "validation_rows": measured.rows,
                "class_names": None if task.classes is None else list(task.classes),
                "class_counts": measured.classes,
                "layers": [layer.to_json() for layer in layer_summaries(model, macs)],
                "input": task.input_json(),
                "prepare": None if task.prepare is None else called(task.prepare),
                "profile": _profile(model, macs, task, writer, stored, device),
                "check": {"max_relative_difference": stored.difference},
                "artifact": measuring.artifact,
                "int8": None if writer.quantized is None else writer.quantized.to_json(),
                "session": measured.session or None,
                "history": trainer.history,
            }
        )
        return checkpoint, measured
    finally:
        writer.discard()


def _profile(
    model: nn.Module,
    macs: Mapping[str, int],
    task: Task,
    writer: Writer,
    stored: _Stored,
    device: torch.device,
) -> dict[str, Any] | None:
    """What search spaces may know of the model; None where weights are codes: nothing starts from it.

    The reference is probed, once for all trials.
    """
    if any(isinstance(edit, Encode) and not edit.of_weights for edit in stored.edits):
        return None
    example = task.example()
    analysis = within(analyse(model, example, writer.graph), task.limits_of(model))
    seen = profile(model, example, analysis, macs)
    if stored.reference is None:
        seen = with_losses(seen, model, task, analysis, device)
    return seen.to_json()


def _measured(
    writer: Writer,
    model: nn.Module,
    macs: Mapping[str, int],
    task: Task,
    stored: _Stored,
    measuring: Measuring,
    trainer: Trainer,
    device: torch.device,
) -> Measured:
    """Export, check that edits and weights rebuild the model, and measure what is loaded from the file."""
    example = task.example()
    calibration, control = int8_data(task, measuring)
    loss = changed_tensors(task.criterion, trainer.criterion)
    metadata = metadata_of(task.input_json(), task.classes)
    checkpoint = writer.write(
        model, example, measuring.artifact, calibration, stored.edits, loss, task.limits, control, metadata
    )
    rebuilt = rebuild_from(fresh_model(task), checkpoint.path, example)
    check_equal(rebuilt, model, example, "rebuilding the model from edits and weights")
    reference = stored.reference
    file = checkpoint.artifact_file(measuring.artifact)
    program, near = program_on(file, device, example)
    subject = Subject(
        program=program,
        program_file=file,
        params=count_params(model),
        macs=macs.get("", 0),
        bytes=sum(part.stat().st_size for part in files_of(file)),
        weight_bytes=weight_bytes(file),
        example=example,
        reference=reference.program if reference else None,
        reference_metrics=reference.metrics if reference else {},
        tau=measuring.tau,
    )
    assert task.val is not None
    judged = replace(task, val=on_device(task.val, near))
    return measure(subject, judged, measuring.metrics, measuring.latency, trainer.clock)


def load_state(model: nn.Module, state: Mapping[str, NDArray[Any] | Tensor]) -> None:
    """Copy arrays or tensors into a model's state.

    Raises:
        TaskError: names or shapes do not fit the model.
    """
    # Arrays are copied, because those shared between workers are read-only.
    tensors = {
        name: value.detach() if isinstance(value, Tensor) else torch.from_numpy(np.array(value))
        for name, value in state.items()
    }
    try:
        model.load_state_dict(tensors)
    except RuntimeError as error:
        lines = [line.strip() for line in str(error).splitlines() if line.strip()]
        raise TaskError(f"weights must fit the model but: {' '.join(lines[1:3])[:300]}") from error


def seed_everything(seed: int, task: Task | None = None) -> None:
    """Seed Python, NumPy and PyTorch, and the generators that the task's training loader has of its own."""
    random.seed(seed)
    np.random.seed(seed % 2**32)  # noqa: NPY002  (the user's own code may draw from it)
    torch.manual_seed(seed)
    for generator in () if task is None else generators_of(task.train):
        generator.manual_seed(seed)
