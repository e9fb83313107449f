"""Autoplastic's gates as they are learned by gradient: logits, and the values that they stand for."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from autocompress.methods.autoplastic.switches import Values


@dataclass(frozen=True)
class Learned:
    """gate = floor + (ceiling − floor)·σ(logit).

    Args:
        p_min: floor of P; its ceiling is 1.
        c_min: floor of C.
        c_max: ceiling of C.
        c_spread: how far C starts from its initial value for each standard deviation of strength.
    """

    p_min: float
    c_min: float
    c_max: float
    c_spread: float

    def logits(self, start: Values, strength: Tensor) -> Values:
        """Of gates that start there, between floor and ceiling; channels that are read little start lower,
        so that they go first."""
        p, c, alpha = (value.double() for value in start)
        p = torch.logit((p - self.p_min) / (1 - self.p_min)).to(start.p)
        c = torch.logit((c - self.c_min) / (self.c_max - self.c_min)).to(start.c)
        return Values(p, c + self.c_spread * strength, torch.logit(alpha).to(start.alpha))

    def gates(self, logits: Values) -> Values:
        """P, C and α of logits."""
        p, c, alpha = (torch.sigmoid(logit) for logit in logits)
        return Values(self.p_min + (1 - self.p_min) * p, self.c_min + (self.c_max - self.c_min) * c, alpha)
