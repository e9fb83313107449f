"""Channel surgery on a model's own modules: cut units out of every tensor of their group."""

from __future__ import annotations

import copy
from collections import defaultdict
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch
from torch import nn

from autocompress.graph.structure import Analysis, Keep, Member
from autocompress.weights.factored import transposed_linear

Sizes = Mapping[tuple[str, str], int]


@dataclass(frozen=True)
class Cuts:
    """What is cut out of a model's tensors.

    Args:
        removed: (tensor, dimension) → positions that go, increasing.
        groups: layer → number of groups that its convolution or normalisation is left with.
        sizes: (module, attribute) → what modules of the user's own classes say of their sizes afterwards.
    """

    removed: dict[tuple[str, int], list[int]]
    groups: dict[str, int]
    sizes: Sizes = field(default_factory=dict)


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
    holders = {
        id(module): module
        for (tensor, dim), positions in cuts.removed.items()
        for module in _cut(model, tensor, dim, set(positions))
    }
    for layer, count in cuts.groups.items():
        module: Any = model.get_submodule(layer)
        setattr(module, "num_groups" if isinstance(module, nn.GroupNorm) else "groups", count)
    for holder in holders.values():
        _update_sizes(holder)
    for (name, attribute), size in cuts.sizes.items():
        setattr(model.get_submodule(name), attribute, size)


def sizes_of_owners(model: nn.Module, cuts: Cuts) -> Sizes:
    """Attributes by which modules of the user's own classes know sizes of their parameters that are cut, and
    what these are then: whole numbers that are the size of some of their dimensions, all cut alike.

    Args:
        model: not cut yet.
        cuts: out of it.
    """
    sizes: dict[tuple[str, str], int] = {}
    for name in dict.fromkeys(tensor.rpartition(".")[0] for tensor, _ in cuts.removed):
        module = model.get_submodule(name)
        after: dict[int, set[int]] = defaultdict(set)
        own = (*module.named_parameters(name, recurse=False), *module.named_buffers(name, recurse=False))
        for tensor, held in own:
            for dim, size in enumerate(held.shape):
                gone = cuts.removed.get((tensor, dim), ())
                after[size].add(size - len(gone))
        sizes |= _attributes(name, module, after)
    return sizes


def sizes_of_enclosing(model: nn.Module, cuts: Cuts) -> Sizes:
    """The same of the modules around those whose parameters are cut, such as a classifier that makes its
    recurrent layer's initial state.

    Args:
        model: not cut yet.
        cuts: out of it.
    """
    after: dict[str, dict[int, set[int]]] = defaultdict(lambda: defaultdict(set))
    for (tensor, dim), positions in cuts.removed.items():
        owner, _, leaf = tensor.rpartition(".")
        size = getattr(model.get_submodule(owner), leaf).shape[dim]
        while owner:
            owner = owner.rpartition(".")[0]
            after[owner][size].add(size - len(positions))
    sizes: dict[tuple[str, str], int] = {}
    for name, changes in after.items():
        sizes |= _attributes(name, model.get_submodule(name), changes)
    return sizes


def _attributes(name: str, module: nn.Module, after: Mapping[int, set[int]]) -> dict[tuple[str, str], int]:
    """(module, attribute) → size, of the attributes that are a size which becomes one other."""
    if isinstance(module, (*_SIZED, *transposed_linear())):
        return {}
    changed = {old: min(new) for old, new in after.items() if len(new) == 1 and old not in new}
    return {
        (name, attribute): changed[value]
        for attribute, value in vars(module).items()
        if type(value) is int and value in changed
    }


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


def _cut(model: nn.Module, name: str, dim: int, gone: set[int]) -> list[nn.Module]:
    """Cut positions out of a dimension of a tensor; the modules that hold it."""
    owner_name, _, attribute = name.rpartition(".")
    owner = model.get_submodule(owner_name)
    old = getattr(owner, attribute)
    kept = [i for i in range(old.shape[dim]) if i not in gone]
    new = old.detach().index_select(dim, torch.as_tensor(kept, device=old.device)).contiguous()
    if not isinstance(old, nn.Parameter):
        setattr(owner, attribute, new)
        return [owner]
    parameter = nn.Parameter(new, requires_grad=old.requires_grad)
    # A shared parameter stays shared: replace it wherever the model refers to it.
    holders = []
    for module in model.modules():
        for key, value in list(module._parameters.items()):
            if value is old:
                module._parameters[key] = parameter
                holders.append(module)
    return holders


# Layers that `_update_sizes` knows.
_SIZED = (
    nn.modules.conv._ConvNd, nn.Linear, nn.modules.batchnorm._NormBase, nn.LayerNorm, nn.GroupNorm,
    nn.Embedding, nn.PReLU, nn.RNNBase, nn.RNNCellBase,
)  # fmt: skip


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
    elif isinstance(module, nn.RNNBase):
        layer.input_size, layer.hidden_size = layer.weight_ih_l0.shape[1], layer.weight_hh_l0.shape[1]
        # The list of its weights that it calls PyTorch with.
        layer._init_flat_weights()
    elif isinstance(module, nn.RNNCellBase):
        layer.input_size, layer.hidden_size = layer.weight_ih.shape[1], layer.weight_hh.shape[1]
    elif isinstance(module, transposed_linear()):
        layer.nx, layer.nf = layer.weight.shape
