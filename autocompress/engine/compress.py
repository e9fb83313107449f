"""`compress`: one compressor alone on a model, without any search."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from torch import nn

from autocompress.errors import SettingsError
from autocompress.methods.base import Compressor
from autocompress.task import Task
from autocompress.task.checks import check_batches_of_one
from autocompress.training.loop import Trainer
from autocompress.trial import compress_stage, compressing_epochs, seed_everything


@dataclass(frozen=True)
class Compressed:
    """A compact model, one history entry per epoch, what was changed, and the proof.

    `proof` is the greatest relative difference of its outputs to the masked model's.
    """

    model: nn.Module
    history: list[dict[str, float]]
    plan: list[dict[str, Any]]
    proof: float


def compress(
    model: nn.Module,
    task: Task,
    compressor: Compressor[Any],
    *,
    compress_share: float = 0.5,
    seed: int = 0,
) -> Compressed:
    """Train a model with a compressor, make it physically small, and fine-tune it.

    Args:
        model: where training starts; changed in place, use what is returned.
        task: data, loss and recipe; `recipe.epochs` is the total.
        compressor: a configured method.
        compress_share: share of the epochs that train with the compressor, in (0, 1]; one epoch at
            least is left to fine-tune where there are two.
        seed: of everything random.

    Raises:
        SettingsError: `compress_share` is out of range.
        TaskError: `train` has a batch of one row, which the model cannot train on.
        DivergedError: the loss became NaN or infinite.
        ProofError: the compact model does not equal the masked one.
    """
    if not 0 < compress_share <= 1:
        raise SettingsError(f"compress_share must be in (0, 1] but got {compress_share}.")
    check_batches_of_one(task, model)
    seed_everything(seed, task)
    trainer = Trainer(task, task.recipe.epochs)
    epochs = compressing_epochs(task.recipe.epochs, compress_share)
    compact, plan, proof = compress_stage(model, task, compressor, trainer, epochs)
    trainer.fit(compact, task.recipe.epochs - epochs)
    return Compressed(compact.eval(), trainer.history, plan, proof)
