"""Modules that hold an encoded weight and decode it when it is read; they train, copy and export.

A decoder is a parametrisation of the layer's weight, so that whoever reads `layer.weight` gets it.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.utils import parametrize

from autocompress.weights.encodings import Encoding, Factored, Pruned, Quantized, Summed, moved
from autocompress.weights.folding import Folding
from autocompress.weights.packing import bits_for, pack, unpack

_SKIP = 255
_ENCODING = "_autocompress_encoding"


class Levels(nn.Module):
    """Packed codes and the levels they stand for; `()` → `(n,)`."""

    packed: Tensor

    def __init__(self, encoding: Quantized) -> None:
        super().__init__()
        levels = encoding.levels.detach().clone()
        self.count, self.bits = len(encoding.codes), bits_for(len(levels))
        self.register_buffer("packed", pack(encoding.codes, self.bits).to(levels.device))
        self.scale: nn.Parameter | None = None
        if encoding.tied == "free":
            self.levels: Tensor = nn.Parameter(levels)
        else:
            scale = levels.abs().max().clamp_min(1e-12) if encoding.tied == "scale" else None
            self.scale = None if scale is None else nn.Parameter(scale)
            self.register_buffer("levels", levels if scale is None else levels / scale)

    @property
    def numbers(self) -> int:
        """Weights that the codes stand for."""
        return self.count

    def forward(self) -> Tensor:
        codes = unpack(self.packed, self.bits, self.count)
        if self.training and torch.is_grad_enabled():
            return self._trained(codes)
        levels = self.levels if self.scale is None else self.levels * self.scale
        return levels[codes]

    def _trained(self, codes: Tensor) -> Tensor:
        """The same, with the gradient of a step on the weights that is projected on what they can be.

        A level's gradient is the mean over its weights, not their sum, which would move it as far as
        all of them together: dl_k = mean of dw over code k; dc = Σ s dw / Σ s² where w = c·s.
        """
        counts = torch.bincount(codes, minlength=len(self.levels)).to(self.levels.dtype)
        if self.scale is None:
            return _damped(self.levels, counts)[codes]
        norm = (counts * self.levels.square()).sum()
        return (self.levels * _damped(self.scale, norm))[codes]


def _damped(parameter: Tensor, divisor: Tensor) -> Tensor:
    """The parameter itself, whose gradient is divided."""
    fixed = parameter.detach()
    return fixed + (parameter - fixed) / divisor.clamp_min(1)


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
        return -(-len(values) // 8) + values.element_size() * int((values != 0).sum())

    @property
    def numbers(self) -> int:
        """Values that are stored."""
        return len(self.values)

    def forward(self) -> Tensor:
        mask = unpack(self.mask, 1, self.count)
        position = (torch.cumsum(mask, 0) - 1).clamp_min(0)
        return self.values[position] * mask


class Gaps(nn.Module):
    """Steps from one value to the next, one byte each, and the values; `()` → `(n,)`.

    A byte g below 255 is a step of g + 1 to the next value; 255 is a step of 255 to no value.
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
        gaps, kept = _gaps(values)
        return len(gaps) + values.element_size() * len(kept)

    @property
    def numbers(self) -> int:
        """Values that are stored."""
        return len(self.values)

    def forward(self) -> Tensor:
        steps = self.gaps.to(torch.int64)
        here = (steps < _SKIP).to(torch.int64)
        position = torch.cumsum(steps + here, 0) - 1
        values = self.values[(torch.cumsum(here, 0) - 1).clamp_min(0)] * here
        empty = torch.zeros(self.count, dtype=self.values.dtype, device=self.gaps.device)
        return empty.scatter(0, position, values)


def _gaps(values: Tensor) -> tuple[Tensor, Tensor]:
    """Bytes, uint8, and the values that are not zero."""
    positions = torch.nonzero(values)[:, 0]
    if not len(positions):
        # One number at least, so that there is something to place.
        positions = torch.zeros(1, dtype=torch.int64, device=values.device)
    before = torch.cat([positions.new_full((1,), -1), positions[:-1]])
    steps = positions - before
    skips = (steps - 1) // _SKIP
    ends = torch.cumsum(skips + 1, 0) - 1
    gaps = torch.full((int(ends[-1]) + 1,), _SKIP, dtype=torch.uint8, device=values.device)
    gaps[ends] = (steps - 1 - _SKIP * skips).to(torch.uint8)
    return gaps, values[positions]


class Product(nn.Module):
    """Two factors of the folded weight; `()` → `(n,)`."""

    def __init__(self, encoding: Factored) -> None:
        super().__init__()
        self.left = nn.Parameter(encoding.left[0].detach().clone())
        self.right = nn.Parameter(encoding.right[0].detach().clone())
        self.folding: Folding = encoding.folding

    @property
    def numbers(self) -> int:
        """Numbers in both factors."""
        return self.left.numel() + self.right.numel()

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

    @property
    def numbers(self) -> int:
        """Weights that this counts as: one for each code, each value and each number of a factor."""
        parts: Any = self.parts
        return sum(int(part.numbers) for part in parts)

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


def carry(layer: nn.Module, encoding: Encoding) -> None:
    """Let a dense layer carry the encoding of its weight, until it is stored so."""
    layer.__dict__[_ENCODING] = encoding


def drop_carried(model: nn.Module) -> None:
    """Take away what layers carry."""
    for layer in model.modules():
        layer.__dict__.pop(_ENCODING, None)


def carried(layer: nn.Module) -> Encoding | None:
    """The encoding that a layer carries."""
    found: Encoding | None = layer.__dict__.get(_ENCODING)
    return found


def encode_weight(layer: nn.Module, encoding: Encoding) -> None:
    """Replace a layer's weight by its encoding, in place."""
    weight = layer.weight
    assert isinstance(weight, Tensor)
    decoder = Decoder(moved(encoding, weight), tuple(weight.shape))
    decoder.requires_grad_(weight.requires_grad)
    # "unsafe": the empty tensor that is left has not the weight's shape, which is the point.
    parametrize.register_parametrization(layer, "weight", decoder, unsafe=True)
