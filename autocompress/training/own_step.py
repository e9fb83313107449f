"""A training step of the user's own: its loss, and what it called the model with."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils._pytree import tree_map

from autocompress.errors import AutocompressError, TaskError, one_line


@dataclass(frozen=True)
class Call:
    """A call of a model that gradients flow through: its arguments, and what it returned."""

    args: tuple[Any, ...]
    kwargs: Mapping[str, Any]
    outputs: Any


@contextmanager
def recorded(model: nn.Module) -> Iterator[list[Call]]:
    """The calls of a model that are made inside, of those with gradients; of its parts none."""
    calls: list[Call] = []

    def note(module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any], outputs: Any) -> None:
        if torch.is_grad_enabled():
            calls.append(Call(args, kwargs, outputs))

    handle = model.register_forward_hook(note, with_kwargs=True)
    try:
        yield calls
    finally:
        handle.remove()


def carried(batch: Any, device: torch.device) -> Any:
    """A batch on a device: its tensors, and what knows itself how to get there by `to(device)`, as packed
    sequences and the batches of other libraries do; what else there is stays."""

    def movable(node: Any) -> bool:
        return callable(getattr(node, "to", None))

    return tree_map(
        lambda leaf: leaf.to(device, non_blocking=True) if movable(leaf) else leaf, batch, is_leaf=movable
    )


def loss_of(returned: Any) -> Tensor:
    """The loss among what a step returned, `()`: the tensor, the entry or attribute "loss", or the first of
    several.

    Raises:
        TaskError: that is no scalar tensor.
    """
    loss = returned
    if isinstance(returned, Mapping):
        loss = returned.get("loss")
    elif isinstance(returned, (tuple, list)):
        loss = returned[0] if returned else None
    elif not isinstance(returned, Tensor):
        loss = getattr(returned, "loss", None)
    if not isinstance(loss, Tensor) or loss.numel() != 1:
        given = f"shape {tuple(loss.shape)}" if isinstance(loss, Tensor) else type(returned).__name__
        raise TaskError(
            f'step must return a scalar tensor, or a mapping with one as "loss", but returned {given}.'
        )
    return loss.reshape(())


def taken(step: Any, model: nn.Module, batch: Any) -> tuple[Tensor, list[Call]]:
    """The loss of a batch by a user's own step, and the calls of the model that it made.

    Raises:
        TaskError: the step fails, or returns no loss.
    """
    with recorded(model) as calls:
        try:
            returned = step(model, batch)
        except AutocompressError:
            raise
        except Exception as error:
            raise TaskError(
                f"step must take each batch but failed on one: {type(error).__name__}: {one_line(error)}"
            ) from error
    return loss_of(returned), calls
