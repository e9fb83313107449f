"""What the published rule of Autoplastic remembers of weights and gradients, and moves gates by."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, field

import torch
from torch import Tensor, nn

from autocompress.methods.autoplastic.plasticity import Plasticity, averaged, channel_stability, stability
from autocompress.methods.autoplastic.switches import Switches, Values
from autocompress.methods.shared.units import Maker, find_makers, unit_norms


@dataclass
class Memory:
    """Moving averages of the weights and accumulated gradients.

    Args:
        makers: weights whose rows make units.
        averages: W̄ of each weight, by parameter name.
        gradients: accumulated gradient norm of each unit since the last epoch, `(U,)`.
        open: whether each mixing block's α is trained, `(M,)`.
        alpha: each α after the last step, `(M,)`.
        stability: of each residual branch in the last epoch, by its gate's name.
    """

    makers: list[Maker]
    averages: dict[str, Tensor]
    gradients: Tensor
    open: Tensor
    alpha: Tensor
    stability: dict[str, float] = field(default_factory=dict)

    @staticmethod
    def of(switches: Switches) -> Memory:
        """Averages are the present weights."""
        weights = {n: p.detach().clone() for n, p in switches.model.named_parameters() if p.dim() > 1}
        gradients = torch.zeros_like(switches.strength)
        mixing = torch.ones(len(switches.mixings), dtype=torch.bool, device=gradients.device)
        makers = find_makers(switches.model, switches.analysis)
        return Memory(makers, weights, gradients, mixing, switches.alphas())

    def collect(self, model: nn.Module) -> None:
        """Add the norms of a step's gradients."""
        parameters = dict(model.named_parameters())
        self.gradients += unit_norms(self.makers, lambda n: parameters[n].grad, len(self.gradients))

    def hold(self, alpha: Tensor) -> None:
        """Take back what momentum moved of α in stable blocks, and keep it in [0, 1]; in place."""
        with torch.no_grad():
            alpha.copy_(torch.where(self.open, alpha, self.alpha).clamp(0, 1))
            self.alpha = alpha.clone()

    def epoch(self, gates: Values, switches: Switches, rule: Plasticity) -> Values:
        """P and C after an epoch of the published rule, whether α goes on training, and new averages."""
        parameters = dict(switches.model.named_parameters())
        weights = {name: parameters[name].detach() for name in self.averages}
        inclusion = gates.p
        if switches.branches:
            s = self._stability(weights, switches.branches.values(), rule)
            inclusion = rule.inclusion(gates.p, s)
            self.stability = dict(zip(switches.branches, s.tolist(), strict=True))
        if switches.mixings:
            s = self._stability(weights, switches.mixings.values(), rule)
            self.open = rule.trains_mixing(s)
        s = gates.c.new_ones(len(gates.c) + 1)
        for maker in self.makers:
            now, then = (d[maker.tensor].movedim(maker.dim, 0) for d in (weights, self.averages))
            # Where several layers make a unit, the least stable one counts.
            per_channel = channel_stability(now, then, rule.relative)
            s.scatter_reduce_(0, maker.units, per_channel.to(s), "amin")
        # Each group by itself: gradients of different layers are of different sizes.
        widths = [group.width for group in switches.analysis.groups]
        groups = zip(*(torch.split(of, widths) for of in (gates.c, s[:-1], self.gradients)), strict=True)
        moved = [rule.connectivity(*group) for group in groups]
        connectivity = torch.cat(moved) if moved else gates.c
        self.gradients = torch.zeros_like(self.gradients)
        self.averages = {n: averaged(w, self.averages[n], rule.decay) for n, w in weights.items()}
        return Values(inclusion, connectivity, gates.alpha)

    def _stability(
        self, weights: dict[str, Tensor], blocks: Iterable[tuple[str, ...]], rule: Plasticity
    ) -> Tensor:
        """S of each block, all of its weights together; `(L,)`."""
        per_block = []
        for layers in blocks:
            names = [name for name in weights if name.rpartition(".")[0] in layers]
            if not names:
                # Nothing in it can become unstable.
                per_block.append(self.gradients.new_ones(()))
                continue
            now, then = (torch.cat([d[n].reshape(-1) for n in names]) for d in (weights, self.averages))
            per_block.append(stability(now, then, rule.relative))
        return torch.stack(per_block)
