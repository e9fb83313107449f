"""A layer's weight as matrices: which of its dimensions are rows and which are columns.

Schemes are those of ALDS (arXiv 2107.11442): bit d of the number says that the layer's d-th kernel
dimension belongs to the rows. For a 2-d convolution 0 is f × (c·k1·k2), 1 is (f·k1) × (k2·c), 2 is
(f·k2) × (k1·c) and 3 is (f·k1·k2) × c; a linear layer has scheme 0 alone.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

from torch import Tensor


@dataclass(frozen=True)
class Folding:
    """How a weight `(f, c/groups, *kernel)` becomes `groups · slices` matrices.

    Args:
        shape: of the weight.
        scheme: which kernel dimensions are rows.
        groups: of the convolution.
        slices: parts that each group's input channels are cut into; they are factorised one by one.
    """

    shape: tuple[int, ...]
    scheme: int = 0
    groups: int = 1
    slices: int = 1

    @property
    def in_rows(self) -> tuple[bool, ...]:
        """For each kernel dimension, whether it is among the rows."""
        return tuple(bool(self.scheme >> d & 1) for d in range(len(self.shape) - 2))

    @property
    def row_kernel(self) -> tuple[int, ...]:
        """The kernel of the second factor, 1 where a dimension belongs to the first."""
        return tuple(k if row else 1 for k, row in zip(self.shape[2:], self.in_rows, strict=True))

    @property
    def column_kernel(self) -> tuple[int, ...]:
        """The kernel of the first factor."""
        return tuple(1 if row else k for k, row in zip(self.shape[2:], self.in_rows, strict=True))

    @property
    def rows(self) -> int:
        """Rows of each matrix: the outputs of a group times the row kernel."""
        return self.shape[0] // self.groups * math.prod(self.row_kernel)

    @property
    def columns(self) -> int:
        """Columns of each matrix: the inputs of a slice times the column kernel."""
        return self.shape[1] // self.slices * math.prod(self.column_kernel)

    @property
    def full_rank(self) -> int:
        """The rank at which nothing is cut off."""
        return min(self.rows, self.columns)

    def fold(self, weight: Tensor) -> Tensor:
        """`(f, c/groups, *kernel)` → `(groups · slices, rows, columns)`."""
        f, c = self.shape[:2]
        split = weight.reshape(self.groups, f // self.groups, self.slices, c // self.slices, *self.shape[2:])
        return split.permute(self._order()).reshape(self.groups * self.slices, self.rows, self.columns)

    def unfold(self, matrices: Tensor) -> Tensor:
        """The inverse of `fold`."""
        order = self._order()
        f, c = self.shape[:2]
        split = (self.groups, f // self.groups, self.slices, c // self.slices, *self.shape[2:])
        inverse = [order.index(d) for d in range(len(order))]
        return matrices.reshape([split[d] for d in order]).permute(inverse).reshape(self.shape)

    def _order(self) -> list[int]:
        """Dimensions of the split weight: groups, slices, rows, columns."""
        kernel = range(len(self.shape) - 2)
        rows = [4 + d for d in kernel if self.in_rows[d]]
        columns = [4 + d for d in kernel if not self.in_rows[d]]
        return [0, 2, 1, *rows, 3, *columns]


def schemes_of(shape: tuple[int, ...]) -> tuple[int, ...]:
    """The schemes that differ for a weight of this shape; kernel dimensions of size 1 make none."""
    wide = [d for d, k in enumerate(shape[2:]) if k > 1]
    return tuple(sum((choice >> i & 1) << d for i, d in enumerate(wide)) for choice in range(1 << len(wide)))
