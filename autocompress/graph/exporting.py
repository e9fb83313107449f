"""The one way a model is exported: in eval mode, with a free batch size, attention's parts visible."""

from __future__ import annotations

import contextlib
import logging
import warnings
from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor, nn
from torch.export import ExportedProgram


def export(model: nn.Module, example: Tensor, least: int = 1) -> ExportedProgram:
    """The exported program of a model for any batch size; raises what `torch.export` raises.

    Args:
        model: exported in eval mode.
        example: `(B, ...)` with B ≥ 2.
        least: of the batch sizes that it must take.
    """
    with inference(model):
        batch = ({0: torch.export.Dim("batch", min=least)},)
        # A clone, because a program stores its example inputs with their whole storage.
        return torch.export.export(model, (example.clone(),), dynamic_shapes=batch)


@contextlib.contextmanager
def plain_attention() -> Iterator[None]:
    """No fused attention kernels of inference, which pass over the layers they stand for."""
    fastpath = torch.backends.mha.get_fastpath_enabled()
    torch.backends.mha.set_fastpath_enabled(False)
    try:
        yield
    finally:
        torch.backends.mha.set_fastpath_enabled(fastpath)


@contextlib.contextmanager
def full_precision() -> Iterator[None]:
    """Single precision as the CPU has it on a GPU too, whose convolutions otherwise round to TF32."""
    backends: Any = torch.backends
    settings = (backends.cudnn.conv, backends.cudnn.rnn, backends.cuda.matmul)
    before = [setting.fp32_precision for setting in settings]
    try:
        for setting in settings:
            setting.fp32_precision = "ieee"
        yield
    finally:
        for setting, precision in zip(settings, before, strict=True):
            setting.fp32_precision = precision


@contextlib.contextmanager
def inference(model: nn.Module) -> Iterator[None]:
    """Eval mode, no gradients, plain attention, and the exporters' chatter off."""
    was_training = model.training
    logger = logging.getLogger("torch.onnx")
    level = logger.level
    logger.setLevel(logging.ERROR)
    model.eval()
    try:
        with plain_attention(), torch.no_grad(), warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    finally:
        logger.setLevel(level)
        if was_training:
            model.train()
