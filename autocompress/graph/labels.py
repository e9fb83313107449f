"""Unit labels: which removable unit each element of a tensor belongs to.

A tensor's labels are an integer array that broadcasts to its shape: 1 along dimensions on which the
unit does not depend, the full size where it does. `UNTRACKED` marks elements of no unit. Views,
permutations, slices and concatenations act on labels exactly as they act on the tensor.
"""

from __future__ import annotations

from dataclasses import dataclass, field

import numpy as np
from numpy.typing import NDArray
from scipy.sparse import coo_array
from scipy.sparse.csgraph import connected_components

Ids = NDArray[np.int64]
UNTRACKED = -1


@dataclass(frozen=True)
class Value:
    """A tensor in the graph: its shape and labels; `parameter` names it where it is one."""

    shape: tuple[int, ...]
    labels: Ids
    parameter: str | None = None

    @staticmethod
    def untracked(shape: tuple[int, ...]) -> Value:
        return Value(shape, np.full((1,) * len(shape), UNTRACKED, dtype=np.int64))

    @staticmethod
    def parameter_of(name: str, shape: tuple[int, ...]) -> Value:
        return Value(shape, Value.untracked(shape).labels, name)

    def varies(self) -> list[int]:
        """Dimensions along which the labels differ."""
        return [d for d, size in enumerate(self.labels.shape) if size > 1]

    @property
    def tracked(self) -> bool:
        return bool((self.labels != UNTRACKED).any())

    def along(self, dim: int) -> Ids:
        """Labels of the positions of `dim`, where nothing else varies; `(size,)`."""
        flat = np.moveaxis(self.labels, dim, -1).reshape(-1, self.labels.shape[dim])[0]
        return np.broadcast_to(flat, (self.shape[dim],))


@dataclass
class Units:
    """All units of a model: fresh ids, the edges that tie ids together, and what is frozen."""

    size: int = 0
    edges: list[tuple[Ids, Ids]] = field(default_factory=list)
    frozen: list[tuple[Ids, str]] = field(default_factory=list)

    def fresh(self, count: int) -> Ids:
        start, self.size = self.size, self.size + count
        return np.arange(start, self.size, dtype=np.int64)

    def tie(self, a: Ids, b: Ids) -> None:
        """Make pairs of ids one unit each; an id paired with `UNTRACKED` is frozen."""
        a, b = (np.ascontiguousarray(x).ravel() for x in np.broadcast_arrays(a, b))
        known = (a != UNTRACKED) & (b != UNTRACKED)
        self.edges.append((a[known], b[known]))
        alone = np.maximum(a, b)[~known]
        self.freeze(alone, "it is combined element by element with a tensor that cannot shrink")

    def freeze(self, ids: Ids, reason: str) -> None:
        ids = np.unique(ids)
        ids = ids[ids != UNTRACKED]
        if ids.size:
            self.frozen.append((ids, reason))

    def roots(self) -> Ids:
        """For each id, the representative of its unit; `(size,)`."""
        if not self.size:
            return np.zeros(0, dtype=np.int64)
        heads = np.concatenate([a for a, _ in self.edges] or [np.zeros(0, dtype=np.int64)])
        tails = np.concatenate([b for _, b in self.edges] or [np.zeros(0, dtype=np.int64)])
        matrix = coo_array((np.ones(len(heads)), (heads, tails)), shape=(self.size, self.size))
        _, components = connected_components(matrix, directed=False)
        return np.asarray(components, dtype=np.int64)


def reshape_labels(labels: Ids, old: tuple[int, ...], new: tuple[int, ...]) -> Ids:
    """Labels of a tensor after `reshape` from shape `old` to shape `new`.

    Dimensions are matched in the smallest blocks of equal product, so that only blocks in which
    labels vary are expanded to full size.
    """
    result_shape: list[int] = []
    i = j = 0
    pieces: list[tuple[slice, list[int], bool]] = []
    while i < len(old) or j < len(new):
        start_i, start_j = i, j
        left = old[i] if i < len(old) else 1
        right = new[j] if j < len(new) else 1
        i, j = min(i + 1, len(old)), min(j + 1, len(new))
        while left != right:
            if left < right:
                left, i = left * old[i], i + 1
            else:
                right, j = right * new[j], j + 1
        block = slice(start_i, i)
        varies = any(size > 1 for size in labels.shape[block])
        pieces.append((block, list(new[start_j:j]), varies))
    expanded: list[int] = []
    for block, sizes, varies in pieces:
        expanded += list(old[block]) if varies else list(labels.shape[block])
        result_shape += sizes if varies else [1] * len(sizes)
    full = np.broadcast_to(labels, tuple(expanded)).reshape(result_shape)
    return compress(full)


def compress(labels: Ids) -> Ids:
    """The same labels with size 1 along every dimension on which they do not depend."""
    for dim, size in enumerate(labels.shape):
        if size > 1:
            first = labels.take([0], axis=dim)
            if np.array_equal(np.broadcast_to(first, labels.shape), labels):
                labels = first
    return labels
