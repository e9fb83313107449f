"""Channel surgery: zero the units of a group (mask) or cut them out of every tensor (remove)."""

from __future__ import annotations

import copy
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from autocompress.graph.analysis import Analysis, Member

Keep = Mapping[str, Sequence[int]]


def mask_channels(model: nn.Module, analysis: Analysis, keep: Keep) -> nn.Module:
    """A copy of `model` in which no layer reads the units that are not kept.

    Args:
        model: not changed.
        analysis: of this model.
        keep: group name → units that stay; groups not named stay whole.
    """
    masked = copy.deepcopy(model)
    tensors = _tensors(masked)
    with torch.no_grad():
        for name, kept in keep.items():
            group = analysis.group(name)
            removed = sorted(set(range(group.width)) - set(kept))
            for member in group.members:
                if member.role == "in":
                    device = tensors[member.tensor].device
                    index = torch.as_tensor(member.positions(removed), device=device)
                    tensors[member.tensor].index_fill_(member.dim, index, 0.0)
    return masked


def remove_channels(model: nn.Module, analysis: Analysis, keep: Keep) -> nn.Module:
    """A copy of `model` that is physically without the units that are not kept.

    Args:
        model: not changed.
        analysis: of this model.
        keep: group name → units that stay; groups not named stay whole.
    """
    compact = copy.deepcopy(model)
    removed: dict[tuple[str, int], set[int]] = {}
    conv_groups: dict[str, int] = {}
    for name, kept in keep.items():
        group = analysis.group(name)
        gone = sorted(set(range(group.width)) - set(kept))
        for member in group.members:
            positions = member.positions(gone)
            removed.setdefault((member.tensor, member.dim), set()).update(positions.tolist())
            if member.whole_groups:
                lost = _lost_groups(member, positions)
                conv_groups[member.layer] = conv_groups.get(member.layer, member.whole_groups) - lost
    for (tensor, dim), positions_gone in removed.items():
        _cut(compact, tensor, dim, positions_gone)
    for layer, count in conv_groups.items():
        module: Any = compact.get_submodule(layer)
        module.groups = count
    for layer in {tensor.rpartition(".")[0] for tensor, _ in removed}:
        _update_sizes(compact.get_submodule(layer))
    return compact


def _lost_groups(member: Member, positions: np.ndarray) -> int:
    per_group = len(member.unit_of) // member.whole_groups
    return len(positions) // per_group


def _tensors(model: nn.Module) -> dict[str, Tensor]:
    return dict(model.named_parameters(remove_duplicate=False)) | dict(
        model.named_buffers(remove_duplicate=False)
    )


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
    elif isinstance(module, nn.Embedding):
        layer.embedding_dim = module.weight.shape[1]
    elif isinstance(module, nn.PReLU):
        layer.num_parameters = module.weight.shape[0]
