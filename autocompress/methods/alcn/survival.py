"""Tensor maths of ALCN: learned ratios, quantiles and survival scores."""

from __future__ import annotations

import math

import torch
from torch import Tensor, nn


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


def kept_units(ratio: float, width: int, round_to: int) -> int:
    """⌈ρ·C⌉, or the nearest multiple of `round_to`, from one to all `width` units."""
    # Rounded first, so that float noise on ρ·C does not keep one unit too many.
    count = math.ceil(round(ratio * width, 3))
    if round_to > 1:
        allowed = [*range(round_to, width, round_to), width]
        count = min(allowed, key=lambda units: abs(units - count))
    return min(width, max(1, count))


def spread_ratios(groups: int, middle: float, slope: float) -> Tensor:
    """Ratios that rise by `slope` from the first group to the last, around `middle`; double, `(groups,)`."""
    position = torch.linspace(-0.5, 0.5, groups, dtype=torch.float64) if groups > 1 else torch.zeros(groups)
    return middle + slope * position


class Gates(nn.Module):
    """ρ and α of every group; registered on the model, so that its `state_dict` carries them.

    Args:
        widths: units of each group.
        ratios: ρ of each group to start with, in (least, 1), `(groups,)`.
        least: below which no ρ falls.
        round_to: survival is that of the nearest multiple of this many units.
    """

    def __init__(self, widths: list[int], ratios: Tensor, least: float, round_to: int = 1) -> None:
        super().__init__()
        self.widths, self.least, self.round_to = widths, least, round_to
        # In double precision, so that what is given is what ρ starts at, however near to either end.
        logit = torch.logit((ratios.double() - least) / (1 - least))
        self.ratio_logit = nn.Parameter(logit.to(torch.get_default_dtype()))
        self.log_alpha = nn.Parameter(torch.zeros(len(widths)))

    @property
    def ratio(self) -> Tensor:
        """ρ, `(groups,)`."""
        return self.least + (1 - self.least) * torch.sigmoid(self.ratio_logit)

    def survival(self, h: Tensor, temperature: float, reference: str) -> list[Tensor]:
        """s of each group's units, from the scores of all units, `(units,)`."""
        ratios, alphas = self.ratio.unbind(), self.log_alpha.exp().unbind()
        return [
            self._survival(part, ratio, alpha, temperature, reference)
            for part, ratio, alpha in zip(torch.split(h, self.widths), ratios, alphas, strict=True)
        ]

    def _survival(
        self, h: Tensor, ratio: Tensor, alpha: Tensor, temperature: float, reference: str
    ) -> Tensor:
        if self.round_to > 1:
            width = len(h)
            share = kept_units(float(ratio.detach()), width, self.round_to) / width
            # The value is that of the rounded ratio, the gradient that of ρ (straight through).
            ratio = ratio + (share - ratio).detach()
            if share == 1:
                return torch.ones_like(h) * ratio
        return survival_scores(h, ratio, alpha, temperature, reference)
