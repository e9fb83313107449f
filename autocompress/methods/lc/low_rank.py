"""Schemes whose weights are products of two thin matrices."""

from __future__ import annotations

import math
from dataclasses import dataclass, field
from typing import Literal

import torch
from torch import Tensor

from autocompress.errors import SettingsError
from autocompress.methods.lc import projections
from autocompress.methods.lc.scheme import Scheme, View
from autocompress.methods.shared.settings import at_least_0
from autocompress.weights.encodings import Encoding, Factored, Pruned
from autocompress.weights.folding import Folding


@dataclass(frozen=True)
class LowRank(Scheme):
    """A product of this rank, or the least that the layer must have; convolutions are folded by `scheme`
    (weights/folding.py)."""

    kind: str = field(init=False, default="low_rank")
    rank: int = 1
    scheme: int = 0

    def __post_init__(self) -> None:
        at_least_0("rank", self.rank)

    def solve(self, x: Tensor, mu: float, view: View, previous: Encoding | None = None) -> Encoding:
        """Cut the singular value decomposition of the folded weights, `(n,)`, to the rank; for any μ.

        Exact, or from the last product within 1e-3 of the least error.

        Raises:
            SettingsError: the weights are of several layers or of a grouped one, or cannot be folded so.
        """
        folding = _folding(view, self.scheme)
        matrix = folding.fold(x.reshape(folding.shape))[0]
        left, _ = projections.factors(matrix, _left(previous))
        return _product(matrix, left, min(max(self.rank, view.least_rank), folding.full_rank), folding)


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
        at_least_0("alpha", self.alpha)
        if self.cost not in ("storage", "macs"):
            raise SettingsError(f"cost must be 'storage' or 'macs' but got {self.cost!r}.")

    @property
    def penalised(self) -> bool:
        """Say that it costs something: α times what the factors need."""
        return True

    def solve(self, x: Tensor, mu: float, view: View, previous: Encoding | None = None) -> Encoding:
        """Find the rank with the least objective, or keep the weights, `(n,)`, dense where that is cheaper.

        Raises:
            SettingsError: the weights are of several layers, or cannot be folded so.
        """
        if view.groups[0] != 1:
            # Grouped convolutions hold little; they stay as they are.
            return Pruned(x.clone())
        folding = _folding(view, self.scheme)
        matrix = folding.fold(x.reshape(folding.shape))[0]
        price, total = self._price(view), float(matrix.double().square().sum())
        costs = self.alpha * price * (folding.rows + folding.columns)
        for near in (_left(previous), None):
            left, squares = projections.factors(matrix, near)
            lost = total - torch.cat([squares.new_zeros(1), squares.cumsum(0)])
            objective = mu / 2 * lost.clamp_min(0) + costs * torch.arange(len(lost), device=x.device)
            objective[: min(view.least_rank, folding.full_rank)] = math.inf
            rank = int(objective.argmin())
            if rank < len(squares) or rank == folding.full_rank:
                break
            # All of the singular values that are known are worth their cost: more may be.
        if self.alpha * price * len(x) <= float(objective[rank]):
            return Pruned(x.clone())
        return _product(matrix, left, rank, folding)

    def penalty(self, encoding: Encoding, view: View) -> float:
        """Charge α for the numbers (or MACs) of the factors, or of the dense weight where that was kept."""
        if isinstance(encoding, Factored):
            stored = encoding.rank * (encoding.folding.rows + encoding.folding.columns)
        else:
            dense = encoding.dense()
            stored = len(dense) if bool(dense.any()) else 0
        return self.alpha * self._price(view) * stored

    def _price(self, view: View) -> float:
        """C of one number; one of the weight is used as often as one of its factors, strides aside."""
        return 1.0 if self.cost == "storage" else view.macs[0] / max(math.prod(view.shapes[0]), 1)


def _left(previous: Encoding | None) -> Tensor | None:
    """Orthonormal columns that the last solution was a product with."""
    return previous.left[0] if isinstance(previous, Factored) else None


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
