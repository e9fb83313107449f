"""Learning from the reference beside the targets."""

from __future__ import annotations

from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from autocompress.task import Inputs, Task, call


@dataclass(frozen=True)
class Distillation:
    """Learning from the reference's outputs beside the targets.

    Hinton et al., *Distilling the Knowledge in a Neural Network*, arXiv 1503.02531: loss =
    (1 − w)·task + w·T²·KL(softmax(teacher/T) ‖ softmax(student/T)); where the task's loss is not
    cross entropy, the mean squared difference of the outputs instead of KL.

    Args:
        teacher: in eval mode, on the device of training.
        weight: w, in [0, 1].
        temperature: T, greater than 0.
    """

    teacher: nn.Module
    weight: float
    temperature: float

    def __call__(self, task: Task, inputs: Inputs, outputs: Tensor, own: Tensor) -> Tensor:
        """The loss of a batch, of which `own` is the task's."""
        with torch.no_grad():
            wanted = task.answer(call(self.teacher, inputs))
        if task.cross_entropy:
            t = self.temperature
            student = F.log_softmax(outputs / t, 1).movedim(1, -1).flatten(0, -2)
            teacher = F.log_softmax(wanted / t, 1).movedim(1, -1).flatten(0, -2)
            learned = t * t * F.kl_div(student, teacher, reduction="batchmean", log_target=True)
        else:
            learned = F.mse_loss(outputs, wanted)
        return (1 - self.weight) * own + self.weight * learned
