"""Puts the gates of Autoplastic on a model: branches, channels and the paths of mixing blocks."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import torch
from torch import Tensor, nn

from autocompress.graph import Analysis, analyse, within
from autocompress.graph.branch_gate import BranchGate
from autocompress.graph.branches import gate_branches, gate_names
from autocompress.graph.costs import group_profiles, layer_macs
from autocompress.graph.proof import check_graph
from autocompress.methods.autoplastic.switches import Switches, Values
from autocompress.methods.shared.gates import insert_gates
from autocompress.methods.shared.strength import ReaderNorms, find_readers, input_rms
from autocompress.methods.shared.unit_index import unit_offsets
from autocompress.surgery import AddAttention
from autocompress.task import Limits, Task
from autocompress.task.inputs import Inputs, device_of_inputs, moved

_ALPHA_BESIDE = 0.9  # of a trained convolution beside which attention is new


def install(model: nn.Module, task: Task) -> Switches:
    """Gate a model's residual branches, coupled channel groups and mixing blocks, all gates open; but for
    those that stay as they are.

    Args:
        model: its layers are changed in place.
        task: whose inputs say which channels are used.

    Raises:
        TrialError: the model's graph does not compute what the model does.
    """
    example, device = task.example(), next(model.parameters()).device
    limits = task.limits_of(model)
    plain = within(analyse(model, example), limits)
    macs, mixed = layer_macs(model, example), _mixings(model, limits)
    names = gate_names(model, plain.residuals)
    gates = {b.node: (name, BranchGate(1.0)) for b, name in zip(plain.residuals, names, strict=True)}
    gated: nn.Module = model
    if gates or mixed:
        gated = gate_branches(model, plain, gates).to(device)
        check_graph(model, gated, moved(example, device))
    analysis = within(analyse(gated, example), limits)
    groups = group_profiles(gated, analysis, layer_macs(gated, example))
    calibration = moved(task.example(64), device)
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
        gates=tuple((node, name) for node, (name, _) in gates.items()),
    )


def _macs(layers: Sequence[str], macs: Mapping[str, int]) -> int:
    """Of some layers; one that holds others of them, for a parameter of its own, is not counted."""
    holders = {a for a in layers for b in layers if a != b and (not a or b.startswith(f"{a}."))}
    return sum(macs.get(layer, 0) for layer in layers if layer not in holders)


def _path_macs(path: str, macs: Mapping[str, int]) -> int:
    """Of a module, or of its layers where a graph module calls those alone."""
    return macs.get(path, 0) or sum(n for name, n in macs.items() if name.startswith(f"{path}."))


def _mixings(model: nn.Module, limits: Limits) -> dict[str, tuple[str, ...]]:
    """Name of each mixing block of which nothing need stay → its layers; graph modules keep their gates, if
    not the block's class."""
    gates = {name for name, module in model.named_modules() if isinstance(module, BranchGate)}
    mixings = [name.removesuffix(".attention_share") for name in gates if name.endswith(".attention_share")]
    names = [name for name, _ in model.named_modules()]
    layers = {
        mixing: tuple(name for name in names if name.startswith(f"{mixing}."))
        for mixing in sorted(mixings, key=names.index)
        if f"{mixing}.conv_share" in gates
    }
    return {mixing: inside for mixing, inside in layers.items() if not any(map(limits.why_there, inside))}


def _strength(model: nn.Module, analysis: Analysis, inputs: Inputs) -> Tensor:
    """How strongly each unit is read, in standard deviations within its group; `(U,)`."""
    readers = find_readers(model, analysis)
    like, units = torch.zeros((), device=device_of_inputs(inputs)), unit_offsets(analysis)[-1]
    read = ReaderNorms(readers, input_rms(model, readers, inputs), units, like)()
    parts = torch.split(read, [group.width for group in analysis.groups])
    standard = [(h - h.mean()) / h.std(correction=0).clamp_min(1e-12) for h in parts]
    return torch.cat(standard) if standard else read


def add_attention(model: nn.Module, task: Task) -> tuple[AddAttention, ...]:
    """Put an attention path beside each convolution that is wider than a pixel, in place.

    Args:
        model: whose `nn.Conv2d` layers become `Mixing` blocks; grouped and dilated ones stay.
        task: of the model.

    Returns:
        The edit that did it; none where there is no such convolution.
    """
    layers = []
    for branch in within(analyse(model, task.example()), task.limits_of(model)).residuals:
        for name in branch.branch:
            layer = model.get_submodule(name)
            if type(layer) is not nn.Conv2d or layer.groups > 1 or layer.kernel_size == (1, 1):
                continue
            same = layer.stride[0] == layer.stride[1] and set(layer.dilation) == {1}
            padded = layer.padding == tuple(size // 2 for size in layer.kernel_size)
            if same and padded and name not in layers:
                layers.append(name)
    if not layers:
        return ()
    edit = AddAttention(tuple(layers), _ALPHA_BESIDE)
    edit.apply(model, task.example())
    return (edit,)
