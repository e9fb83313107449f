"""Training whose result is an average of the weights."""

from __future__ import annotations

import torch
from torch import nn
from torch.optim.swa_utils import get_ema_multi_avg_fn

from autocompress.methods.base import Finished, Session


class Averaging(Session):
    """Training without a method that ends with an exponential moving average of the weights.

    Update t makes it d·average + (1 − d)·weights with d = min(decay, t / (9 + t)), as TensorFlow's
    `ExponentialMovingAverage` with `num_updates`: otherwise an average over fewer steps than 1 / (1 − decay)
    would be little but what training began with.

    Args:
        model: what trains; its batch-norm statistics are to be estimated anew once it is averaged.
        decay: in [0, 1).
    """

    def __init__(self, model: nn.Module, decay: float) -> None:
        self.model, self.decay, self.updates = model, decay, 0
        self.averages = [parameter.detach().clone() for parameter in self._trained()]

    def after_step(self, progress: float) -> None:
        """Take the weights into the average."""
        self.updates += 1
        decay = min(self.decay, self.updates / (9 + self.updates))
        # Its last argument is not used.
        average = get_ema_multi_avg_fn(decay)  # type: ignore[no-untyped-call]
        average(self.averages, self._trained(), 0)

    def finish(self) -> Finished:
        """Put the average in the place of the model's weights."""
        with torch.no_grad():
            for parameter, average in zip(self._trained(), self.averages, strict=True):
                parameter.copy_(average)
        return Finished(self.model, (), self.model)

    def _trained(self) -> list[nn.Parameter]:
        return [parameter for parameter in self.model.parameters() if parameter.requires_grad]
