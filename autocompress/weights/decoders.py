"""Modules that hold an encoded weight and decode it when it is read; they train, copy and export.

A decoder is a parametrisation of the layer's weight, so that whoever reads `layer.weight` gets it.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn.utils import parametrize

from autocompress.weights.encodings import Encoding, Factored, Pruned, Quantized, Summed
from autocompress.weights.folding import Folding
from autocompress.weights.packing import bits_for, pack, unpack

_FLOAT_BYTES = 4


class Levels(nn.Module):
    """Packed codes and the levels they stand for; `()` → `(n,)`."""

    packed: Tensor

    def __init__(self, encoding: Quantized) -> None:
        super().__init__()
        levels = encoding.levels.detach().float().clone()
        self.count, self.bits = len(encoding.codes), bits_for(len(levels))
        self.register_buffer("packed", pack(encoding.codes, self.bits).to(levels.device))
        self.scale: nn.Parameter | None = None
        if encoding.tied == "free":
            self.levels: Tensor = nn.Parameter(levels)
        else:
            scale = levels.abs().max().clamp_min(1e-12) if encoding.tied == "scale" else None
            self.scale = None if scale is None else nn.Parameter(scale)
            self.register_buffer("levels", levels if scale is None else levels / scale)

    def forward(self) -> Tensor:
        levels = self.levels if self.scale is None else self.levels * self.scale
        return levels[unpack(self.packed, self.bits, self.count)]


class Masked(nn.Module):
    """One bit for each number, and the values where it is 1; `()` → `(n,)`."""

    mask: Tensor

    def __init__(self, values: Tensor) -> None:
        super().__init__()
        kept = values != 0
        self.count = len(values)
        self.register_buffer("mask", pack(kept.long(), 1).to(values.device))
        # One number at least, so that there is something to look up.
        self.values = nn.Parameter(values[kept].detach().clone() if kept.any() else values.new_zeros(1))

    @staticmethod
    def bytes(values: Tensor) -> int:
        return -(-len(values) // 8) + _FLOAT_BYTES * int((values != 0).sum())

    def forward(self) -> Tensor:
        mask = unpack(self.mask, 1, self.count)
        position = (torch.cumsum(mask, 0) - 1).clamp_min(0)
        return self.values[position] * mask


class Gaps(nn.Module):
    """Steps from one value to the next, one byte each, and the values; `()` → `(n,)`.

    A step of more than 256 is made in several, over values that are zero.
    """

    gaps: Tensor

    def __init__(self, values: Tensor) -> None:
        super().__init__()
        self.count = len(values)
        gaps, kept = _gaps(values)
        self.register_buffer("gaps", gaps)
        self.values = nn.Parameter(kept.detach().clone())

    @staticmethod
    def bytes(values: Tensor) -> int:
        return (1 + _FLOAT_BYTES) * len(_gaps(values)[0])

    def forward(self) -> Tensor:
        position = torch.cumsum(self.gaps.to(torch.int64) + 1, 0) - 1
        return torch.zeros(self.count, device=self.gaps.device).scatter(0, position, self.values)


def _gaps(values: Tensor) -> tuple[Tensor, Tensor]:
    """Steps less one, uint8, and the value after each."""
    positions = torch.nonzero(values)[:, 0]
    if not len(positions):
        # One number at least, so that there is something to place.
        positions = torch.zeros(1, dtype=torch.int64, device=values.device)
    before = torch.cat([positions.new_full((1,), -1), positions[:-1]])
    steps = positions - before
    extra = (steps - 1) // 256
    ends = torch.cumsum(extra + 1, 0) - 1
    total = int(ends[-1]) + 1
    gaps = torch.full((total,), 255, dtype=torch.uint8, device=values.device)
    kept = torch.zeros(total, device=values.device)
    gaps[ends] = (steps - 1 - 256 * extra).to(torch.uint8)
    kept[ends] = values[positions].float()
    return gaps, kept


class Product(nn.Module):
    """Two factors of the folded weight; `()` → `(n,)`."""

    def __init__(self, encoding: Factored) -> None:
        super().__init__()
        self.left = nn.Parameter(encoding.left[0].detach().clone())
        self.right = nn.Parameter(encoding.right[0].detach().clone())
        self.folding: Folding = encoding.folding

    def forward(self) -> Tensor:
        return self.folding.unfold((self.left @ self.right)[None]).reshape(-1)


class Decoder(nn.Module):
    """The sum of parts, of the weight's shape; a parametrisation whose own tensor is empty."""

    def __init__(self, encoding: Encoding, shape: tuple[int, ...]) -> None:
        super().__init__()
        whole = encoding.parts if isinstance(encoding, Summed) else (encoding,)
        self.parts = nn.ModuleList(_part(one) for one in whole)
        self.shape = shape

    def forward(self, original: Tensor) -> Tensor:
        return torch.stack([part() for part in self.parts]).sum(0).reshape(self.shape)

    def right_inverse(self, weight: Tensor) -> Tensor:
        """What is left of the dense weight: nothing."""
        return weight.new_zeros(0)


def _part(encoding: Encoding) -> nn.Module:
    if isinstance(encoding, Quantized):
        return Levels(encoding)
    if isinstance(encoding, Factored):
        return Product(encoding)
    assert isinstance(encoding, Pruned)
    values = encoding.values
    return Masked(values) if Masked.bytes(values) <= Gaps.bytes(values) else Gaps(values)


def encode_weight(layer: nn.Module, encoding: Encoding) -> None:
    """Replace a layer's weight by its encoding, in place."""
    weight = layer.weight
    assert isinstance(weight, Tensor)
    decoder = Decoder(encoding, tuple(weight.shape))
    # "unsafe": the empty tensor that is left has not the weight's shape, which is the point.
    parametrize.register_parametrization(layer, "weight", decoder, unsafe=True)
