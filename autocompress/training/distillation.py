"""Learning from the reference beside the targets."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from autocompress.errors import TaskError
from autocompress.task import Inputs, Task, call
from autocompress.task.inputs import plain
from autocompress.training.own_step import Call


@dataclass(frozen=True)
class Distillation:
    """Learning from the reference's outputs beside the targets.

    Hinton et al., *Distilling the Knowledge in a Neural Network*, arXiv 1503.02531: loss =
    (1 − w)·task + w·T²·KL(softmax(teacher/T) ‖ softmax(student/T)); where the task's loss is not
    cross entropy, the mean squared difference of the outputs instead of KL.

    Args:
        teacher: in eval mode, on the device of training.
        weight: w, in [0, 1]; searches begin with the default as well.
        temperature: T, greater than 0; likewise.
    """

    teacher: nn.Module
    weight: float = 0.5
    temperature: float = 2.0

    def __call__(self, task: Task, inputs: Inputs, outputs: Tensor, own: Tensor) -> Tensor:
        """The loss of a batch, of which `own` is the task's."""
        with torch.no_grad():
            wanted = task.answer(call(self.teacher, inputs))
        return self._weighed(own, self._distance(task, outputs, wanted))

    def of_calls(self, task: Task, calls: Sequence[Call], own: Tensor) -> Tensor:
        """The loss of a batch of which `own` is the task's, and these are the calls of the model that led to
        it: the teacher is called as the model was, each time."""
        distances = []
        for made in calls:
            with torch.no_grad():
                wanted = task.answer(plain(self.teacher(*made.args, **made.kwargs)))
            distances.append(self._distance(task, task.answer(plain(made.outputs)), wanted))
        return self._weighed(own, torch.stack(distances).mean())

    def _weighed(self, own: Tensor, learned: Tensor) -> Tensor:
        return (1 - self.weight) * own + self.weight * learned

    def _distance(self, task: Task, outputs: Tensor, wanted: Tensor) -> Tensor:
        """How far outputs are from the teacher's.

        Raises:
            TaskError: they are not of the same shape.
        """
        if outputs.shape != wanted.shape:
            raise TaskError(
                f"teacher must return what the model does, {tuple(outputs.shape)}, but returned "
                f"{tuple(wanted.shape)}."
            )
        if not task.cross_entropy:
            return F.mse_loss(outputs, wanted)
        t = self.temperature
        student = F.log_softmax(outputs / t, 1).movedim(1, -1).flatten(0, -2)
        teacher = F.log_softmax(wanted / t, 1).movedim(1, -1).flatten(0, -2)
        return t * t * F.kl_div(student, teacher, reduction="batchmean", log_target=True)
