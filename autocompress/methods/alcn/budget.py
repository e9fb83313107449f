"""A share of a model's cost that its ratios are held at, whichever way they move among themselves."""

from __future__ import annotations

from collections.abc import Sequence

import torch

from autocompress.methods.alcn.survival import Gates
from autocompress.task import CostTerm

# Newton's steps after each training step, which moves ρ little, and at the start.
_STEPS, _FIRST_STEPS = 2, 50
# Logits beyond which ρ moves by less than a thousandth of a per cent.
_FAR = 12.0


class Budget:
    """Σ_terms a · Π ρ_g, over the same at ρ = 1, is held at a share by adding one number to all logits of ρ.

    What no group shrinks is not counted: where that is most of a model, groups would pay for it with all that
    they have.

    Args:
        terms: the parts of the cost and the groups whose shares they shrink with, of none, one or two; one at
            least with a group and a cost.
        amounts: a of each, in MACs or parameters.
        share: of the cost that may be left, in (0, 1).
        gates: whose ρ are held.
    """

    def __init__(
        self, terms: Sequence[CostTerm], amounts: Sequence[float], share: float, gates: Gates
    ) -> None:
        device, groups = gates.ratio_logit.device, len(gates.widths)
        # The group after the last is always whole.
        pairs = [(*term.groups, groups)[:2] for term in terms if term.groups]
        self.first, self.second = torch.tensor(pairs, device=device).unbind(1)
        shrinking = [amount for term, amount in zip(terms, amounts, strict=True) if term.groups]
        amount = torch.tensor(shrinking, dtype=torch.float64, device=device)
        self.amounts = amount / amount.sum()
        self.share, self.gates = share, gates
        self.hold(_FIRST_STEPS)

    @torch.no_grad()
    def hold(self, steps: int = _STEPS) -> None:
        """Move all ρ together to where their cost is the share, by Newton's method on its logarithm, without
        waiting for a GPU."""
        gates = self.gates
        for _ in range(steps):
            logit = gates.ratio_logit.double()
            open_share = torch.sigmoid(logit)
            ratio = gates.least + (1 - gates.least) * open_share
            slope = (1 - gates.least) * open_share * (1 - open_share)
            ratio, slope = torch.cat([ratio, ratio.new_ones(1)]), torch.cat([slope, slope.new_zeros(1)])
            first, second = ratio[self.first], ratio[self.second]
            cost = (self.amounts * first * second).sum()
            rise = (self.amounts * (slope[self.first] * second + first * slope[self.second])).sum()
            step = (self.share / cost).log() * cost / rise.clamp_min(1e-9)
            gates.ratio_logit.add_(step.clamp(-1, 1)).clamp_(-_FAR, _FAR)
