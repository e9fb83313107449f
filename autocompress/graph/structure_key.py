"""A name for what a model's graph can depend on: its modules and their settings, not its weights."""

from __future__ import annotations

import hashlib
import io
import pickle
from dataclasses import dataclass, field
from types import FunctionType, ModuleType
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils import _pytree as pytree

from autocompress.task.inputs import Inputs, tensors


@dataclass(frozen=True)
class StructureKey:
    """Equal for two models whose exported graphs are the same but for the numbers in their tensors.

    Args:
        digest: of the models' pickles, in which parameters and buffers are but shapes.
        referents: classes and functions that the digest names by their identity, kept so that no other
            object can take their place while the key lives.
    """

    digest: bytes
    referents: tuple[Any, ...] = field(compare=False, repr=False)


def structure_key(model: nn.Module, example: Inputs) -> StructureKey | None:
    """The key of a model and the inputs that it is exported with; None where the model cannot be pickled.

    Models are told apart by all that pickling sees: classes, attributes, hooks, the code of graph modules,
    which tensors are shared. Only what a `forward` reads from outside of its model goes unseen.

    Args:
        model: in the mode that it is exported in.
        example: `(B, ...)`, of which shape and type count.
    """
    content = io.BytesIO()
    pickler = _StructurePickler(content, model)
    try:
        described = [(tuple(tensor.shape), str(tensor.dtype)) for tensor in tensors(example)]
        pickler.dump((described, repr(pytree.tree_structure(example)), model))
    except Exception:
        # What a user's module raises when it is pickled is any error; such a model only has no key.
        return None
    return StructureKey(hashlib.sha256(content.getbuffer()).digest(), tuple(pickler.referents))


class _StructurePickler(pickle.Pickler):
    """Writes shapes for a model's states, numbers for its other tensors, and identities for code."""

    def __init__(self, file: io.BytesIO, model: nn.Module) -> None:
        super().__init__(file, protocol=pickle.HIGHEST_PROTOCOL)
        states = [*model.parameters(), *model.buffers()]
        self.numbers = {id(tensor): number for number, tensor in enumerate(states)}
        self.referents: list[Any] = []

    def persistent_id(self, obj: Any) -> Any:
        if id(obj) in self.numbers:
            return self.numbers[id(obj)], tuple(obj.shape), str(obj.dtype)
        if isinstance(obj, Tensor):
            # Storages are pickled under names of their own, so the numbers themselves are written.
            content = obj.detach().cpu().flatten().view(torch.uint8).numpy().tobytes()
            return content, tuple(obj.shape), str(obj.dtype)
        if isinstance(obj, (type, FunctionType, ModuleType)):
            self.referents.append(obj)
            return id(obj)
        return None
