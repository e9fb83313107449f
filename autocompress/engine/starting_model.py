"""The model that compression starts from, prepared and checked: of a search, and of `compress`."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from torch import nn

from autocompress.engine.model_checks import check_suitable
from autocompress.surgery import Edit
from autocompress.surgery.preparation import prepare_model
from autocompress.task import Limits, Task
from autocompress.task.checks import apply_prepare, check_teacher
from autocompress.task.limits import check_something_left, settle


def starting_model(
    task: Task, model: nn.Module, exclude: Sequence[str], at_least: Mapping[str, float]
) -> tuple[nn.Module, tuple[Edit, ...], Limits]:
    """A model as compression starts from it: prepared by the task's own function and then by this package.

    Args:
        task: opened, with its training split.
        model: with its weights, as the task makes it; changed, use what is returned.
        exclude: layers that methods leave as they are, by names, patterns or classes.
        at_least: layers → least share of their units that stays.

    Returns:
        The model, the edits that prepared it beside the task's own function, and what may not be changed of
        it.

    Raises:
        SettingsError: a pattern names no layer, or nothing is left to compress.
        TaskError: `prepare` fails, all parameters are frozen, or the model or the task's teacher cannot be
            used.
        ProofError: preparing the model changes what it computes.
    """
    # Before it is run: what the model has in evaluation is to stay there.
    frozen = settle(model)
    model, edits = prepare_model(apply_prepare(task, model), task.example())
    # Layers go by the names that they have now.
    limits = settle(model, exclude, at_least).joined(frozen)
    check_something_left(model, limits)
    check_teacher(task, check_suitable(task, model))
    return model, edits, limits
