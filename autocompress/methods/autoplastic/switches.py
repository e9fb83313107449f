"""The gates of Autoplastic: handed out, thresholded, logged and folded into layers."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from autocompress.graph import Analysis
from autocompress.graph.branch_gate import BranchGate
from autocompress.graph.branches import fold_gate, gates_in
from autocompress.methods.shared.gates import GateSite, detach_gates, fold_gates, set_gates
from autocompress.methods.shared.unit_index import unit_offsets, units_by_width


class Values(NamedTuple):
    """P of each branch `(L,)`, C of each unit `(U,)`, α of each mixing block `(M,)`; all in [0, 1]."""

    p: Tensor
    c: Tensor
    alpha: Tensor


@dataclass
class Switches:
    """A gated model and what each of its gates costs.

    Args:
        model: the graph module that is trained.
        analysis: of it.
        branches: name of each branch's gate → the layers of the branch.
        mixings: name of each mixing block → its layers.
        sites: where channels are gated.
        costs: share of the model's MACs behind each gate; `costs.alpha` what the convolution path
            costs more than the attention path.
        strength: how strongly each unit is read, in standard deviations of its group; `(U,)`.
        gates: graph node of each addition that a gated branch goes to, and name of the gate.
        folded: gates that `fold` multiplied into the layers before them.

    Attributes:
        units: of all groups of one width the units that must stay of each, `(groups,)`, and the positions of
            the units, `(groups, width)`; for each width.
    """

    model: Any
    analysis: Analysis
    branches: dict[str, tuple[str, ...]]
    mixings: dict[str, tuple[str, ...]]
    sites: list[GateSite]
    costs: Values
    strength: Tensor
    gates: tuple[tuple[str, str], ...]
    folded: tuple[str, ...] = ()
    units: list[tuple[Tensor, Tensor]] = field(init=False)

    def __post_init__(self) -> None:
        widths = [group.width for group in self.analysis.groups]
        device = self.strength.device
        least = torch.tensor([group.least for group in self.analysis.groups], device=device)
        self.units = [(least[groups], units) for groups, units in units_by_width(widths, device)]

    def turn(self, values: Values) -> None:
        """Hand each gate its value, with its gradient."""
        for name, p in zip(self.branches, values.p, strict=True):
            self.gate(name).live = p
        for name, alpha in zip(self.mixings, values.alpha, strict=True):
            for share in shares(name):
                self.gate(share).live = alpha
        set_gates(self.sites, torch.cat([values.c, values.c.new_ones(1)]))

    def let_go(self) -> None:
        """Keep the gates' values without the graph that they were computed with."""
        for name in self._own_gates():
            gate = self.gate(name)
            gate.live = None if gate.live is None else gate.live.detach()
        detach_gates(self.sites)

    def cost(self, values: Values) -> Tensor:
        """Share of the model's MACs that open gates stand for; `()`. Units in branches count twice."""
        parts = zip(self.costs, values, strict=True)
        return torch.stack([(cost * value).sum() for cost, value in parts]).sum()

    def hardened(self, values: Values, threshold: float, edge: float, opened: bool = False) -> Values:
        """What is below the threshold is 0; a path with a share below the edge is too, the other's is 1.

        The most open units of a group, as many as must be, stay open to the threshold at least.

        Args:
            values: of all gates.
            threshold: of P and C.
            edge: of α and 1 − α.
            opened: P and C that are not 0 are 1.
        """
        p, c, alpha = values
        open_units = c >= threshold
        for least, units in self.units:
            place = c.detach()[units].argsort(stable=True, dim=1, descending=True).argsort(1)
            staying = open_units[units] | (place < least[:, None])
            open_units = open_units.index_copy(0, units.flatten(), staying.flatten())
        ends = torch.where(alpha > 1 - edge, 1.0, alpha)
        stay = (torch.ones_like(p), torch.ones_like(c)) if opened else (p, c.clamp_min(threshold))
        return Values(
            torch.where(p < threshold, 0.0, stay[0]),
            torch.where(open_units, stay[1], 0.0),
            torch.where(alpha < edge, 0.0, ends),
        )

    def line(self, values: Values, kept: Values) -> dict[str, float]:
        """The paper's log line: L_eff, share of active channels, mean C, share of their MACs pruned, P and α.

        Args:
            values: as the model is run with.
            kept: with what is shut at 0.
        """
        active, share = (kept.c > 0).float(), self.costs.c
        entries = {
            "effective_layers": values.p.sum(),
            "active_channels": active.sum() / max(1, len(active)),
            "mean_c": values.c.sum() / max(1, len(active)),
            "pruned": (share * (1 - active)).sum() / share.sum().clamp_min(1e-12),
        }
        entries |= {f"p/{name}": p for name, p in zip(self.branches, values.p, strict=True)}
        entries |= {f"alpha/{name}": a for name, a in zip(self.mixings, values.alpha, strict=True)}
        parts = torch.split(active, [group.width for group in self.analysis.groups])
        named = zip(self.analysis.groups, parts, strict=True)
        entries |= {f"ratio/{group.name}": part.mean() for group, part in named}
        return dict(zip(entries, torch.stack(list(entries.values())).tolist(), strict=True))

    def gate(self, name: str) -> BranchGate:
        """Look up the gate of this name on the model."""
        gate: BranchGate = self.model.get_submodule(name)
        return gate

    def _own_gates(self) -> tuple[str, ...]:
        """Names of the gates of branches and of paths."""
        return (*self.branches, *(share for mixing in self.mixings for share in shares(mixing)))

    def alphas(self) -> Tensor:
        """α of each mixing block as the model has it, `(M,)`."""
        alphas = [float(self.gate(shares(name)[0]).weight.detach()) for name in self.mixings]
        return torch.tensor(alphas, dtype=torch.float32, device=self.strength.device)

    def start(self, p: float, c: float, alpha: float | None) -> Values:
        """The same value for all gates of a kind; no α leaves each mixing block its own."""
        like = self.strength
        mixed = self.alphas() if alpha is None else like.new_full((len(self.mixings),), alpha)
        return Values(like.new_full((len(self.branches),), p), like.new_full((len(like),), c), mixed)

    def keep(self, values: Values) -> dict[str, list[int]]:
        """The units of each group whose gates are open, one at least."""
        keep = {}
        for group, start in zip(self.analysis.groups, unit_offsets(self.analysis), strict=False):
            units = values.c[start : start + group.width]
            # A gate may be so nearly shut that it is 0 in floating point.
            keep[group.name] = (units > 0).nonzero().flatten().tolist() or [int(units.argmax())]
        return keep

    def shut(self, values: Values) -> tuple[str, ...]:
        """Gates of branches and of paths of mixing blocks that are 0."""
        names = [name for name, p in zip(self.branches, values.p, strict=True) if p == 0]
        for name, alpha in zip(self.mixings, values.alpha, strict=True):
            names += [share for share, end in zip(shares(name), (0, 1), strict=True) if alpha == end]
        return tuple(names)

    def fold(self, values: Values) -> nn.Module:
        """The model with its gates multiplied into its layers; those that are 0 stay in its graph."""
        with torch.no_grad():
            self.turn(values)
            fold_gates(self.sites)
            for gate in self.model.modules():
                if isinstance(gate, BranchGate) and gate.live is not None:
                    gate.weight.copy_(gate.live)
                    gate.live = None
                    gate.requires_grad_(True)
        model: nn.Module = self.model
        if not self.branches and not self.mixings:
            return model
        folded = []
        for name, call in gates_in(self.model.graph, self.model).items():
            # A mixing block that is to stay as it is has gates too.
            kept = name in self._own_gates() and float(self.gate(name).factor.detach()) != 0
            if kept and fold_gate(self.model.graph, call, self.model):
                self.model.delete_submodule(name)
                folded.append(name)
        self.folded = tuple(folded)
        self.model.recompile()
        return model


def shares(mixing: str) -> tuple[str, str]:
    """Names of a mixing block's gates: of its convolutions and of its attention."""
    return f"{mixing}.conv_share", f"{mixing}.attention_share"
