"""The optimiser of a task over groups of parameters: the user's own, or the recipe's."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import nn

from autocompress.errors import TaskError, one_line
from autocompress.task.task import Recipe, Task


def param_group(params: Sequence[nn.Parameter], names: Sequence[str]) -> dict[str, Any]:
    """Parameters and their names as `torch.optim` takes and keeps them."""
    return {"params": list(params), "param_names": list(names)}


def make_optimizer(task: Task, groups: Sequence[dict[str, Any]]) -> torch.optim.Optimizer:
    """The task's own optimiser over groups of parameters, or the recipe's.

    Args:
        task: whose `optimizer` or recipe it is.
        groups: `params`, `param_names`, and what is other than usual for them, such as `weight_decay`.

    Raises:
        TaskError: the task's own function fails, or does not make an optimiser of all these parameters.
    """
    if task.optimizer is None:
        return _recipe_optimizer(task.recipe, groups)
    try:
        optimizer = task.optimizer([dict(group) for group in groups])
    except Exception as error:
        raise TaskError(
            f"optimizer must make a torch.optim.Optimizer of parameter groups but failed: {one_line(error)}"
        ) from error
    if not isinstance(optimizer, torch.optim.Optimizer):
        raise TaskError(f"optimizer must make a torch.optim.Optimizer but made a {type(optimizer).__name__}.")
    trained = {id(parameter) for group in optimizer.param_groups for parameter in group["params"]}
    named = [pair for group in groups for pair in zip(group["param_names"], group["params"], strict=True)]
    left_out = [name for name, parameter in named if id(parameter) not in trained]
    if left_out:
        raise TaskError(
            "optimizer must train all parameters of the groups that it is given but leaves out "
            f"{len(left_out)} of {len(named)}, such as {left_out[0]!r} (requires_grad=False freezes one)."
        )
    return optimizer


def sgd_rate(task: Task, model: nn.Module) -> float | None:
    """The greatest learning rate that the task's optimiser gives a model's parameters; None where it is not
    SGD."""
    named = [(name, p) for name, p in model.named_parameters() if p.requires_grad]
    names, params = [name for name, _ in named], [parameter for _, parameter in named]
    optimizer = make_optimizer(task, [param_group(params, names)])
    if not isinstance(optimizer, torch.optim.SGD):
        return None
    return max(float(group["lr"]) for group in optimizer.param_groups)


def _recipe_optimizer(recipe: Recipe, groups: Sequence[dict[str, Any]]) -> torch.optim.Optimizer:
    # All parameters in a few kernels; None is PyTorch's own choice.
    fused = all(p.is_cuda for group in groups for p in group["params"]) or None
    options: dict[str, Any] = {"lr": recipe.lr, "weight_decay": recipe.weight_decay, "fused": fused}
    if recipe.optimizer == "sgd":
        momentum = recipe.momentum
        return torch.optim.SGD(groups, momentum=momentum, nesterov=momentum > 0, **options)
    return torch.optim.AdamW(groups, **options)
