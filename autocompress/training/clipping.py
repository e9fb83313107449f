"""Gradients of a loss and a penalty, of which the loss's alone is clipped."""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
from torch import Tensor, nn

from autocompress.task import Task


def greatest_norm(task: Task, optimizer: torch.optim.Optimizer, reference: bool = False) -> float:
    """Of the loss's gradient: the recipe's, or by default 1 where SGD follows cross entropy in a trial.

    Args:
        task: its loss and recipe.
        optimizer: that follows the gradient.
        reference: whether the reference trains, which no one has cut: by default it is left alone.
    """
    if task.recipe.grad_clip is not None:
        return task.recipe.grad_clip
    follows = isinstance(optimizer, torch.optim.SGD) and task.cross_entropy
    return 1.0 if follows and not reference else math.inf


def backward(loss: Tensor, penalty: Tensor | None, clipped: Sequence[nn.Parameter], clip: float) -> None:
    """Add the gradients of both, the loss's clipped: what a penalty is to reach, it must reach.

    Args:
        loss: whose gradient is added to those that there are, and clipped with them.
        penalty: of the step; None where other batches of it follow, after which both are done.
        clipped: all that the loss reaches.
        clip: the greatest norm, or infinity.
    """
    if penalty is None:
        loss.backward()  # type: ignore[no-untyped-call]
        return
    if math.isinf(clip):
        # A penalty without a gradient may lie on another device.
        both = loss + penalty if penalty.requires_grad else loss
        both.backward()  # type: ignore[no-untyped-call]
        return
    loss.backward(retain_graph=penalty.requires_grad)  # type: ignore[no-untyped-call]  # may share it
    torch.nn.utils.clip_grad_norm_(clipped, clip)
    if penalty.requires_grad:
        penalty.backward()  # type: ignore[no-untyped-call]
