"""The masked model, which the compact one must equal: full size, but nothing reads removed units."""

from __future__ import annotations

import copy
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode

from autocompress.graph.structure import Analysis, Keep

_aten = torch.ops.aten


class Masked(nn.Module):
    """A model whose readers are zeroed at removed units, and whose layer norms look past them.

    Args:
        model: with its readers zeroed.
        kept: weight of a normalisation → 1 where a channel is kept, else 0; of the weight's shape.
    """

    def __init__(self, model: nn.Module, kept: dict[str, Tensor]) -> None:
        super().__init__()
        self.model, self.kept = model, kept

    def forward(self, *args: Any, **kwargs: Any) -> Any:
        """Run the model, its normalisations over kept channels only; inputs and outputs are the model's."""
        if not self.kept:
            return self.model(*args, **kwargs)
        tensors = dict(self.model.named_parameters(remove_duplicate=False))
        masks = {id(tensors[name]): mask for name, mask in self.kept.items()}
        with torch.no_grad(), _KeptStatistics(masks):
            return self.model(*args, **kwargs)


class _KeptStatistics(TorchDispatchMode):
    """Normalises over kept channels only, wherever a normalisation with a masked weight is called."""

    def __init__(self, masks: dict[int, Tensor]) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.masks = masks

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if func is _aten.native_layer_norm.default and id(args[2]) in self.masks:
            x, shape, weight, bias, eps = args
            dims = tuple(range(-len(shape), 0))
            return kept_norm(x, (self.masks[id(weight)], weight, bias), eps, dims), None, None
        if func is _aten.native_group_norm.default and id(args[1]) in self.masks:
            x, weight, bias, eps = args[0], args[1], args[2], args[7]
            along = (-1, *[1] * (x.dim() - 2))
            tensors = tuple(
                None if t is None else t.view(along) for t in (self.masks[id(weight)], weight, bias)
            )
            return kept_norm(x, tensors, eps, tuple(range(1, x.dim()))), None, None
        return func(*args, **(kwargs or {}))


def kept_norm(x: Tensor, tensors: tuple[Any, ...], eps: float, dims: tuple[int, ...]) -> Tensor:
    """(x − μ)/√(σ² + ε)·γ + β with μ and σ² over what is kept, Σ m·x / Σ m.

    Args:
        x: to normalise.
        tensors: m, which may be soft, γ and β, each of which broadcasts to x; γ and β may be None.
        eps: ε.
        dims: to normalise over.
    """
    kept, weight, bias = tensors
    share = kept.expand_as(x)
    count = share.sum(dims, keepdim=True).clamp_min(1e-6)
    mean = (x * share).sum(dims, keepdim=True) / count
    centred = x - mean
    variance = (centred.square() * share).sum(dims, keepdim=True) / count
    normal: Tensor = centred * (variance + eps).rsqrt()
    if weight is not None:
        normal = normal * weight
    return normal if bias is None else normal + bias


def mask_channels(model: nn.Module, analysis: Analysis, keep: Keep) -> nn.Module:
    """A copy of `model` in which nothing reads the units that are not kept.

    Args:
        model: not changed.
        analysis: of this model.
        keep: group name → units that stay; groups not named stay whole.
    """
    masked = copy.deepcopy(model)
    tensors: dict[str, Tensor] = dict(masked.named_parameters(remove_duplicate=False))
    tensors |= dict(masked.named_buffers(remove_duplicate=False))
    kept_channels: dict[str, Tensor] = {}
    with torch.no_grad():
        for name, kept in keep.items():
            group = analysis.group(name)
            removed = sorted(set(range(group.width)) - set(kept))
            for member in group.members:
                tensor = tensors[member.tensor]
                index = torch.as_tensor(member.positions(removed), device=tensor.device)
                # A weight that reads channels and makes them too, as tied embeddings do, is one that reads.
                if member.role == "in" or (member.role == "channel" and tensor.dim() > 1):
                    tensor.index_fill_(member.dim, index, 0.0)
                elif member.statistics:
                    mask = kept_channels.setdefault(member.tensor, torch.ones_like(tensor))
                    mask.index_fill_(member.dim, index, 0.0)
    return Masked(masked, kept_channels)
