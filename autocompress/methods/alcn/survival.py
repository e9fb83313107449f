"""Tensor maths of ALCN: learned ratios, quantiles and survival scores."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn

from autocompress.methods.shared.unit_index import units_by_width

# Where ρ begins above what must stay, of the way to 1, if it was to begin below: there it can still move.
_NEAR = 0.05


def quantile(values: Tensor, q: Tensor) -> Tensor:
    """The q-quantile by linear interpolation, differentiable in both; `(..., C)`, `(...)` → `(...)`."""
    ordered, last = values.sort().values, values.shape[-1] - 1
    position = q.clamp(0, 1) * last
    low = position.detach().floor().long().clamp(0, max(last - 1, 0))
    # By `gather`, because indexing by one number would wait for a GPU to compute it.
    below, above = (
        ordered.gather(-1, index[..., None])[..., 0] for index in (low, (low + 1).clamp_max(last))
    )
    return below + (position - low) * (above - below)


def survival_scores(h: Tensor, ratio: Tensor, alpha: Tensor, temperature: float, reference: str) -> Tensor:
    """s = σ(α·(h − m)/T) with h in units of its standard deviation; `(..., C)`, `(...)` → `(..., C)`.

    m is the (1 − ρ)-quantile of h, so that mean(s) can meet any ρ; the paper's median is ρ = 0.5.
    """
    centre = quantile(h, 1 - ratio if reference == "quantile" else torch.full_like(ratio, 0.5))
    scale = h.detach().std(-1, correction=0, keepdim=True).clamp_min(1e-6)
    return torch.sigmoid(alpha[..., None] * (h - centre[..., None]) / (scale * temperature))


def kept_units(ratio: Tensor, width: int, round_to: int, least: int | Tensor = 1) -> Tensor:
    """⌈ρ·C⌉, or the nearest multiple of `round_to`, from the least to all `width` units; whole numbers in
    double precision, `(groups,)` → `(groups,)`.

    Args:
        ratio: ρ, `(groups,)`.
        width: C, of all of the groups.
        round_to: 1 does not round.
        least: units that stay at least, `(groups,)` or the same for all.
    """
    # Rounded first, so that float noise on ρ·C does not keep one unit too many.
    count = (ratio.detach().double() * width).round(decimals=3).ceil()
    count = torch.maximum(count, torch.as_tensor(least).to(count)).clamp_max(width)
    if round_to == 1:
        return count
    below = count.div(round_to, rounding_mode="floor") * round_to
    above = (below + round_to).clamp_max(width)
    enough = below >= torch.as_tensor(least).to(count)
    return torch.where(enough & (count - below <= above - count), below, above)


def spread_ratios(groups: int, middle: float, slope: float) -> Tensor:
    """Ratios that rise by `slope` from the first group to the last, around `middle`; double, `(groups,)`."""
    position = torch.linspace(-0.5, 0.5, groups, dtype=torch.float64) if groups > 1 else torch.zeros(groups)
    return middle + slope * position


class Gates(nn.Module):
    """ρ and α of every group; registered on the model, so that its `state_dict` carries them.

    Args:
        widths: units of each group.
        ratios: ρ of each group to start with, in (least, 1), `(groups,)`, on the device of training.
        min_ratio: below which no ρ falls.
        round_to: survival is that of the nearest multiple of this many units.
        least: units of each group that stay at least; one where it is not given.

    Attributes:
        least: the least ρ of each group, `(groups,)`.
    """

    def __init__(
        self,
        widths: list[int],
        ratios: Tensor,
        min_ratio: float,
        round_to: int = 1,
        least: Sequence[int] = (),
    ) -> None:
        super().__init__()
        self.widths, self.round_to = widths, round_to
        self.least_units = torch.tensor(least or [1] * len(widths), device=ratios.device)
        shares = self.least_units.double() / torch.tensor(widths, device=ratios.device)
        # One unit stays anyway.
        self.least = torch.where(self.least_units > 1, shares, 0.0).clamp_min(min_ratio)
        # In double precision, so that what is given is what ρ starts at, however near to either end.
        open_share = (ratios.double() - self.least) / (1 - self.least)
        logit = torch.logit(torch.where(self.least > min_ratio, open_share.clamp_min(_NEAR), open_share))
        self.ratio_logit = nn.Parameter(logit.to(torch.get_default_dtype()))
        self.log_alpha = nn.Parameter(torch.zeros_like(self.ratio_logit))
        self.by_width = units_by_width(widths, ratios.device)
        self.order = torch.cat([units.flatten() for _, units in self.by_width]).argsort()
        self.sizes = torch.tensor(widths).to(self.ratio_logit)
        self.group_of = torch.arange(len(widths)).repeat_interleave(torch.tensor(widths)).to(ratios.device)

    @property
    def ratio(self) -> Tensor:
        """ρ, `(groups,)`."""
        least, room = self.least.to(self.ratio_logit), (1 - self.least).to(self.ratio_logit)
        return least + room * torch.sigmoid(self.ratio_logit)

    def survival(self, h: Tensor, temperature: float, reference: str) -> Tensor:
        """s of all units from their scores, `(units,)` → `(units,)`."""
        ratios, alphas = self.ratio, self.log_alpha.exp()
        survival = []
        for groups, units in self.by_width:
            ratio, alpha = ratios.index_select(0, groups), alphas.index_select(0, groups)
            least = self.least_units.index_select(0, groups)
            survival.append(self._survival(h[units], ratio, alpha, least, temperature, reference).flatten())
        return torch.cat(survival).index_select(0, self.order)

    def means(self, survival: Tensor) -> Tensor:
        """The mean over each group's units; `(units,)` → `(groups,)`."""
        return torch.zeros_like(self.sizes).index_add(0, self.group_of, survival) / self.sizes

    def _survival(
        self, h: Tensor, ratio: Tensor, alpha: Tensor, least: Tensor, temperature: float, reference: str
    ) -> Tensor:
        """s of groups of one width; `(groups, width)`, `(groups,)` → `(groups, width)`."""
        if self.round_to == 1:
            return survival_scores(h, ratio, alpha, temperature, reference)
        width = h.shape[1]
        share = (kept_units(ratio, width, self.round_to, least) / width).to(ratio)
        # The value is that of the rounded ratio, the gradient that of ρ (straight through).
        ratio = ratio + (share - ratio).detach()
        survival = survival_scores(h, ratio, alpha, temperature, reference)
        return torch.where((share == 1)[:, None], ratio[:, None], survival)
