"""Tensor maths of ALCN: quantiles and survival scores."""

from __future__ import annotations

import torch
from torch import Tensor


def quantile(values: Tensor, q: Tensor) -> Tensor:
    """The q-quantile by linear interpolation, differentiable in both; `(C,)`, `()` → `()`."""
    ordered = values.sort().values
    position = q.clamp(0, 1) * (len(ordered) - 1)
    low = position.detach().floor().long().clamp(0, max(len(ordered) - 2, 0))
    high = (low + 1).clamp(max=len(ordered) - 1)
    return ordered[low] + (position - low) * (ordered[high] - ordered[low])


def survival_scores(h: Tensor, ratio: Tensor, alpha: Tensor, temperature: float, reference: str) -> Tensor:
    """s = σ(α·(h − m)/T) with h in units of its standard deviation; `(C,)` → `(C,)`.

    m is the (1 − ρ)-quantile of h, so that mean(s) can meet any ρ; the paper's median is ρ = 0.5.
    """
    centre = quantile(h, 1 - ratio if reference == "quantile" else torch.full_like(ratio, 0.5))
    scale = h.detach().std(correction=0).clamp_min(1e-6)
    return torch.sigmoid(alpha * (h - centre) / (scale * temperature))
