"""What a layer's weight multiplies: its inputs cut into patches, and their second moments."""

from __future__ import annotations

import itertools
import math
from collections.abc import Sequence
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from autocompress.weights.folding import Folding

MOST_PATCHES = 8192


def layer_inputs(model: nn.Module, names: Sequence[str], inputs: Tensor) -> dict[str, Tensor]:
    """The tensors that layers receive in eval mode; layers that are not called are left out."""
    found: dict[str, Tensor] = {}
    hooks = []
    for name in names:

        def keep(module: nn.Module, args: Any, kwargs: Any, name: str = name) -> None:
            found.setdefault(name, (args or tuple(kwargs.values()))[0].detach())

        hooks.append(model.get_submodule(name).register_forward_pre_hook(keep, with_kwargs=True))
    was_training = model.training
    try:
        with torch.no_grad():
            model.eval()(inputs)
    finally:
        model.train(was_training)
        for hook in hooks:
            hook.remove()
    return found


def patch_moments(layer: nn.Module, inputs: Tensor, folding: Folding) -> Tensor:
    """E[x xᵀ] of what each folded matrix multiplies, `(groups · slices, columns, columns)`.

    Args:
        layer: linear or convolution.
        inputs: it receives, `(B, ..., c)` or `(B, c, *grid)`.
        folding: of its weight; kernel dimensions among the rows make no patches.
    """
    parts = folding.groups * folding.slices
    if isinstance(layer, nn.Linear):
        flat = inputs.flatten(0, -2)
        rows = flat.reshape(len(flat), parts, -1)
    else:
        rows = _patches(layer, inputs, folding, parts)
    rows = rows[:: max(1, math.ceil(len(rows) / MOST_PATCHES))].double()
    return torch.einsum("npc,npd->pcd", rows, rows) / len(rows)


def _patches(layer: Any, inputs: Tensor, folding: Folding, parts: int) -> Tensor:
    """`(B · positions, parts, columns)`."""
    dims = len(folding.in_rows)
    pads, sizes, steps, spreads = [], [], [], []
    for d, row in enumerate(folding.in_rows):
        padding = _padding(layer, d)
        size, kernel = inputs.shape[2 + d], layer.kernel_size[d]
        stride, dilation = layer.stride[d], layer.dilation[d]
        full = (size + sum(padding) - dilation * (kernel - 1) - 1) // stride + 1
        pads.append((0, 0) if row else padding)
        sizes.append(size if row else full)
        steps.append(1 if row else stride)
        spreads.append([0] if row else [tap * dilation for tap in range(kernel)])
    padded = F.pad(inputs, [p for pair in reversed(pads) for p in pair])
    taps = []
    for starts in itertools.product(*spreads):
        window = tuple(
            slice(start, start + (sizes[d] - 1) * steps[d] + 1, steps[d]) for d, start in enumerate(starts)
        )
        taps.append(padded[(slice(None), slice(None), *window)])
    stacked = torch.stack(taps, 2).movedim((1, 2), (-2, -1))  # (B, *positions, c, taps)
    assert stacked.dim() == dims + 3
    return stacked.flatten(0, -3).reshape(-1, parts, inputs.shape[1] // parts * len(taps))


def _padding(layer: Any, d: int) -> tuple[int, int]:
    """Padding before and after in one dimension, as `padding="same"` spreads it."""
    if layer.padding == "valid":
        return 0, 0
    if layer.padding == "same":
        total = layer.dilation[d] * (layer.kernel_size[d] - 1)
        return total // 2, total - total // 2
    return layer.padding[d], layer.padding[d]
