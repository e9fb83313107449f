"""The gates of Autoplastic on a model: on residual branches, on channels, on the paths of mixing blocks."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from autocompress.compressors._gates import (
    GateSite,
    fold_gates,
    insert_gates,
    set_gates,
    unit_offsets,
)
from autocompress.compressors._strength import find_readers, input_rms, reader_norms
from autocompress.graph import Analysis, analyse
from autocompress.graph.branch_gate import BranchGate
from autocompress.graph.branches import fold_gate, gate_branches, gate_name, gates_in
from autocompress.graph.costs import layer_macs, profile
from autocompress.graph.proof import check_graph
from autocompress.models.mixing import Mixing, PooledAttention
from autocompress.plan import DropBranch, KeepChannels, Plan
from autocompress.task import Task

_ALPHA_BESIDE = 0.9  # of a trained convolution beside which attention is new


class Values(NamedTuple):
    """P of each branch `(L,)`, C of each unit `(U,)`, α of each mixing block `(M,)`; all in [0, 1]."""

    p: Tensor
    c: Tensor
    alpha: Tensor

    def hardened(self, threshold: float, edge: float) -> Values:
        """P and C below the threshold are 0; a path with a share below the edge is too, the other's is 1."""
        p, c = (torch.where(gate < threshold, 0.0, gate) for gate in (self.p, self.c))
        ends = torch.where(self.alpha > 1 - edge, 1.0, self.alpha)
        return Values(p, c, torch.where(self.alpha < edge, 0.0, ends))


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
    """

    model: Any
    analysis: Analysis
    branches: dict[str, tuple[str, ...]]
    mixings: dict[str, tuple[str, ...]]
    sites: list[GateSite]
    costs: Values
    strength: Tensor

    def turn(self, values: Values) -> None:
        """Hand each gate its value, with its gradient."""
        for name, p in zip(self.branches, values.p, strict=True):
            self.gate(name).live = p
        for name, alpha in zip(self.mixings, values.alpha, strict=True):
            for share in _shares(name):
                self.gate(share).live = alpha
        set_gates(self.sites, torch.cat([values.c, values.c.new_ones(1)]))

    def cost(self, values: Values) -> Tensor:
        """Share of the model's MACs that open gates stand for; `()`. Units in branches count twice."""
        parts = zip(self.costs, values, strict=True)
        return torch.stack([(cost * value).sum() for cost, value in parts]).sum()

    def line(self, values: Values, kept: Values) -> dict[str, float]:
        """The paper's log line: L_eff, share of active channels, mean C, share of MACs pruned, P and α.

        Args:
            values: as the model is run with.
            kept: with what is shut at 0.
        """
        active, share = (kept.c > 0).float(), self.costs.c
        found = {
            "effective_layers": values.p.sum(),
            "active_channels": active.mean(),
            "mean_c": values.c.mean(),
            "pruned": 1 - (share * active).sum() / share.sum().clamp_min(1e-12),
        }
        found |= {f"p/{name}": p for name, p in zip(self.branches, values.p, strict=True)}
        found |= {f"alpha/{name}": a for name, a in zip(self.mixings, values.alpha, strict=True)}
        parts = torch.split(active, [group.width for group in self.analysis.groups])
        named = zip(self.analysis.groups, parts, strict=True)
        found |= {f"ratio/{group.name}": part.mean() for group, part in named}
        return {name: float(value) for name, value in found.items()}

    def gate(self, name: str) -> BranchGate:
        gate: BranchGate = self.model.get_submodule(name)
        return gate

    def alphas(self) -> Tensor:
        """α of each mixing block as the model has it, `(M,)`."""
        found = [float(self.gate(_shares(name)[0]).weight.detach()) for name in self.mixings]
        return torch.tensor(found, dtype=torch.float32, device=self.strength.device)

    def plan(self, values: Values) -> Plan:
        """What gates that are 0 remove; a group keeps its most open unit at least."""
        groups, offsets = self.analysis.groups, unit_offsets(self.analysis)
        edits: list[Any] = []
        for group, start in zip(groups, offsets, strict=False):
            units = values.c[start : start + group.width]
            keep = (units > 0).nonzero().flatten().tolist() or [int(units.argmax())]
            if len(keep) < group.width:
                edits.append(KeepChannels(group.name, tuple(keep)))
        edits += [DropBranch(name) for name, p in zip(self.branches, values.p, strict=True) if p == 0]
        for name, alpha in zip(self.mixings, values.alpha, strict=True):
            edits += [
                DropBranch(share) for share, gone in zip(_shares(name), (0, 1), strict=True) if alpha == gone
            ]
        return tuple(edits)

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
        for name, call in gates_in(self.model.graph, self.model).items():
            if float(self.gate(name).factor.detach()) != 0 and fold_gate(self.model.graph, call, self.model):
                self.model.delete_submodule(name)
        self.model.recompile()
        whole: nn.Module = self.model
        return whole


def _shares(mixing: str) -> tuple[str, str]:
    return f"{mixing}.conv_share", f"{mixing}.attention_share"


def install(model: nn.Module, task: Task) -> Switches:
    """Gate a model's residual branches, coupled channel groups and mixing blocks, all gates open.

    Args:
        model: its layers are changed in place.
        task: whose inputs say which channels are used.

    Raises:
        TrialError: the model's graph does not compute what the model does.
    """
    example, device = task.example(), next(model.parameters()).device
    plain = analyse(model, example)
    macs, mixed = layer_macs(model, example), _mixings(model)
    gated = gate_branches(model, plain, {branch.node: BranchGate(1.0) for branch in plain.residuals})
    gated.to(device)
    check_graph(model, gated, example.to(device))
    analysis = analyse(gated, example)
    groups = profile(gated, example, analysis).groups
    calibration = task.example(64).to(device)
    strength = _strength(gated, analysis, calibration)

    def share(of: list[float]) -> Tensor:
        return torch.tensor(of, dtype=torch.float32, device=device) / max(macs[""], 1)

    return Switches(
        model=gated,
        analysis=analysis,
        branches={gate_name(branch): branch.branch for branch in plain.residuals},
        mixings=mixed,
        sites=insert_gates(gated, analysis, calibration),
        costs=Values(
            share([sum(macs.get(layer, 0) for layer in branch.branch) for branch in plain.residuals]),
            share([group.macs / group.width for group in groups for _ in range(group.width)]),
            share([macs.get(f"{name}.conv", 0) - macs.get(f"{name}.attention", 0) for name in mixed]),
        ),
        strength=strength,
    )


def _mixings(model: nn.Module) -> dict[str, tuple[str, ...]]:
    return {
        name: tuple(f"{name}.{part}" for part, _ in module.named_modules() if part)
        for name, module in model.named_modules()
        if isinstance(module, Mixing)
    }


def _strength(model: nn.Module, analysis: Analysis, inputs: Tensor) -> Tensor:
    """How strongly each unit is read, in standard deviations within its group; `(U,)`."""
    readers = find_readers(model, analysis)
    like, units = inputs.new_zeros((), dtype=torch.float32), unit_offsets(analysis)[-1]
    with torch.no_grad():
        read = reader_norms(readers, input_rms(model, readers, inputs), units, like)
    parts = torch.split(read, [group.width for group in analysis.groups])
    standard = [(h - h.mean()) / h.std(correction=0).clamp_min(1e-12) for h in parts]
    return torch.cat(standard) if standard else read


def add_attention(model: nn.Module, task: Task) -> None:
    """Put an attention path beside each convolution that is wider than a pixel, in place.

    Args:
        model: whose `nn.Conv2d` layers become `Mixing` blocks; grouped and dilated ones stay.
        task: of the model.
    """
    for branch in analyse(model, task.example()).residuals:
        for name in branch.branch:
            layer = model.get_submodule(name)
            if type(layer) is not nn.Conv2d or layer.groups > 1 or layer.kernel_size == (1, 1):
                continue
            same = layer.stride[0] == layer.stride[1] and set(layer.dilation) == {1}
            padded = layer.padding == tuple(size // 2 for size in layer.kernel_size)
            if same and padded:
                path = PooledAttention(layer.in_channels, layer.out_channels, layer.stride[0])
                model.set_submodule(name, Mixing(layer, path.to(layer.weight), _ALPHA_BESIDE))
