"""Models as methods can take them: without wrappers, and whole before their first call."""

from __future__ import annotations

import itertools
from collections.abc import Callable

import torch
from torch import nn
from torch.nn.parallel import DistributedDataParallel
from torch.nn.parameter import is_lazy
from torch.optim.swa_utils import AveragedModel

from autocompress.errors import TaskError, one_line
from autocompress.task.inputs import Inputs, call, moved
from autocompress.task.modes import modes_kept


def ready(model: nn.Module, example: Callable[[], Inputs]) -> nn.Module:
    """The module that `torch.compile`, data parallelism or averaging wraps, or the model itself, whose lazy
    layers have their parameters then.

    Args:
        model: whose lazy layers make them of the example.
        example: makes inputs, `(B, ...)`; asked only where there are lazy layers.

    Raises:
        TaskError: it fails on the example.
    """
    model = unwrapped(model)
    if any(map(is_lazy, itertools.chain(model.parameters(), model.buffers()))):
        try:
            with torch.no_grad(), modes_kept(model):
                call(model.eval(), moved(example(), next(model.parameters()).device))
        except Exception as error:  # of the user's forward
            raise TaskError(
                f"lazy layers must get their parameters from the first training inputs but: {one_line(error)}"
            ) from error
        left = [name for name, parameter in model.named_parameters() if is_lazy(parameter)]
        if left:
            raise TaskError(f"lazy layers must be called by forward but that of '{left[0]}' was not.")
    return model


def unwrapped(model: nn.Module) -> nn.Module:
    """What the wrappers of training are around."""
    while True:
        if isinstance(model, (nn.DataParallel, DistributedDataParallel, AveragedModel)):
            model = model.module
        elif isinstance(inner := getattr(model, "_orig_mod", None), nn.Module):  # of `torch.compile`
            model = inner
        else:
            return model
