"""What a compressed weight is made of: levels and codes, halves, sparse values, factors, or sums of these."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from torch import Tensor

from autocompress.weights.folding import Folding


@dataclass(frozen=True)
class Quantized:
    """Each number is one of a few levels.

    Args:
        levels: `(k,)`.
        codes: which level each number is, int64, `(n,)`.
        tied: what training may change: each level ("free"), each but one that is 0 ("nonzero"), their common
            scale ("scale") or nothing ("fixed").
    """

    levels: Tensor
    codes: Tensor
    tied: Literal["free", "nonzero", "scale", "fixed"] = "free"

    def dense(self) -> Tensor:
        """The numbers, `(n,)`."""
        return self.levels.index_select(0, self.codes)

    def part(self, start: int, stop: int) -> Quantized:
        """The encoding of some of the numbers."""
        return Quantized(self.levels, self.codes[start:stop], self.tied)


@dataclass(frozen=True)
class Rounded:
    """Numbers that half precision has; `values` are they, `(n,)`, in whatever precision."""

    values: Tensor

    def dense(self) -> Tensor:
        """The numbers, `(n,)`."""
        return self.values

    def part(self, start: int, stop: int) -> Rounded:
        """The encoding of some of the numbers."""
        return Rounded(self.values[start:stop])


@dataclass(frozen=True)
class Pruned:
    """Most numbers are zero; `values` has them all, `(n,)`."""

    values: Tensor

    def dense(self) -> Tensor:
        """The numbers, `(n,)`."""
        return self.values

    def part(self, start: int, stop: int) -> Pruned:
        """The encoding of some of the numbers."""
        return Pruned(self.values[start:stop])


@dataclass(frozen=True)
class Factored:
    """A folded weight is a product: `left` `(1, rows, rank)` times `right` `(1, rank, columns)`."""

    left: Tensor
    right: Tensor
    folding: Folding

    @property
    def rank(self) -> int:
        """The columns of `left`, which are the rows of `right`."""
        return self.left.shape[2]

    def dense(self) -> Tensor:
        """The numbers, `(n,)`."""
        return self.folding.unfold(self.left @ self.right).reshape(-1)

    def part(self, start: int, stop: int) -> Factored:
        """The encoding of all numbers; a product has no parts."""
        assert (start, stop) == (0, self.folding.rows * self.folding.columns)
        return self


@dataclass(frozen=True)
class Summed:
    """The sum of other encodings of the same numbers."""

    parts: tuple[Encoding, ...]

    def dense(self) -> Tensor:
        """The numbers, `(n,)`."""
        first, *others = self.parts
        return sum((part.dense() for part in others), first.dense())

    def part(self, start: int, stop: int) -> Summed:
        """The encoding of some of the numbers."""
        return Summed(tuple(part.part(start, stop) for part in self.parts))


Encoding = Quantized | Rounded | Pruned | Factored | Summed


def moved(encoding: Encoding, like: Tensor) -> Encoding:
    """The encoding on the device and in the precision of a weight."""
    if isinstance(encoding, Summed):
        return Summed(tuple(moved(part, like) for part in encoding.parts))
    if isinstance(encoding, Quantized):
        codes = encoding.codes.to(like.device)
        return Quantized(encoding.levels.to(like.device, like.dtype), codes, encoding.tied)
    if isinstance(encoding, Rounded):
        return Rounded(encoding.values.to(like.device, like.dtype))
    if isinstance(encoding, Pruned):
        return Pruned(encoding.values.to(like.device, like.dtype))
    left, right = (factor.to(like.device, like.dtype) for factor in (encoding.left, encoding.right))
    return Factored(left, right, encoding.folding)
