"""What is done to a trained model before it is compressed, measured and stored: to the reference and, again,
to every new model of the user's that a checkpoint is rebuilt on."""

from __future__ import annotations

import copy
from collections import Counter
from collections.abc import Sequence

from torch import nn

from autocompress.errors import ProofError, TaskError
from autocompress.graph.exporting import comparable, inference, located
from autocompress.graph.proof import TOLERANCE, relative_difference
from autocompress.surgery.deployed import Deploy, deployable, may_deploy
from autocompress.surgery.edits import Edit, apply
from autocompress.surgery.plain_weights import (
    FoldWeight,
    PlainLayer,
    computed_parameters,
    standardised_layers,
)
from autocompress.task import Inputs, call, moved
from autocompress.task.modes import modes_kept

# Blocks within blocks are switched in turns.
_TURNS = 4


def prepare_model(model: nn.Module, example: Inputs) -> tuple[nn.Module, tuple[Edit, ...]]:
    """Make plain parameters of weights that norms compute, and switch blocks to their deployed form.

    Args:
        model: with its weights; may be changed in place. Its modules stay in the modes that they are in.
        example: inputs, `(B, ...)`.

    Returns:
        The model, which computes in evaluation what it did, and the edits that make the same of another one.

    Raises:
        TaskError: the model does not run on the example.
        ProofError: it computes something else.
    """
    if not (computed_parameters(model) or standardised_layers(model) or may_deploy(model)):
        return model, ()
    with modes_kept(model):
        return _prepared(model, moved(example, next(model.parameters()).device))


def _prepared(model: nn.Module, example: Inputs) -> tuple[nn.Module, tuple[Edit, ...]]:
    expected = _outputs(model, example)
    edits: list[Edit] = [*computed_parameters(model)]
    model = apply(model, edits, example)
    plain = standardised_layers(model)
    model = apply(model, plain, example)
    edits += plain
    for _ in range(_TURNS):
        switches = _switches(model, example)
        if not switches:
            break
        model = apply(model, switches, example)
        edits += switches
    made = _outputs(model, example)
    difference = relative_difference(expected, made)
    # One that computes something else each time is refused for that, with what would help.
    if edits and difference > TOLERANCE >= relative_difference(made, _outputs(model, example)):
        raise ProofError(
            f"preparing the model must leave outputs as they are to {TOLERANCE:g} but changes "
            f"{difference:.2e} ({described(edits)})."
        )
    return model, tuple(edits)


def _switches(model: nn.Module, example: Inputs) -> list[Edit]:
    """The switches that leave outputs as they are: all of them, or those that do so alone."""
    blocks = deployable(model)
    together: list[Edit] = [
        Deploy(switch, tuple(name for name, own in blocks.items() if own == switch))
        for switch in dict.fromkeys(blocks.values())
    ]
    if not together or _same(model, together, example):
        return together
    alone: list[Edit] = [Deploy(switch, (name,)) for name, switch in blocks.items()]
    return [edit for edit in alone if _same(model, [edit], example)]


def _same(model: nn.Module, edits: Sequence[Edit], example: Inputs) -> bool:
    expected = _outputs(model, example)
    try:
        switched = _outputs(apply(copy.deepcopy(model), edits, example), example)
    except Exception:
        # What the user's own switches and forwards raise.
        return False
    return relative_difference(expected, switched) <= TOLERANCE


def _outputs(model: nn.Module, example: Inputs) -> object:
    """What a model returns in evaluation; each of its modules stays in the mode that it is in."""
    with modes_kept(model), inference(model), comparable():
        try:
            return call(model, example)
        except Exception as error:  # of the user's forward
            raise TaskError(f"the model must run on the task's inputs but: {located(error)}.") from error


def described(edits: Sequence[Edit]) -> str:
    """What a preparation does, for people; empty where it does nothing."""
    counts: Counter[tuple[str, str, str]] = Counter()
    for edit in edits:
        if isinstance(edit, FoldWeight):
            counts[f"{edit.norm} folded into ", "weight", ""] += 1
        elif isinstance(edit, PlainLayer):
            counts["weight standardisation folded into ", "weight", ""] += 1
        elif isinstance(edit, Deploy):
            counts["", "block", f" merged by {edit.switch}()"] += len(edit.blocks)
    return ", ".join(
        f"{before}{count} {what}{'' if count == 1 else 's'}{after}"
        for (before, what, after), count in counts.items()
    )
