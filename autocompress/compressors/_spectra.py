"""How much of a layer is lost at each rank: spectra of its folded weight, in four error measures."""

from __future__ import annotations

import hashlib
from collections import OrderedDict
from dataclasses import dataclass, field
from typing import Literal

import numpy as np
import torch
from numpy.typing import NDArray
from scipy.sparse.linalg import LinearOperator, eigsh
from torch import Tensor

from autocompress.weights.folding import Folding

Measure = Literal["slices", "operator", "frobenius", "data"]
MEASURES: tuple[Measure, ...] = ("slices", "operator", "frobenius", "data")
_MOST_BYTES = 1 << 30  # of all spectra that are kept in a process
_DENSE = 96  # up to this size all eigenvalues are faster than the largest one
_Floats = NDArray[np.float64]


@dataclass
class Spectrum:
    """One folding of one weight: its slices' singular values and left singular vectors.

    With `moments`, singular values are those of M·Σ^½, so that what is cut off is measured by the
    outputs it would make.

    Args:
        matrices: the folded weight, `(n, rows, columns)`.
        groups: of the convolution; the slices of one group are columns of one matrix.
        moments: Σ, E[x xᵀ] of what each slice multiplies, `(n, columns, columns)`.
    """

    matrices: Tensor
    groups: int = 1
    moments: Tensor | None = None
    values: _Floats = field(init=False)
    _left: Tensor | None = field(init=False, default=None)
    _norm: float | None = field(init=False, default=None)
    _operator: dict[int, float] = field(init=False, default_factory=dict)

    def __post_init__(self) -> None:
        scaled = self._scaled()
        rows, columns = scaled.shape[1:]
        gram = scaled @ scaled.mT if rows <= columns else scaled.mT @ scaled
        # Gram matrices in double: singular values to 1e-8 of the largest, far faster than an SVD.
        eigenvalues, vectors = torch.linalg.eigh(gram)
        self.values = eigenvalues.flip(-1).clamp_min(0).sqrt().numpy()
        if rows <= columns:
            self._left = vectors.flip(-1)

    @property
    def bytes(self) -> int:
        """Memory it may take: the matrices in their precision and their vectors in double."""
        n, rows, columns = self.matrices.shape
        return n * (rows * columns * 4 + 8 * rows * min(rows, columns))

    @property
    def left(self) -> Tensor:
        """Left singular vectors, `(n, rows, full rank)`."""
        if self._left is None:
            vectors: Tensor = torch.linalg.svd(self._scaled(), full_matrices=False)[0]
            self._left = vectors
        return self._left

    def _scaled(self) -> Tensor:
        matrices = self.matrices.double()
        if self.moments is None:
            return matrices
        eigenvalues, vectors = torch.linalg.eigh(self.moments)
        # What the calibration inputs never do still counts a little.
        floor = 1e-6 * eigenvalues.amax(-1, keepdim=True)
        scaled: Tensor = matrices @ (vectors * eigenvalues.clamp_min(floor).sqrt()[:, None, :])
        return scaled

    def project(self, rank: int) -> Tensor:
        """U_j U_jᵀ M, the nearest matrices of this rank, `(n, rows, columns)`."""
        kept = self.left[:, :, :rank]
        return (kept @ (kept.mT @ self.matrices.double())).to(self.matrices.dtype)

    def error(self, rank: int, measure: Measure) -> float:
        """Relative error of the weight cut to a rank, in [0, 1]."""
        tail = self.values[:, rank:]
        if tail.shape[1] == 0:
            return 0.0
        if measure in ("frobenius", "data"):
            return float(np.sqrt(np.square(tail).sum() / max(np.square(self.values).sum(), 1e-300)))
        if measure == "slices":
            return float(tail[:, 0].max() / max(self._whole(), 1e-300))
        return self._operator_error(rank)

    def least_rank(self, epsilon: float, measure: Measure, most: int) -> int | None:
        """The smallest rank in [1, most] whose error is at most ε; None where there is none."""
        low, high = 1, most
        if measure == "operator":
            # max_g σ_g ≤ ‖[T_1 … T_k]‖₂ ≤ (Σ_g σ_g²)^½: only between these it must be computed.
            bounds = self.values / max(self._whole(), 1e-300)
            below = np.flatnonzero(bounds[:, 1:].max(0) <= epsilon)
            per_group = np.square(bounds).reshape(self.groups, -1, bounds.shape[1]).sum(1)
            above = np.flatnonzero(np.sqrt(per_group.max(0))[1:] <= epsilon)
            low = int(below[0]) + 1 if len(below) else self.values.shape[1]
            high = min(most, int(above[0]) + 1) if len(above) else most
        if low > most or self.error(high, measure) > epsilon:
            return None
        while low < high:
            middle = (low + high) // 2
            if self.error(middle, measure) <= epsilon:
                high = middle
            else:
                low = middle + 1
        return low

    def _operator_error(self, rank: int) -> float:
        if rank not in self._operator:
            if len(self.values) == self.groups:
                norm = float(self.values[:, rank].max())
            else:
                norm = max(self._tail_norm(group, rank) for group in range(self.groups))
            self._operator[rank] = norm / max(self._whole(), 1e-300)
        return self._operator[rank]

    def _whole(self) -> float:
        """‖W‖₂ of the folded weight, all slices of a group side by side."""
        if self._norm is None:
            slices = len(self.values) // self.groups
            self._norm = 0.0
            for part in torch.split(self._scaled(), slices):
                wide = torch.cat(list(part), 1)
                gram = wide @ wide.mT if wide.shape[0] <= wide.shape[1] else wide.mT @ wide
                largest = _largest_eigenvalue(gram.numpy())
                self._norm = max(self._norm, float(np.sqrt(max(largest, 0.0))))
        return self._norm

    def _tail_norm(self, group: int, rank: int) -> float:
        """‖[T_1 … T_k]‖₂ of a group, T_i what rank j cuts off slice i: √λ_max(Σ_i T_i T_iᵀ)."""
        slices = len(self.values) // self.groups
        mine = slice(group * slices, (group + 1) * slices)
        left = self.left[mine].numpy()
        weights = np.square(self.values[mine])
        weights[:, :rank] = 0.0
        vectors = np.concatenate(list(left), 1)
        return float(np.sqrt(max(_largest(vectors, weights.reshape(-1)), 0.0)))


def _largest(vectors: _Floats, weights: _Floats) -> float:
    """λ_max(V diag(w) Vᵀ)."""
    used = weights > 0
    vectors, weights = vectors[:, used], weights[used]
    if not len(weights):
        return 0.0
    rows, columns = vectors.shape
    if min(rows, columns) <= _DENSE:
        scaled = vectors * np.sqrt(weights)
        return _largest_eigenvalue(scaled @ scaled.T if rows <= columns else scaled.T @ scaled)
    product = LinearOperator((rows, rows), matvec=lambda x: vectors @ (weights * (vectors.T @ x)))
    start = vectors @ np.sqrt(weights)
    return float(eigsh(product, k=1, which="LA", tol=1e-7, v0=start, return_eigenvectors=False)[0])


def _largest_eigenvalue(gram: _Floats) -> float:
    if len(gram) <= _DENSE:
        return float(np.linalg.eigvalsh(gram)[-1])
    if not gram.any():
        return 0.0
    # Not of ones, which a weight that is centred maps to zero.
    start = np.random.default_rng(0).normal(size=len(gram))
    return float(eigsh(gram, k=1, which="LA", tol=1e-7, v0=start, return_eigenvectors=False)[0])


_cache: OrderedDict[tuple[object, ...], Spectrum] = OrderedDict()


def spectrum(weight: Tensor, folding: Folding, moments: Tensor | None = None) -> Spectrum:
    """The spectrum of a weight's folding; computed once for equal weights in this process."""
    digest = hashlib.sha256()
    for tensor in (weight, moments):
        if tensor is not None:
            digest.update(tensor.detach().cpu().contiguous().view(torch.uint8).numpy().tobytes())
    key = (digest.hexdigest(), folding, moments is None)
    if key not in _cache:
        cpu = None if moments is None else moments.cpu()
        _cache[key] = Spectrum(folding.fold(weight.detach().cpu()), folding.groups, cpu)
        while len(_cache) > 1 and sum(one.bytes for one in _cache.values()) > _MOST_BYTES:
            _cache.popitem(last=False)
    _cache.move_to_end(key)
    return _cache[key]
