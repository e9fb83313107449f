"""From a checkpoint's edits and tensors to a model that can be trained on."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

from safetensors import SafetensorError
from torch import nn

from autocompress import plugins
from autocompress.checkpoint.store import EDITS, WEIGHTS, Checkpoint, open_checkpoint
from autocompress.checkpoint.weights import load_weights_into
from autocompress.errors import CheckpointError
from autocompress.surgery import Edit, apply, edits_from_json
from autocompress.task.checks import called
from autocompress.task.inputs import Inputs, from_json
from autocompress.task.ready import ready
from autocompress.weights.encoded import decode_weights

# What edits and tensors raise that are none of the model's, or are damaged.
_MISFITS = (CheckpointError, OSError, ValueError, AttributeError, RuntimeError, LookupError, SafetensorError)


def rebuild(
    model: nn.Module,
    path: str | Path,
    prepare: Callable[[nn.Module], nn.Module] | None = None,
    *,
    decoded: bool = False,
) -> nn.Module:
    """The compressed model of a checkpoint, as an ordinary module that can be trained on.

    It is of the user's own class with smaller layers where the surgery allows, else its graph with its layers
    as modules; layers keep their names. Of weights that are stored as codes their levels train.

    Args:
        model: a new one, as the search's task makes it; changed, use what is returned.
        path: the checkpoint's folder, such as `point.path`.
        prepare: the search's `Task(prepare=)`, where it had one.
        decoded: make plain parameters of weights that are stored as codes, so that each number trains and the
            model can be compressed again; they take their full size until they are.

    Raises:
        CheckpointError: the folder is damaged, or does not belong to such a model.
    """
    checkpoint = open_checkpoint(Path(path))
    function = checkpoint.manifest.get("prepare")
    if (prepare is None) != (function is None):
        wanted = "None: its task had none" if function is None else f"{function}, which its task had"
        given = None if prepare is None else called(prepare)
        raise CheckpointError(f"prepare of checkpoint '{path}' must be {wanted}, but got {given}.")
    example = _example(checkpoint)
    model = ready(model, lambda: example)
    return rebuild_on(model if prepare is None else prepare(model), checkpoint, decoded)


def rebuild_on(model: nn.Module, checkpoint: Checkpoint, decoded: bool = False) -> nn.Module:
    """The same on a model that is ready, and prepared where the task has a function for that."""
    rebuilt = rebuild_from(model, checkpoint.path, _example(checkpoint))
    return decode_weights(rebuilt) if decoded else rebuilt


def _example(checkpoint: Checkpoint) -> Inputs:
    """Inputs as the model of a checkpoint takes them."""
    try:
        example: Inputs = from_json(checkpoint.manifest["input"])
    except (KeyError, TypeError, ValueError, AttributeError, RuntimeError) as error:
        raise CheckpointError(
            f"checkpoint '{checkpoint.path}' must describe its inputs but: {_reason(error)}"
        ) from error
    return example


def rebuild_from(model: nn.Module, folder: Path, example: Inputs) -> nn.Module:
    """The same from a folder that need not be whole yet.

    Args:
        model: a new one; changed.
        folder: holds `edits.json` and `weights.safetensors`.
        example: inputs that the model's graph can be traced with, `(B, ...)` with B ≥ 2.

    Raises:
        CheckpointError: edits or tensors do not fit the model.
    """
    edits = read_edits(folder)
    try:
        rebuilt = apply(model, edits, example)
        load_weights_into(rebuilt, folder / WEIGHTS)
    except _MISFITS as error:
        raise CheckpointError(
            f"checkpoint '{folder}' must be of a {type(model).__name__} like this one but: {_reason(error)}"
        ) from error
    return rebuilt


def read_edits(folder: Path) -> list[Edit]:
    """The edits of a checkpoint's folder, which lead to its model from the user's.

    Raises:
        CheckpointError: there are none, or they are of a kind that is not known.
    """
    plugins.compressors()  # whose rooms bring their kinds of edits and codes
    try:
        described = json.loads((folder / EDITS).read_text())
    except (OSError, ValueError) as error:
        raise CheckpointError(f"checkpoint '{folder}' must have edits but: {_reason(error)}") from error
    return list(edits_from_json(described))


def _reason(error: Exception) -> str:
    """A message in one line: PyTorch says what does not fit in the lines after the first."""
    return " ".join(str(error).split())[:300]
