"""Channel surgery on a model's own modules: cut units out of every tensor of their group."""

from __future__ import annotations

import copy
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import nn

from autocompress.graph.structure import Analysis, Keep, Member


@dataclass(frozen=True)
class Cuts:
    """What is cut out of a model's tensors.

    Args:
        removed: (tensor, dimension) → positions that go, increasing.
        groups: layer → number of groups that its convolution or normalisation is left with.
    """

    removed: dict[tuple[str, int], list[int]]
    groups: dict[str, int]


def cuts_of(analysis: Analysis, keep: Keep) -> Cuts:
    """Where the units that are not kept run through the model's tensors.

    Args:
        analysis: of the model.
        keep: group name → units that stay; groups not named stay whole.
    """
    removed: dict[tuple[str, int], set[int]] = {}
    groups: dict[str, int] = {}
    for name, kept in keep.items():
        group = analysis.group(name)
        gone = sorted(set(range(group.width)) - set(kept))
        for member in group.members:
            positions = member.positions(gone)
            removed.setdefault((member.tensor, member.dim), set()).update(positions.tolist())
            if member.whole_groups:
                lost = _lost_groups(member, positions)
                groups[member.layer] = groups.get(member.layer, member.whole_groups) - lost
    return Cuts({place: sorted(positions) for place, positions in removed.items()}, groups)


def cut_tensors(model: nn.Module, cuts: Cuts) -> None:
    """Cut positions out of a model's tensors and tell its layers their new sizes, in place."""
    for (tensor, dim), positions in cuts.removed.items():
        _cut(model, tensor, dim, set(positions))
    for layer, count in cuts.groups.items():
        module: Any = model.get_submodule(layer)
        setattr(module, "num_groups" if isinstance(module, nn.GroupNorm) else "groups", count)
    for layer in {tensor.rpartition(".")[0] for tensor, _ in cuts.removed}:
        _update_sizes(model.get_submodule(layer))


def remove_channels(model: nn.Module, analysis: Analysis, keep: Keep) -> nn.Module:
    """A copy of `model` whose tensors are without the units that are not kept.

    Right where the model's code takes sizes from its tensors; `compact` knows what to do elsewhere.

    Args:
        model: not changed.
        analysis: of this model.
        keep: group name → units that stay; groups not named stay whole.
    """
    smaller = copy.deepcopy(model)
    cut_tensors(smaller, cuts_of(analysis, keep))
    return smaller


def _lost_groups(member: Member, positions: np.ndarray) -> int:
    per_group = len(member.unit_of) // member.whole_groups
    return len(positions) // per_group


def _cut(model: nn.Module, name: str, dim: int, gone: set[int]) -> None:
    owner_name, _, attribute = name.rpartition(".")
    owner = model.get_submodule(owner_name)
    old = getattr(owner, attribute)
    kept = [i for i in range(old.shape[dim]) if i not in gone]
    new = old.detach().index_select(dim, torch.as_tensor(kept, device=old.device)).contiguous()
    if not isinstance(old, nn.Parameter):
        setattr(owner, attribute, new)
        return
    parameter = nn.Parameter(new, requires_grad=old.requires_grad)
    # A shared parameter stays shared: replace it wherever the model refers to it.
    for module in model.modules():
        for key, value in list(module._parameters.items()):
            if value is old:
                module._parameters[key] = parameter


def _update_sizes(module: nn.Module) -> None:
    """Make a layer's size attributes say what its tensors now are."""
    layer: Any = module
    if isinstance(module, nn.modules.conv._ConvNd):
        out_dim = 1 if module.transposed else 0
        layer.out_channels = module.weight.shape[out_dim] * (module.groups if module.transposed else 1)
        layer.in_channels = module.weight.shape[1 - out_dim] * (1 if module.transposed else module.groups)
    elif isinstance(module, nn.Linear):
        layer.out_features, layer.in_features = module.weight.shape
    elif isinstance(module, nn.modules.batchnorm._NormBase):
        sized = module.weight if module.weight is not None else module.running_mean
        if sized is not None:
            layer.num_features = sized.shape[0]
    elif isinstance(module, nn.LayerNorm):
        layer.normalized_shape = tuple(module.weight.shape)
    elif isinstance(module, nn.GroupNorm):
        layer.num_channels = module.weight.shape[0]
    elif isinstance(module, nn.Embedding):
        layer.embedding_dim = module.weight.shape[1]
    elif isinstance(module, nn.PReLU):
        layer.num_parameters = module.weight.shape[0]
