"""What a weight may be compressed to; each scheme's `solve` is the C step of learning-compression.

Codebook(k=4)                                   an adaptive codebook
Binary(), ScaledBinary(), Ternary(), FixedPoint(bits=8)
PruneL0(keep=0.05), PruneL1(share=0.1), PenaltyL0(alpha=1e-6), PenaltyL1(alpha=1e-6)
LowRank(rank=10), RankSelection(alpha=1e-8, cost="macs")
Codebook(k=2) + PruneL0(keep=0.01)              a sum
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping
from dataclasses import dataclass, field, fields
from typing import Any, Literal

import torch
from torch import Tensor

from autocompress.compressors.lc import _projections as projections
from autocompress.compressors.lc._kmeans import kmeans
from autocompress.errors import SettingsError
from autocompress.weights.encodings import Encoding, Factored, Pruned, Quantized, Summed
from autocompress.weights.folding import Folding

_ALTERNATIONS = 30


@dataclass(frozen=True)
class View:
    """What is compressed together: one layer, or several as one vector.

    Args:
        shapes: of the layers' weights.
        groups: of each layer's convolution.
        macs: multiply-accumulates of each layer.
        reference_l1: Σ|w| before training.
    """

    shapes: tuple[tuple[int, ...], ...]
    groups: tuple[int, ...] = (1,)
    macs: tuple[int, ...] = (0,)
    reference_l1: float = 0.0


@dataclass(frozen=True)
class Scheme(ABC):
    """A set of weights Δ(Θ), and how the nearest of them to given weights is found."""

    kind: str = field(init=False, default="")

    @abstractmethod
    def solve(self, x: Tensor, mu: float, view: View, previous: Encoding | None = None) -> Encoding:
        """Θ that minimises μ/2·‖x − Δ(Θ)‖² plus the scheme's own cost.

        Args:
            x: the weights, `(n,)`.
            mu: of the penalty; schemes without a cost of their own do not depend on it.
            view: whose weights they are.
            previous: the last Θ, to start from.
        """

    def __add__(self, other: Scheme) -> Sum:
        return Sum((*_parts(self), *_parts(other)))


@dataclass(frozen=True)
class Codebook(Scheme):
    """k adaptive levels: one-dimensional k-means (arXiv 1707.04319)."""

    kind: str = field(init=False, default="codebook")
    k: int = 4

    def __post_init__(self) -> None:
        if not 1 <= self.k <= 256:
            raise SettingsError(f"k must be in [1, 256] but got {self.k}.")

    def solve(self, x: Tensor, mu: float, view: View, previous: Encoding | None = None) -> Encoding:
        start = previous.levels if isinstance(previous, Quantized) else None
        return Quantized(*kmeans(x, self.k, start))


@dataclass(frozen=True)
class Binary(Scheme):
    """Levels −1 and 1."""

    kind: str = field(init=False, default="binary")

    def solve(self, x: Tensor, mu: float, view: View, previous: Encoding | None = None) -> Encoding:
        return Quantized(x.new_tensor([-1.0, 1.0]), projections.signs(x), "fixed")


@dataclass(frozen=True)
class ScaledBinary(Scheme):
    """Levels −c and c; the best c is the mean of |x|."""

    kind: str = field(init=False, default="scaled_binary")

    def solve(self, x: Tensor, mu: float, view: View, previous: Encoding | None = None) -> Encoding:
        levels = x.new_tensor([-1.0, 1.0]) * x.abs().mean()
        return Quantized(levels, projections.signs(x), "scale")


@dataclass(frozen=True)
class Ternary(Scheme):
    """Levels −c, 0 and c."""

    kind: str = field(init=False, default="ternary")

    def solve(self, x: Tensor, mu: float, view: View, previous: Encoding | None = None) -> Encoding:
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
        return Quantized(*projections.fixed_point(x, self.bits), "fixed")


@dataclass(frozen=True)
class PruneL0(Scheme):
    """At most κ = keep·n weights that are not zero (CVPR 2018)."""

    kind: str = field(init=False, default="prune_l0")
    keep: float = 0.1

    def __post_init__(self) -> None:
        if not 0 <= self.keep <= 1:
            raise SettingsError(f"keep must be in [0, 1] but got {self.keep}.")

    def solve(self, x: Tensor, mu: float, view: View, previous: Encoding | None = None) -> Encoding:
        return Pruned(projections.keep_largest(x, round(self.keep * len(x))))


@dataclass(frozen=True)
class PruneL1(Scheme):
    """Σ|w| at most `share` of what it was before training."""

    kind: str = field(init=False, default="prune_l1")
    share: float = 0.1

    def __post_init__(self) -> None:
        if not self.share >= 0:
            raise SettingsError(f"share must be at least 0 but got {self.share}.")

    def solve(self, x: Tensor, mu: float, view: View, previous: Encoding | None = None) -> Encoding:
        return Pruned(projections.l1_ball(x, self.share * view.reference_l1))


@dataclass(frozen=True)
class PenaltyL0(Scheme):
    """α for each weight that is not zero: those with x² ≤ 2α/μ are."""

    kind: str = field(init=False, default="penalty_l0")
    alpha: float = 1e-6

    def __post_init__(self) -> None:
        _at_least_0("alpha", self.alpha)

    def solve(self, x: Tensor, mu: float, view: View, previous: Encoding | None = None) -> Encoding:
        return Pruned(projections.hard_threshold(x, (2 * self.alpha / mu) ** 0.5))


@dataclass(frozen=True)
class PenaltyL1(Scheme):
    """α·Σ|w|: weights shrink by α/μ."""

    kind: str = field(init=False, default="penalty_l1")
    alpha: float = 1e-6

    def __post_init__(self) -> None:
        _at_least_0("alpha", self.alpha)

    def solve(self, x: Tensor, mu: float, view: View, previous: Encoding | None = None) -> Encoding:
        return Pruned(projections.soft_threshold(x, self.alpha / mu))


@dataclass(frozen=True)
class LowRank(Scheme):
    """A product of this rank; convolutions are folded by `scheme` (weights/folding.py)."""

    kind: str = field(init=False, default="low_rank")
    rank: int = 1
    scheme: int = 0

    def __post_init__(self) -> None:
        _at_least_0("rank", self.rank)

    def solve(self, x: Tensor, mu: float, view: View, previous: Encoding | None = None) -> Encoding:
        folding = _folding(view, self.scheme)
        matrix = folding.fold(x.reshape(folding.shape))[0]
        left, _ = projections.factors(matrix)
        return _product(matrix, left, min(self.rank, folding.full_rank), folding)


@dataclass(frozen=True)
class RankSelection(Scheme):
    """The rank that minimises μ/2·‖W − UVᵀ‖² + α·C(r), or the dense weight where that is cheaper.

    Idelbayev & Carreira-Perpiñán, CVPR 2020; C counts numbers ("storage") or "macs".
    """

    kind: str = field(init=False, default="rank_selection")
    alpha: float = 1e-6
    cost: Literal["storage", "macs"] = "storage"
    scheme: int = 0

    def __post_init__(self) -> None:
        _at_least_0("alpha", self.alpha)
        if self.cost not in ("storage", "macs"):
            raise SettingsError(f"cost must be 'storage' or 'macs' but got {self.cost!r}.")

    def solve(self, x: Tensor, mu: float, view: View, previous: Encoding | None = None) -> Encoding:
        if view.groups[0] != 1:
            # Grouped convolutions hold little; they stay as they are.
            return Pruned(x.clone())
        folding = _folding(view, self.scheme)
        matrix = folding.fold(x.reshape(folding.shape))[0]
        left, squares = projections.factors(matrix)
        # A number of the weight is used as often as a number of its factors, strides aside.
        price = 1.0 if self.cost == "storage" else view.macs[0] / max(len(x), 1)
        ranks = torch.arange(folding.full_rank + 1, device=x.device)
        lost = squares.sum() - torch.cat([squares.new_zeros(1), squares.cumsum(0)])
        costs = price * ranks * (folding.rows + folding.columns)
        objective = mu / 2 * lost.clamp_min(0) + self.alpha * costs
        rank = int(objective.argmin())
        if self.alpha * price * len(x) <= float(objective[rank]):
            return Pruned(x.clone())
        return _product(matrix, left, rank, folding)


@dataclass(frozen=True)
class Sum(Scheme):
    """A sum of schemes, solved by turns; each turn lowers the error or leaves it."""

    kind: str = field(init=False, default="sum")
    parts: tuple[Scheme, ...] = ()

    def __post_init__(self) -> None:
        if len(self.parts) < 2:
            raise SettingsError(f"parts must be at least two schemes but got {len(self.parts)}.")

    def solve(self, x: Tensor, mu: float, view: View, previous: Encoding | None = None) -> Encoding:
        starts = [[torch.zeros_like(x) for _ in self.parts]]
        if isinstance(previous, Summed):
            starts.append([part.dense() for part in previous.parts])
        found = [self._alternate(x, mu, view, start) for start in starts]
        return min(found, key=lambda pair: pair[0])[1]

    def _alternate(self, x: Tensor, mu: float, view: View, dense: list[Tensor]) -> tuple[float, Summed]:
        parts: list[Encoding | None] = [None] * len(self.parts)
        error = float("inf")
        for _ in range(_ALTERNATIONS):
            for i, scheme in enumerate(self.parts):
                rest = x - sum((d for j, d in enumerate(dense) if j != i), torch.zeros_like(x))
                solved = scheme.solve(rest, mu, view, parts[i])
                parts[i], dense[i] = solved, solved.dense()
            reached = float((x - torch.stack(dense).sum(0)).double().square().sum())
            if reached >= error * (1 - 1e-5):
                break
            error = reached
        return reached, Summed(tuple(part for part in parts if part is not None))


SCHEMES: dict[str, type[Scheme]] = {
    str(next(f.default for f in fields(cls) if f.name == "kind")): cls
    for cls in (
        Codebook, Binary, ScaledBinary, Ternary, FixedPoint, PruneL0, PruneL1, PenaltyL0, PenaltyL1,
        LowRank, RankSelection, Sum,
    )
}  # fmt: skip


def scheme_from(data: Scheme | Mapping[str, Any]) -> Scheme:
    """A scheme from what `dataclasses.asdict` made of it.

    Raises:
        SettingsError: the kind or a field is unknown or out of range.
    """
    if isinstance(data, Scheme):
        return data
    options = dict(data)
    kind = options.pop("kind", None)
    if kind not in SCHEMES:
        raise SettingsError(f"kind must be one of {', '.join(SCHEMES)} but got {kind!r}.")
    if kind == "sum":
        options["parts"] = tuple(scheme_from(part) for part in options["parts"])
    try:
        return SCHEMES[kind](**options)
    except TypeError as error:
        raise SettingsError(f"scheme {kind} is not usable: {error}") from error


def _parts(scheme: Scheme) -> tuple[Scheme, ...]:
    return scheme.parts if isinstance(scheme, Sum) else (scheme,)


def _folding(view: View, scheme: int) -> Folding:
    if len(view.shapes) != 1:
        raise SettingsError(f"low rank must be given one layer but got {len(view.shapes)} jointly.")
    if view.groups[0] != 1:
        raise SettingsError(f"low rank must be given a layer of one group but got {view.groups[0]}.")
    kernel = len(view.shapes[0]) - 2
    if not 0 <= scheme < 2 ** max(kernel, 0):
        raise SettingsError(f"scheme must be in [0, {2 ** max(kernel, 0)}) but got {scheme}.")
    return Folding(view.shapes[0], scheme)


def _product(matrix: Tensor, left: Tensor, rank: int, folding: Folding) -> Encoding:
    if rank == 0:
        return Pruned(torch.zeros(matrix.numel(), dtype=matrix.dtype, device=matrix.device))
    kept = left[:, :rank]
    right = kept.mT @ matrix.double()
    return Factored(kept.to(matrix.dtype)[None], right.to(matrix.dtype)[None], folding)


def _at_least_0(name: str, value: float) -> None:
    if not value >= 0:
        raise SettingsError(f"{name} must be at least 0 but got {value}.")
