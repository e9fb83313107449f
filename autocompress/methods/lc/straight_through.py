"""Straight-through training: a model computes with levels, and steps move the numbers that they stand for.

Courbariaux et al., *BinaryConnect*, arXiv 1511.00363: the gradient at the levels is taken for that at the
numbers that are rounded to them. The optimiser steps on the levels themselves; by what it changed the numbers
move, and then the level of each is found anew.
"""

from __future__ import annotations

from dataclasses import dataclass, field

import torch
from torch import Tensor

from autocompress.weights.encodings import Quantized


@dataclass
class Hidden:
    """Numbers that weights are the levels of.

    Args:
        numbers: `(n,)`.
        encoding: of them; what has one code is an interval.
        shown: the weights, in the model's own precision, `(n,)`.
    """

    numbers: Tensor
    encoding: Quantized
    shown: Tensor
    order: Tensor = field(init=False)
    borders: Tensor = field(init=False)

    def __post_init__(self) -> None:
        self.order, self.borders = _intervals(self.numbers, self.encoding)

    def follow(self, weights: Tensor) -> Quantized:
        """What the numbers are stored as once an optimiser step has made these of the weights, `(n,)`."""
        self.numbers = self.numbers + (weights - self.shown)
        codes = self.order.index_select(0, torch.bucketize(self.numbers, self.borders))
        self.encoding = Quantized(self.encoding.levels, codes, self.encoding.tied)
        return self.encoding


def _intervals(numbers: Tensor, encoding: Quantized) -> tuple[Tensor, Tensor]:
    """Codes that numbers have, by rising level, `(m,)`, and half-way between what has one and the next,
    `(m − 1,)`."""
    k, codes = len(encoding.levels), encoding.codes
    lowest = numbers.new_full((k,), torch.inf).scatter_reduce(0, codes, numbers, "amin")
    highest = numbers.new_full((k,), -torch.inf).scatter_reduce(0, codes, numbers, "amax")
    used = torch.nonzero(lowest <= highest)[:, 0]
    order = used[lowest[used].argsort()]
    return order, (highest[order[:-1]] + lowest[order[1:]]) / 2
