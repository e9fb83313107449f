"""The published rule of Autoplastic: stability, and how gates follow it from epoch to epoch.

Korban, Youngs, Acton, *Autoplastic Neural Network*, 2025.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor


def stability(weight: Tensor, average: Tensor, relative: bool) -> Tensor:
    """S = exp(−‖W − W̄‖_F), or exp(−‖W − W̄‖_F / ‖W̄‖_F); `(...)` → `()`."""
    return _stability(weight.reshape(1, -1), average.reshape(1, -1), relative)[0]


def channel_stability(weight: Tensor, average: Tensor, relative: bool) -> Tensor:
    """S of each output channel by itself; `(C, ...)` → `(C,)`."""
    return _stability(weight.flatten(1), average.flatten(1), relative)


def _stability(weight: Tensor, average: Tensor, relative: bool) -> Tensor:
    moved = (weight - average).norm(dim=1)
    return torch.exp(-moved / average.norm(dim=1).clamp_min(1e-12) if relative else -moved)


def averaged(weight: Tensor, average: Tensor, decay: float) -> Tensor:
    """W̄ ← d·W̄ + (1 − d)·W."""
    return decay * average + (1 - decay) * weight


@dataclass(frozen=True)
class Plasticity:
    """The rates and bounds of the published rule.

    Args:
        relative: whether stability is over ‖W̄‖_F; absolute as published.
        decay: d of the moving averages.
        epsilon: below which a block or channel counts as unstable.
        eta: η_a, the largest step of a gate in an epoch.
        p_min: floor of P; its ceiling is 1.
        c_min: floor of C.
        c_max: ceiling of C.
    """

    relative: bool
    decay: float
    epsilon: float
    eta: float
    p_min: float
    c_min: float
    c_max: float

    def inclusion(self, p: Tensor, s: Tensor) -> Tensor:
        """P rises by η·max(0.05, 1 − S) where S < ε, else falls by η·max(0.05, S); `(L,)`."""
        rise = self.eta * (1 - s).clamp_min(0.05)
        fall = self.eta * s.clamp_min(0.05)
        return torch.where(s < self.epsilon, p + rise, p - fall).clamp(self.p_min, 1.0)

    def connectivity(self, c: Tensor, s: Tensor, gradient: Tensor) -> Tensor:
        """C rises in unstable channels, falls where the gradient is in the lowest fifth; `(C,)`.

        Args:
            c: of each channel.
            s: stability of each channel.
            gradient: accumulated norm of each channel's gradient.
        """
        rise = self.eta * (1 - s).clamp_min(0.05)
        quiet = gradient <= torch.quantile(gradient, 0.2)
        moved = torch.where(s < self.epsilon, c + rise, c)
        return torch.where(quiet, moved - self.eta, moved).clamp(self.c_min, self.c_max)

    def trains_mixing(self, s: Tensor) -> Tensor:
        """Whether a block's α is trained: only while the block is unstable; `(L,)`."""
        return s < self.epsilon
