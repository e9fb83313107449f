"""Programs of files whose runtime takes arrays, called as models are."""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from typing import Any

import torch
from numpy.typing import NDArray
from torch import Tensor

from autocompress.task.inputs import Inputs, arguments, tensors

Program = Callable[[Inputs], Any]


def program_of(run: Callable[[Sequence[NDArray[Any]]], list[NDArray[Any]]], places: str | None) -> Program:
    """A program from what a runtime does.

    Args:
        run: inputs in their order → outputs in theirs.
        places: of the outputs in what the model returns, as JSON; None of one tensor.
    """
    structure = None if places is None else json.loads(places)

    def program(inputs: Inputs) -> Any:
        outputs = run([tensor.numpy() for tensor in tensors(arguments(inputs))])
        made = [torch.from_numpy(output) for output in outputs]
        return made[0] if structure is None else _placed(structure, made)

    return program


def _placed(structure: Any, outputs: list[Tensor]) -> Any:
    """A file's outputs in the containers that the model returned them in."""
    if isinstance(structure, dict):
        return {name: _placed(part, outputs) for name, part in structure.items()}
    if isinstance(structure, list):
        return tuple(_placed(part, outputs) for part in structure)
    return outputs[structure]
