"""Which part of a batch is the model's input and which the target, where the user does not say."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from autocompress.errors import TaskError
from autocompress.task.inputs import Inputs

TARGET_NAMES = ("labels", "label", "targets", "target")


def split_batch(batch: Any) -> tuple[Inputs, Any]:
    """Inputs and targets of a batch as data loaders yield it.

    Args:
        batch: `(x, y)`, where a tuple or list `x` is several arguments and a mapping keyword arguments;
            `(x1, …, xn, y)`; or a mapping whose targets have one of `TARGET_NAMES`.

    Raises:
        TaskError: it is none of these.
    """
    if isinstance(batch, Mapping):
        name = next((name for name in TARGET_NAMES if name in batch), None)
        if name is None:
            raise TaskError(
                f"batches that are mappings must have one of {', '.join(TARGET_NAMES)} but have "
                f"{', '.join(map(str, batch))} (say by inputs=fn(batch) and targets=fn(batch) what is what)."
            )
        return {key: value for key, value in batch.items() if key != name}, batch[name]
    if isinstance(batch, (tuple, list)) and len(batch) >= 2:
        *inputs, targets = batch
        given = inputs[0] if len(inputs) == 1 else tuple(inputs)
        if isinstance(given, Mapping):
            return dict(given), targets
        return (tuple(given) if isinstance(given, (tuple, list)) else given), targets
    raise TaskError(
        f"batches must be (inputs, targets) pairs, or mappings with labels, but one is a "
        f"{type(batch).__name__} (say by inputs=fn(batch) and targets=fn(batch) what is what)."
    )
