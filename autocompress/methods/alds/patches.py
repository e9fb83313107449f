"""What a layer's weight multiplies: its inputs cut into patches, and their second moments."""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable, Sequence
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from autocompress.methods.shared.activations import watch_inputs
from autocompress.task import Inputs
from autocompress.weights.factored import features_last
from autocompress.weights.folding import Folding

MOST_PATCHES = 8192
# Of these so many are in double at a time.
_AT_ONCE = 1024


def layer_inputs(model: nn.Module, names: Sequence[str], inputs: Inputs) -> dict[str, Tensor]:
    """The tensors that layers receive in eval mode; layers that are not called are left out."""
    received: dict[str, Tensor] = {}

    def watcher(name: str) -> Callable[[Tensor], None]:
        return lambda tensor: received.setdefault(name, tensor)  # type: ignore[return-value]

    watch_inputs(model, inputs, {model.get_submodule(name): watcher(name) for name in names})
    return received


def patch_moments(layer: nn.Module, inputs: Tensor, folding: Folding) -> Tensor:
    """E[x xᵀ] of what each folded matrix multiplies, `(groups · slices, columns, columns)`.

    Args:
        layer: linear or convolution.
        inputs: it receives, `(B, ..., c)` or `(B, c, *grid)`.
        folding: of its weight; kernel dimensions among the rows make no patches.
    """
    rows = _rows(layer, inputs, folding)
    chunks = (chunk.double() for chunk in torch.split(rows, _AT_ONCE))
    total = torch.zeros((), dtype=torch.float64, device=rows.device)
    return sum((torch.einsum("npc,npd->pcd", chunk, chunk) for chunk in chunks), total) / len(rows)


def patch_rows(layer: nn.Module, inputs: Tensor, folding: Folding) -> Tensor:
    """What each folded matrix multiplies, at `sampled` positions, in double.

    Args:
        layer: linear or convolution.
        inputs: it receives.
        folding: of its weight.

    Returns:
        `(positions, groups · slices, columns)`.
    """
    return _rows(layer, inputs, folding).double()


def _rows(layer: nn.Module, inputs: Tensor, folding: Folding) -> Tensor:
    parts = folding.groups * folding.slices
    if features_last(layer):
        flat = inputs.reshape(-1, parts, inputs.shape[-1] // parts)
        return flat[sampled(len(flat))]
    return _patches(layer, inputs, folding, parts)


def output_rows(layer: nn.Module, outputs: Tensor) -> Tensor:
    """What a layer makes at `sampled` positions, `(B, ..., f)` or `(B, f, *grid)` → `(positions, f)`."""
    channels_last = outputs if features_last(layer) else outputs.movedim(1, -1)
    rows = channels_last.reshape(-1, channels_last.shape[-1])
    return rows[sampled(len(rows))].double()


def sampled(positions: int) -> Tensor:
    """At most `MOST_PATCHES` of so many positions, increasing, the same ones each time."""
    if positions <= MOST_PATCHES:
        return torch.arange(positions)
    generator = torch.Generator().manual_seed(0)
    return torch.randperm(positions, generator=generator)[:MOST_PATCHES].sort().values


def _patches(layer: Any, inputs: Tensor, folding: Folding, parts: int) -> Tensor:
    """The patches of inputs at `sampled` positions of all, `(positions, parts, columns)`."""
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
    index = sampled(len(inputs) * math.prod(sizes)).to(inputs.device)
    image, *place = torch.unravel_index(index, (len(inputs), *sizes))
    corner = [position * step for position, step in zip(place, steps, strict=True)]
    # Only what is sampled: all patches of a layer may be many times what it is given.
    taps = []
    for starts in itertools.product(*spreads):
        at: tuple[Any, ...] = tuple(c + start for c, start in zip(corner, starts, strict=True))
        taps.append(padded[(image, slice(None), *at)])
    return torch.stack(taps, -1).reshape(len(index), parts, inputs.shape[1] // parts * len(taps))


def _padding(layer: Any, d: int) -> tuple[int, int]:
    """Padding before and after in one dimension, as `padding="same"` spreads it."""
    if layer.padding == "valid":
        return 0, 0
    if layer.padding == "same":
        total = layer.dilation[d] * (layer.kernel_size[d] - 1)
        return total // 2, total - total // 2
    return layer.padding[d], layer.padding[d]
