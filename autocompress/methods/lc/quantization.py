"""Schemes whose weights take few levels: adaptive codebooks and fixed ones (arXiv 1707.04319); halves."""

from __future__ import annotations

from dataclasses import dataclass, field

import torch
from torch import Tensor

from autocompress.errors import SettingsError
from autocompress.methods.lc import projections
from autocompress.methods.lc.entropy import entropy_codebook
from autocompress.methods.lc.kmeans import kmeans
from autocompress.methods.lc.scheme import Scheme, View
from autocompress.weights.encodings import Encoding, Quantized, Rounded


@dataclass(frozen=True)
class Codebook(Scheme):
    """k adaptive levels: one-dimensional k-means (arXiv 1707.04319)."""

    kind: str = field(init=False, default="codebook")
    k: int = 4

    def __post_init__(self) -> None:
        if not 1 <= self.k <= 256:
            raise SettingsError(f"k must be in [1, 256] but got {self.k}.")

    def solve(self, x: Tensor, mu: float, view: View, previous: Encoding | None = None) -> Encoding:
        """Cluster the weights, `(n,)`, by k-means that starts from the last levels."""
        start = previous.levels if isinstance(previous, Quantized) else None
        return Quantized(*kmeans(x, self.k, start))


@dataclass(frozen=True)
class EntropyCodebook(Scheme):
    """k levels at most, one of them 0, whose codes have so many bits of entropy, near which they are stored:
    few bits leave few weights; see `entropy_codebook`."""

    kind: str = field(init=False, default="entropy")
    bits: float = 0.5
    k: int = 16

    def __post_init__(self) -> None:
        if not 0 < self.bits <= 8:
            raise SettingsError(f"bits must be in (0, 8] but got {self.bits}.")
        if not 2 <= self.k <= 256:
            raise SettingsError(f"k must be in [2, 256] but got {self.k}.")

    @classmethod
    def of(cls, bits: float) -> EntropyCodebook:
        """One of so many bits, with more levels than it has use for."""
        return cls(bits=bits, k=min(256, 2 * round(2**bits) + 5))

    def solve(self, x: Tensor, mu: float, view: View, previous: Encoding | None = None) -> Encoding:
        """Quantise the weights, `(n,)`, with at most so many bits, from the last levels on."""
        start = previous.levels if isinstance(previous, Quantized) else None
        return Quantized(*entropy_codebook(x, self.k, self.bits, start), "nonzero")


@dataclass(frozen=True)
class MixedPrecision(Scheme):
    """Codebooks of so many bits a weight on average, more where the model is sensitive; see `allocated`.

    Part of a sum, it is a codebook of so many bits everywhere.
    """

    kind: str = field(init=False, default="mixed")
    bits: float = 3.0

    def __post_init__(self) -> None:
        if not 1 <= self.bits <= 8:
            raise SettingsError(f"bits must be in [1, 8] but got {self.bits}.")

    @property
    def equal(self) -> Codebook:
        """The codebook where all are alike, of as many levels as the bits allow."""
        return Codebook(k=int(2**self.bits + 1e-9))

    def solve(self, x: Tensor, mu: float, view: View, previous: Encoding | None = None) -> Encoding:
        """Cluster the weights, `(n,)`, as a codebook of all layers alike does."""
        return self.equal.solve(x, mu, view, previous)


@dataclass(frozen=True)
class Budget(Scheme):
    """So many bits a weight on average, for whatever loses least: levels, zeros among them, or a low rank, in
    each layer; see `allocated`.

    Part of a sum, it is a codebook of so many bits of entropy everywhere.
    """

    kind: str = field(init=False, default="budget")
    bits: float = 1.5

    def __post_init__(self) -> None:
        if not 0 < self.bits <= 8:
            raise SettingsError(f"bits must be in (0, 8] but got {self.bits}.")

    @property
    def equal(self) -> EntropyCodebook:
        """The codebook where all are alike."""
        return EntropyCodebook.of(self.bits)

    def solve(self, x: Tensor, mu: float, view: View, previous: Encoding | None = None) -> Encoding:
        """Quantise the weights, `(n,)`, as a codebook of all layers alike does."""
        return self.equal.solve(x, mu, view, previous)


@dataclass(frozen=True)
class HalfPrecision(Scheme):
    """Numbers that half precision (IEEE 754 binary16) has."""

    kind: str = field(init=False, default="half")

    def solve(self, x: Tensor, mu: float, view: View, previous: Encoding | None = None) -> Encoding:
        """Round each weight, `(n,)`, to the nearest; what is too great becomes the greatest there is."""
        greatest = torch.finfo(torch.float16).max
        return Rounded(x.clamp(-greatest, greatest).half().to(x.dtype))


@dataclass(frozen=True)
class Binary(Scheme):
    """Levels −1 and 1."""

    kind: str = field(init=False, default="binary")

    def solve(self, x: Tensor, mu: float, view: View, previous: Encoding | None = None) -> Encoding:
        """Round each weight, `(n,)`, to its sign."""
        return Quantized(x.new_tensor([-1.0, 1.0]), projections.signs(x), "fixed")


@dataclass(frozen=True)
class ScaledBinary(Scheme):
    """Levels −c and c; the best c is the mean of |x|."""

    kind: str = field(init=False, default="scaled_binary")

    def solve(self, x: Tensor, mu: float, view: View, previous: Encoding | None = None) -> Encoding:
        """Round each weight, `(n,)`, to its sign times c, the mean of |x|."""
        levels = x.new_tensor([-1.0, 1.0]) * x.abs().mean()
        return Quantized(levels, projections.signs(x), "scale")


@dataclass(frozen=True)
class Ternary(Scheme):
    """Levels −c, 0 and c."""

    kind: str = field(init=False, default="ternary")

    def solve(self, x: Tensor, mu: float, view: View, previous: Encoding | None = None) -> Encoding:
        """Find the best c and round each weight, `(n,)`, to −c, 0 or c."""
        c, codes = projections.ternary(x)
        return Quantized(x.new_tensor([-1.0, 0.0, 1.0]) * c, codes, "scale")


@dataclass(frozen=True)
class FixedPoint(Scheme):
    """Integers of `bits` bits times a power of two, which is chosen to suit the weights."""

    kind: str = field(init=False, default="fixed_point")
    bits: int = 8

    def __post_init__(self) -> None:
        if not 1 <= self.bits <= 8:
            raise SettingsError(f"bits must be in [1, 8] but got {self.bits}.")

    def solve(self, x: Tensor, mu: float, view: View, previous: Encoding | None = None) -> Encoding:
        """Find the best power of two and round each weight, `(n,)`, to an integer of that scale."""
        last = previous.levels if isinstance(previous, Quantized) else None
        return Quantized(*projections.fixed_point(x, self.bits, last), "fixed")
