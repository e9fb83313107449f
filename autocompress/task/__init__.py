"""What a user brings: a task with its model, data, loss and recipe, and what can be wrong with it."""

from autocompress.task.inputs import Inputs, call, moved
from autocompress.task.limits import Limits
from autocompress.task.task import (
    AUGMENTATIONS,
    Batch,
    Batches,
    CostTerm,
    CutProfile,
    GroupProfile,
    InputSpec,
    LayerProfile,
    LossFn,
    MetricFn,
    ModelProfile,
    Recipe,
    Task,
    on_device,
)

__all__ = [
    "AUGMENTATIONS",
    "Batch",
    "Batches",
    "CostTerm",
    "CutProfile",
    "GroupProfile",
    "InputSpec",
    "Inputs",
    "LayerProfile",
    "Limits",
    "LossFn",
    "MetricFn",
    "ModelProfile",
    "Recipe",
    "Task",
    "call",
    "moved",
    "on_device",
]
