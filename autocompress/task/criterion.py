"""A loss or step with a state of its own: every training has a copy, whose parameters are trained along."""

from __future__ import annotations

import copy
from collections.abc import Mapping
from typing import Any, TypeVar

import torch
from torch import Tensor, nn

from autocompress.errors import TaskError, one_line

T = TypeVar("T")


def own_copy(criterion: T) -> T:
    """A copy of a loss or step, which training may change; a function as it is, which keeps nothing.

    Raises:
        TaskError: it cannot be copied.
    """
    try:
        return copy.deepcopy(criterion)
    except Exception as error:
        raise TaskError(
            f"loss and step must be copyable, one for each training, but: {type(error).__name__}: "
            f"{one_line(error)}"
        ) from error


def trained_parameters(criterion: Any) -> dict[str, nn.Parameter]:
    """The parameters of a loss that are trained along with the model, by name."""
    if not isinstance(criterion, nn.Module):
        return {}
    return {name: p for name, p in criterion.named_parameters() if p.requires_grad}


def leaves_of(loss: Tensor) -> list[Tensor]:
    """The tensors that a loss gives gradients to, where its graph ends."""
    leaves: list[Tensor] = []
    waiting: list[Any] = [loss.grad_fn] if loss.grad_fn is not None else []
    known = set(waiting)
    while waiting:
        node = waiting.pop()
        if hasattr(node, "variable"):
            leaves.append(node.variable)
        for earlier, _ in node.next_functions:
            if earlier is not None and earlier not in known:
                known.add(earlier)
                waiting.append(earlier)
    return leaves


def changed_tensors(before: Any, after: Any) -> dict[str, Tensor]:
    """What training changed of a loss, by name, on the CPU; nothing where it holds no tensors.

    Args:
        before: the loss as the user gave it.
        after: the same, or the copy that trained.
    """
    if not isinstance(before, nn.Module) or not isinstance(after, nn.Module):
        return {}
    given = before.state_dict()
    now = {name: tensor.detach().cpu() for name, tensor in after.state_dict().items()}
    return {name: tensor for name, tensor in now.items() if not torch.equal(tensor, given[name].cpu())}


def load_changed(criterion: Any, tensors: Mapping[str, Tensor]) -> None:
    """Copy what `changed_tensors` gave into a loss, in place."""
    if tensors and isinstance(criterion, nn.Module):
        criterion.load_state_dict(dict(tensors), strict=False)


def without_values(criterion: Any) -> Any:
    """A copy of a loss without the values that the parameters begin with which are trained along."""
    if not trained_parameters(criterion):
        return criterion
    bare = copy.deepcopy(criterion)
    for module in bare.modules():
        for name, parameter in list(module.named_parameters(recurse=False)):
            if parameter.requires_grad:
                setattr(module, name, nn.Parameter(torch.empty_like(parameter, device="meta")))
    return bare
