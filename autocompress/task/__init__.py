"""What a user brings: a task with its model, data, loss and recipe, and what can be wrong with it."""

from autocompress.task.first_batches import FirstBatches
from autocompress.task.inputs import Inputs, call, moved
from autocompress.task.limits import Limits
from autocompress.task.opening import Batches, Split
from autocompress.task.profile import CostTerm, CutProfile, GroupProfile, LayerProfile, ModelProfile
from autocompress.task.task import (
    AUGMENTATIONS,
    Batch,
    InputSpec,
    LossFn,
    MetricFn,
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
    "FirstBatches",
    "GroupProfile",
    "InputSpec",
    "Inputs",
    "LayerProfile",
    "Limits",
    "LossFn",
    "MetricFn",
    "ModelProfile",
    "Recipe",
    "Split",
    "Task",
    "call",
    "moved",
    "on_device",
]
