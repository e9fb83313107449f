"""How much of a layer is lost at each rank: spectra of its folded weight, in four error measures."""

from __future__ import annotations

import hashlib
from collections import OrderedDict
from dataclasses import InitVar, dataclass, field, replace
from typing import Literal

import numpy as np
import torch
from numpy.typing import NDArray
from scipy.sparse.linalg import eigsh
from torch import Tensor

from autocompress.sharing import once
from autocompress.weights.folding import Folding

Measure = Literal["slices", "operator", "frobenius", "data"]
MEASURES: tuple[Measure, ...] = ("slices", "operator", "frobenius", "data")
_MOST_BYTES = 1 << 30  # of all spectra that are kept in a process
_TOLERANCE = 1e-6  # of norms of large matrices, relative
_DENSE = 96  # up to this size all eigenvalues are faster than the largest one
_Floats = NDArray[np.float64]


@dataclass
class Spectrum:
    """One folding of one weight: its slices' singular values, and what measures need besides.

    With `moments`, singular values are those of M·Σ^½, so that what is cut off is measured by the
    outputs it would make.

    Args:
        matrices: the folded weight, `(n, rows, columns)`.
        groups: of the convolution; the slices of one group are columns of one matrix.
        moments: Σ, E[x xᵀ] of what each slice multiplies, `(n, columns, columns)`.
        norm: ‖W‖₂ of the folded weight, all slices of a group side by side; None computes it.
        vectors: keeps left singular vectors, which the operator norm of a residual is made of.
    """

    matrices: InitVar[Tensor]
    groups: int = 1
    moments: InitVar[Tensor | None] = None
    norm: float | None = None
    vectors: bool = True
    values: _Floats = field(init=False)
    _left: _Floats | None = field(init=False, default=None)
    _operator: dict[int, float] = field(init=False, default_factory=dict)

    def __post_init__(self, matrices: Tensor, moments: Tensor | None) -> None:
        scaled = _scaled(matrices, moments)
        if self.vectors:
            left, values = _left_vectors(scaled)
            self._left, self.values = left.numpy(), values.numpy()
        else:
            self.values = torch.linalg.eigvalsh(_gram(scaled)).flip(-1).clamp_min(0).sqrt().numpy()
        if self.norm is None:
            self.norm = _whole_norm(scaled, len(scaled) // self.groups)

    @property
    def bytes(self) -> int:
        """Memory that the spectrum takes, in bytes."""
        return self.values.nbytes + (0 if self._left is None else self._left.nbytes)

    @property
    def _whole(self) -> float:
        return max(self.norm or 0.0, 1e-300)

    def error(self, rank: int, measure: Measure) -> float:
        """Relative error of the weight cut to a rank, in [0, 1]."""
        tail = self.values[:, rank:]
        if tail.shape[1] == 0:
            return 0.0
        if measure in ("frobenius", "data"):
            return float(np.sqrt(np.square(tail).sum() / max(np.square(self.values).sum(), 1e-300)))
        if measure == "slices":
            return float(tail[:, 0].max() / self._whole)
        return self._operator_error(rank)

    def rank_bounds(self, epsilon: float, measure: Measure) -> tuple[int, int]:
        """The smallest rank whose error is at most ε lies between these; equal but for "operator"."""
        full = self.values.shape[1]
        if measure in ("frobenius", "data"):
            squares = np.square(self.values).sum(0)
            left = np.append(squares[::-1].cumsum()[::-1], 0.0)
            rank = _first(np.sqrt(left / max(left[0], 1e-300)) <= epsilon)
            return rank, rank
        bounds = np.append(self.values / self._whole, np.zeros((len(self.values), 1)), 1)
        low = _first(bounds.max(0) <= epsilon)
        if measure == "slices":
            return low, low
        # max_g σ_g ≤ ‖[T_1 … T_k]‖₂ ≤ (Σ_g σ_g²)^½, slices of a group side by side.
        per_group = np.square(bounds).reshape(self.groups, -1, full + 1).sum(1)
        return low, _first(np.sqrt(per_group.max(0)) <= epsilon)

    def least_rank(self, epsilon: float, measure: Measure, most: int) -> int | None:
        """The smallest rank in [1, most] whose error is at most ε; None where there is none."""
        low, high = self.rank_bounds(epsilon, measure)
        if low > most or (high > most and self.error(most, measure) > epsilon):
            return None
        high = min(high, most)
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
            self._operator[rank] = norm / self._whole
        return self._operator[rank]

    def _tail_norm(self, group: int, rank: int) -> float:
        """‖[T_1 … T_k]‖₂ of a group, T_i what rank j cuts off slice i: √λ_max(Σ_i T_i T_iᵀ)."""
        slices = len(self.values) // self.groups
        own_slices = slice(group * slices, (group + 1) * slices)
        assert self._left is not None
        left = self._left[own_slices]
        weights = np.square(self.values[own_slices])
        weights[:, :rank] = 0.0
        vectors = np.concatenate(list(left), 1)
        return float(np.sqrt(max(_largest(vectors, weights.reshape(-1)), 0.0)))


def _first(within: NDArray[np.bool_]) -> int:
    """The first rank that is within, at least 1; the last one, which cuts nothing off, always is."""
    return max(1, int(within.argmax()))


def project(matrices: Tensor, rank: int, moments: Tensor | None = None) -> Tensor:
    """U_j U_jᵀ M, the nearest matrices of a rank, `(n, rows, columns)`; near in outputs with Σ given."""
    kept = _left_vectors(_scaled(matrices, moments))[0][:, :, :rank]
    return (kept @ (kept.mT @ matrices.double())).to(matrices.dtype)


def _scaled(matrices: Tensor, moments: Tensor | None) -> Tensor:
    """M, or M·L with L·Lᵀ = Σ, which has the singular values of M·Σ^½."""
    if moments is None:
        return matrices.double()
    # What the calibration inputs never do still counts a little.
    floor = 1e-6 * moments.diagonal(dim1=1, dim2=2).amax(-1).clamp_min(1e-12)
    identity = torch.eye(moments.shape[-1], dtype=moments.dtype, device=moments.device)
    root: Tensor = torch.linalg.cholesky(moments + floor[:, None, None] * identity)
    return matrices.double() @ root


def _gram(matrices: Tensor) -> Tensor:
    """M Mᵀ or Mᵀ M, the smaller: singular values to 1e-8 of the largest, far faster than an SVD."""
    wide = matrices.shape[1] <= matrices.shape[2]
    return matrices @ matrices.mT if wide else matrices.mT @ matrices


def _left_vectors(matrices: Tensor) -> tuple[Tensor, Tensor]:
    """Left singular vectors, `(n, rows, full rank)`, and singular values, `(n, full rank)`."""
    if matrices.shape[1] > matrices.shape[2]:
        u, s, _ = torch.linalg.svd(matrices, full_matrices=False)
        return u, s
    eigenvalues, vectors = torch.linalg.eigh(_gram(matrices))
    return vectors.flip(-1), eigenvalues.flip(-1).clamp_min(0).sqrt()


def _whole_norm(matrices: Tensor, slices: int) -> float:
    """max over groups of ‖[M_1 … M_k]‖₂."""
    parts = [torch.cat(list(part), 1)[None] for part in torch.split(matrices, slices)]
    largest = max(_largest_eigenvalue(_gram(part)[0].numpy()) for part in parts)
    return float(np.sqrt(max(largest, 0.0)))


def _largest(vectors: _Floats, weights: _Floats) -> float:
    """λ_max(V diag(w) Vᵀ)."""
    scaled = vectors[:, weights > 0] * np.sqrt(weights[weights > 0])
    if not scaled.shape[1]:
        return 0.0
    return _largest_eigenvalue(scaled @ scaled.T if len(scaled) <= scaled.shape[1] else scaled.T @ scaled)


def _largest_eigenvalue(gram: _Floats) -> float:
    if len(gram) <= _DENSE:
        return float(np.linalg.eigvalsh(gram)[-1])
    if not gram.any():
        return 0.0
    # Not of ones, which a weight that is centred maps to zero.
    start = np.random.default_rng(0).normal(size=len(gram))
    return float(eigsh(gram, k=1, which="LA", tol=_TOLERANCE, v0=start, return_eigenvectors=False)[0])


_cache: OrderedDict[tuple[object, ...], Spectrum] = OrderedDict()


def spectrum(
    weight: Tensor,
    folding: Folding,
    measure: Measure,
    moments: Tensor | None = None,
    key: str | None = None,
    shared: bool = True,
) -> Spectrum:
    """The spectrum of a weight's folding; computed once for equal weights in this process.

    Args:
        weight: `(f, c/groups, *kernel)`.
        folding: of it.
        measure: that errors will be asked in.
        moments: for "data".
        key: `digest` of weight and moments, where it is known.
        shared: other processes of the run may want it too, which holds for weights before training.
    """
    vectors = measure == "operator"
    known = key or digest(weight, moments)
    place = (known, folding, vectors, moments is None)
    if place not in _cache:
        norm = None if moments is None else 1.0  # "data" is relative to all outputs, not to a norm
        if folding.slices > 1 and moments is None:
            norm = spectrum(weight, replace(folding, slices=1), measure, key=known, shared=shared).norm
        matrices, cpu = folding.fold(weight.detach().cpu()), None if moments is None else moments.cpu()

        def compute() -> Spectrum:
            return Spectrum(matrices, folding.groups, cpu, norm, vectors)

        _cache[place] = once(place, compute) if shared else compute()
        while len(_cache) > 1 and sum(cached.bytes for cached in _cache.values()) > _MOST_BYTES:
            _cache.popitem(last=False)
    _cache.move_to_end(place)
    return _cache[place]


def digest(*tensors: Tensor | None) -> str:
    """A name for the values of tensors."""
    hasher = hashlib.sha256()
    for tensor in tensors:
        if tensor is not None:
            # A copy: a last dimension of size 1 may have any stride, which a view as bytes refuses.
            dense = tensor.detach().cpu().clone(memory_format=torch.contiguous_format)
            hasher.update(dense.flatten().view(torch.uint8).numpy().tobytes())
    return hasher.hexdigest()
