"""Copies of models, and what modules hold besides parameters and buffers, which may be in their way."""

from __future__ import annotations

import copy
from collections.abc import Iterator, Mapping
from typing import Any

from torch import Tensor, nn

from autocompress.errors import TaskError, one_line

# Attributes of every module: parameters, buffers, sub-modules and hooks.
_OWN = frozenset(vars(nn.Module()))
# How deep tensors are looked for in the lists and mappings that a module holds.
_DEEPEST = 3


def copied(model: nn.Module) -> nn.Module:
    """A deep copy of a model.

    Raises:
        TaskError: there can be none; it names what is in the way.
    """
    try:
        return copy.deepcopy(model)
    except Exception as error:  # of whatever a user's module holds
        why = _why_not_copied(model) or one_line(error)
        raise TaskError(f"the model must be copyable (copy.deepcopy) but {why}.") from error


def _why_not_copied(model: nn.Module) -> str | None:
    for name, tensor in held_tensors(model).items():
        if tensor.grad_fn is not None:
            return f"keeps '{name}', which was computed: let it be a local variable, or returned"
    for name, value in _attributes(model):
        try:
            copy.deepcopy(value)
        except Exception as error:
            return f"'{name}' is not ({one_line(error)}): keep it outside, or give its class __deepcopy__"
    return None


def held_tensors(model: nn.Module) -> dict[str, Tensor]:
    """Tensors in attributes of modules that are no parameters or buffers, by name; also in lists and mappings
    there."""
    waiting = [(name, value, 0) for name, value in _attributes(model)]
    held: dict[str, Tensor] = {}
    for name, value, depth in waiting:
        if isinstance(value, Tensor):
            held[name] = value
        elif depth < _DEEPEST and isinstance(value, (list, tuple)):
            waiting += [(f"{name}[{position}]", entry, depth + 1) for position, entry in enumerate(value)]
        elif depth < _DEEPEST and isinstance(value, Mapping):
            waiting += [(f"{name}[{key!r}]", entry, depth + 1) for key, entry in value.items()]
        elif isinstance(value, nn.Module):  # that is not registered where it is held
            held |= {f"{name}.{own}": parameter for own, parameter in value.named_parameters()}
    return held


def _attributes(model: nn.Module) -> Iterator[tuple[str, Any]]:
    for prefix, module in model.named_modules():
        for name, value in vars(module).items():
            if name not in _OWN:
                yield f"{prefix}.{name}" if prefix else name, value
