"""One stage of a trial: train with a method, make the model small, repair batch norm."""

from __future__ import annotations

import warnings
from collections.abc import Sequence
from dataclasses import dataclass

from torch import nn

from autocompress import plugins
from autocompress.errors import SettingsError, one_line
from autocompress.graph import analyse, within
from autocompress.graph.costs import profile
from autocompress.methods.base import Method, Session
from autocompress.surgery import Edit, Untouched, absorb_biases, check_equal
from autocompress.task import Limits, Task
from autocompress.task.inputs import moved
from autocompress.training.loop import (
    BATCH_NORM_BATCHES,
    Plain,
    Trainer,
    device_of,
    reestimate_batch_norm,
)
from autocompress.trial.config import Stage
from autocompress.trial.halves import round_vectors

# Steps in which a method has time to come to its end.
LEAST_STEPS = 50


@dataclass(frozen=True)
class CompressedStage:
    """A model that methods made smaller, how, and how far its outputs are from what was trained.

    Args:
        model: the compact model.
        edits: what leads to it from the model before.
        difference: greatest relative difference of its outputs to those of the trained model at full size.
    """

    model: nn.Module
    edits: tuple[Edit, ...]
    difference: float


def compress_in_stages(
    model: nn.Module, task: Task, methods: Sequence[Method], trainer: Trainer, share: float
) -> CompressedStage:
    """Train with methods, one after the other, make the model small after each, and fine-tune what is left.

    Args:
        model: where training starts; changed in place.
        task: within its limits.
        methods: configured, in order; none trains the model on.
        trainer: whose epochs are spent.
        share: of them that train with methods.

    Returns:
        The compact model in evaluation mode, and all edits in order.

    Raises:
        DivergedError: the loss became NaN or infinite.
        ProofError: a compact model does not equal the one that was trained.
        TrialError: a method changed what is to stay as it is.
    """
    epochs_of_stages = _epochs_of_stages(trainer, share, methods)
    edits: list[Edit] = []
    difference = 0.0
    for method, epochs in zip(methods, epochs_of_stages, strict=True):
        stage = compress_stage(model, task, method, trainer, epochs)
        model, difference = stage.model, max(difference, stage.difference)
        edits += stage.edits
    trainer.fit(model, trainer.epochs - sum(epochs_of_stages))
    absorb_biases(model.eval(), moved(task.example(), device_of(model)), task.limits)
    round_vectors(model, task)
    return CompressedStage(model, tuple(edits), difference)


def compress_stage(
    model: nn.Module, task: Task, method: Method, trainer: Trainer, epochs: float
) -> CompressedStage:
    """Train with one method, make the model small, check that this changed nothing else, nor what is to stay
    as it is, and re-estimate batch norm.

    Args:
        model: where training starts; changed in place.
        task: whose inputs the check is on.
        method: a configured method.
        trainer: of the trial.
        epochs: of this stage.

    Raises:
        ProofError: the compact model does not equal the trained one.
        TrialError: the method changed what is to stay as it is.
    """
    limits = task.limits_of(model)
    untouched = Untouched.of(model, analyse(model, task.example()), limits)
    session = _session(method, model, task, limits)
    trainer.clock.add_method(session.start_seconds)
    trainer.fit(session.model, epochs, session)
    finished = session.finish()
    device = next(finished.model.parameters()).device
    probe = moved(task.example(), device)
    surgery = f"surgery by {type(method).__name__}"
    untouched.check(finished.model, surgery)
    difference = check_equal(finished.model, finished.expected, probe, surgery)
    with trainer.clock.running():
        reestimate_batch_norm(finished.model, task, BATCH_NORM_BATCHES)
    return CompressedStage(finished.model, finished.edits, difference)


def _session(method: Method, model: nn.Module, task: Task, limits: Limits) -> Session:
    """The method's, or plain training where limits leave nothing that it could change."""
    if limits != Limits():
        example = task.example()
        analysis = analyse(model, example)
        reason = method.unsupported(profile(model, example, within(analysis, limits)))
        if reason is not None and method.unsupported(profile(model, example, analysis)) is None:
            warnings.warn(
                f"{type(method).__name__} changes nothing: without what is excluded or frozen, {reason}.",
                stacklevel=3,
            )
            return Plain(model)
    return method.start(model, task)


def make_method(stage: Stage) -> Method:
    """The configured method of a stage.

    Raises:
        SettingsError: the method or a field of its configuration is unknown or out of range.
    """
    cls = plugins.compressor(stage.method)
    try:
        config = cls.Config(**stage.config)
    except TypeError as error:
        raise SettingsError(f"config of {stage.method} is not usable: {one_line(error)}") from error
    method: Method = cls(config)
    return method


def _epochs_of_stages(trainer: Trainer, share: float, methods: Sequence[Method]) -> list[float]:
    """How many epochs train with each method; what they leave fine-tunes, unless the last one has it."""
    to_the_end = bool(methods) and methods[-1].to_the_end
    shared = len(methods) - to_the_end
    compressing = compressing_epochs(trainer, share, shared)
    epochs = [compressing / shared for _ in range(shared)]
    return [*epochs, trainer.epochs - compressing] if to_the_end else epochs


def compressing_epochs(trainer: Trainer, share: float, stages: int) -> float:
    """How many of a trial's epochs train with methods, all stages together.

    Args:
        trainer: of the trial.
        share: of its epochs, which may end in the middle of one.
        stages: for each there is one epoch at least, or `LEAST_STEPS` steps where an epoch has more; but what
            is left to repair is never less than one epoch, or half of the only one.
    """
    if not stages or not trainer.epochs:
        return 0.0
    least = stages * min(1.0, LEAST_STEPS / trainer.steps_per_epoch)
    return min(max(least, share * trainer.epochs), max(trainer.epochs / 2, trainer.epochs - 1))
