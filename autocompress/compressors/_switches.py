"""The gates of Autoplastic on a model: on residual branches, on channels, on the paths of mixing blocks."""

from __future__ import annotations

import copy
from collections.abc import Mapping, Sequence
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
from autocompress.graph.branches import fold_gate, gate_branches, gate_names, gates_in
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

    def hardened(self, values: Values, threshold: float, edge: float, opened: bool = False) -> Values:
        """What is below the threshold is 0; a path with a share below the edge is too, the other's is 1.

        The most open unit of a group stays, open to the threshold at least.

        Args:
            values: of all gates.
            threshold: of P and C.
            edge: of α and 1 − α.
            opened: P and C that are not 0 are 1.
        """
        p, c, alpha = values
        open_units = c >= threshold
        for group, start in zip(self.analysis.groups, unit_offsets(self.analysis), strict=False):
            open_units[start + int(c[start : start + group.width].argmax())] = True
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
        found = {
            "effective_layers": values.p.sum(),
            "active_channels": active.sum() / max(1, len(active)),
            "mean_c": values.c.sum() / max(1, len(active)),
            "pruned": (share * (1 - active)).sum() / share.sum().clamp_min(1e-12),
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
        """What gates that are 0 remove."""
        groups, offsets = self.analysis.groups, unit_offsets(self.analysis)
        edits: list[Any] = []
        for group, start in zip(groups, offsets, strict=False):
            units = values.c[start : start + group.width]
            # A gate may be so nearly shut that it is 0 in floating point.
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
    names = gate_names(model, plain.residuals)
    gates = {b.node: (name, BranchGate(1.0)) for b, name in zip(plain.residuals, names, strict=True)}
    gated = gate_branches(model, plain, gates)
    gated.to(device)
    check_graph(model, gated, example.to(device))
    analysis = analyse(gated, example)
    groups = profile(copy.deepcopy(gated).cpu(), example.cpu(), analysis).groups
    calibration = task.example(64).to(device)
    strength = _strength(gated, analysis, calibration)

    def share(of: list[float]) -> Tensor:
        return torch.tensor(of, dtype=torch.float32, device=device) / max(macs[""], 1)

    return Switches(
        model=gated,
        analysis=analysis,
        branches={name: b.branch for b, name in zip(plain.residuals, names, strict=True)},
        mixings=mixed,
        sites=insert_gates(gated, analysis, calibration),
        costs=Values(
            share([_macs(branch.branch, macs) for branch in plain.residuals]),
            share([group.macs / group.width for group in groups for _ in range(group.width)]),
            share([_path_macs(f"{n}.conv", macs) - _path_macs(f"{n}.attention", macs) for n in mixed]),
        ),
        strength=strength,
    )


def _macs(layers: Sequence[str], macs: Mapping[str, int]) -> int:
    """Of some layers; one that holds others of them, for a parameter of its own, is not counted."""
    holders = {a for a in layers for b in layers if a != b and (not a or b.startswith(f"{a}."))}
    return sum(macs.get(layer, 0) for layer in layers if layer not in holders)


def _path_macs(path: str, macs: Mapping[str, int]) -> int:
    """Of a module, or of its layers where a graph module calls those alone."""
    return macs.get(path, 0) or sum(n for name, n in macs.items() if name.startswith(f"{path}."))


def _mixings(model: nn.Module) -> dict[str, tuple[str, ...]]:
    """Name of each mixing block → its layers; graph modules keep their gates, if not the block's class."""
    gates = {name for name, module in model.named_modules() if isinstance(module, BranchGate)}
    found = [name.removesuffix(".attention_share") for name in gates if name.endswith(".attention_share")]
    names = [name for name, _ in model.named_modules()]
    return {
        mixing: tuple(name for name in names if name.startswith(f"{mixing}."))
        for mixing in sorted(found, key=names.index)
        if f"{mixing}.conv_share" in gates
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
