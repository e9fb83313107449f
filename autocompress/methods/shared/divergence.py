"""How far a model's outputs are from those of the model that it came from."""

from __future__ import annotations

import torch.nn.functional as F
from torch import Tensor


def output_loss(expected: Tensor, outputs: Tensor, classes: bool) -> float:
    """How far outputs are from those that are expected.

    Args:
        expected: `(N, ...)`.
        outputs: of the same shape.
        classes: whether they are logits of classes, `(N, classes, ...)`: the Kullback-Leibler divergence in
            nats, mean over all that is classified; else half the squared distance, over the variance of what
            is expected.
    """
    if classes:
        wanted, seen = (F.log_softmax(values.double(), 1) for values in (expected, outputs))
        return float((wanted.exp() * (wanted - seen)).sum(1).mean())
    spread = (expected - expected.mean(0)).double().square().mean().clamp_min(1e-12)
    return float(0.5 * (outputs - expected).double().square().mean() / spread)
