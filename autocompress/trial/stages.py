"""One stage of a trial: train with a compressor, carry its plan out, repair batch norm."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from torch import Tensor, nn

from autocompress import plugins
from autocompress.errors import SettingsError, one_line
from autocompress.methods.base import Compressor, CompressorState
from autocompress.surgery import materialize
from autocompress.surgery.edits import plan_to_json
from autocompress.task import Task
from autocompress.training.loop import Trainer, reestimate_batch_norm
from autocompress.trial.config import Stage

BATCH_NORM_BATCHES = 50


def compress_stage(
    model: nn.Module, task: Task, compressor: Compressor[Any], trainer: Trainer, epochs: int
) -> tuple[nn.Module, list[dict[str, Any]], float]:
    """Train with one compressor, carry its plan out and re-estimate batch norm.

    Returns:
        The compact model, the plan as JSON-able data, and the proof's relative difference.
    """
    device = next(model.parameters()).device
    state = compressor.attach(model, task)
    trainer.clock.add_method(state.attach_seconds)
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


def compressing_epochs(epochs: int, share: float, stages: int = 1) -> int:
    """How many of a trial's epochs train with compressors: the share, at least one for each stage, and
    at least one left to repair."""
    return min(max(stages, round(share * epochs)), max(1, epochs - 1))


def split_epochs(epochs: int, parts: int) -> list[int]:
    """Share epochs out over stages as evenly as can be, later ones first: they train the smaller model."""
    return [epochs // parts + (position >= parts - epochs % parts) for position in range(parts)]
