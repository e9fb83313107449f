"""Unit labels: which removable unit each element of a tensor belongs to.

A tensor's labels are an integer array that broadcasts to its shape: 1 along dimensions on which the
unit does not depend, the full size where it does. `UNTRACKED` marks elements of no unit. Views,
permutations, slices and concatenations act on labels exactly as they act on the tensor.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, field, replace

import numpy as np
from numpy.typing import NDArray
from scipy.sparse import coo_array
from scipy.sparse.csgraph import connected_components

Ids = NDArray[np.int64]
UNTRACKED = -1
LARGEST_VIEW = 1 << 23  # elements of a parameter that are followed one by one through views


@dataclass(frozen=True)
class Value:
    """A tensor in the graph.

    Args:
        shape: sizes, the batch as in the example.
        labels: unit of each element; broadcasts to `shape`.
        parameter: name of the parameter or buffer that this is, or is a view of.
        elements: for such a view, the flat index of each element in the parameter; None: all.
        constant: it is no parameter but a tensor that the model's code holds or made when it was traced.
    """

    shape: tuple[int, ...]
    labels: Ids
    parameter: str | None = None
    elements: Ids | None = None
    constant: bool = False

    @staticmethod
    def untracked(shape: tuple[int, ...]) -> Value:
        """Make a tensor of this shape whose elements belong to no unit."""
        return Value(shape, np.full((1,) * len(shape), UNTRACKED, dtype=np.int64))

    @staticmethod
    def parameter_of(name: str, shape: tuple[int, ...], constant: bool = False) -> Value:
        """Make a tensor that is a parameter, or a constant, and has no labels yet."""
        return Value(shape, Value.untracked(shape).labels, name, None, constant)

    def seen_as(self, shape: tuple[int, ...], elements: Ids) -> Value:
        """A view of the parameter that this is, or is a view of."""
        return replace(self, shape=shape, labels=Value.untracked(shape).labels, elements=elements)

    def varies(self) -> list[int]:
        """Dimensions along which the labels differ."""
        return [d for d, size in enumerate(self.labels.shape) if size > 1]

    @property
    def tracked(self) -> bool:
        """Whether any element belongs to a unit."""
        return bool((self.labels != UNTRACKED).any())

    def along(self, dim: int) -> Ids:
        """Labels of the positions of `dim`, where nothing else varies; `(size,)`."""
        flat = np.moveaxis(self.labels, dim, -1).reshape(-1, self.labels.shape[dim])[0]
        return np.broadcast_to(flat, (self.shape[dim],))

    def positions(self) -> Ids:
        """Flat index of each element in the parameter that this is a view of; full shape.

        Raises:
            ValueError: the parameter is too large to follow its elements.
        """
        if self.elements is not None:
            return self.elements
        count = int(np.prod(self.shape, dtype=np.int64))
        if count > LARGEST_VIEW:
            raise ValueError("a view of so large a parameter is not followed")
        return np.arange(count, dtype=np.int64).reshape(self.shape)


@dataclass
class Units:
    """All units of a model: fresh ids, the edges that tie ids together, and what is frozen.

    `grids` are labels that a reshape spread over several dimensions: what survives of such a tensor
    must be a smaller tensor, so its units may in the end depend on one of the dimensions only. `products`
    are grids whose units are those of one of several dimensions of a parameter, each with ids of its own:
    which one is known when all else is, and the others stay.
    """

    size: int = 0
    edges: list[tuple[Ids, Ids]] = field(default_factory=list)
    frozen: list[tuple[Ids, str]] = field(default_factory=list)
    grids: list[Ids] = field(default_factory=list)
    products: list[tuple[Ids, list[Ids]]] = field(default_factory=list)

    def fresh(self, count: int) -> Ids:
        """Make this many new units; their ids, `(count,)`."""
        start, self.size = self.size, self.size + count
        return np.arange(start, self.size, dtype=np.int64)

    def tie(self, a: Ids, b: Ids) -> None:
        """Make pairs of ids one unit each; an id paired with `UNTRACKED` is frozen."""
        a, b = (np.ascontiguousarray(x).ravel() for x in np.broadcast_arrays(a, b))
        known = (a != UNTRACKED) & (b != UNTRACKED)
        self.edges.append((a[known], b[known]))
        alone = np.maximum(a, b)[~known]
        self.freeze(alone, "it is combined element by element with a tensor that cannot shrink")

    def tie_along(self, labels: Ids, dims: Iterable[int]) -> Ids:
        """Make all ids along these dimensions one unit; the labels that are left, size 1 there."""
        fused = labels
        for dim in dims:
            fused = fused.take([0], axis=dim)
        if fused.shape != labels.shape:
            self.tie(labels, fused)
        return fused

    def freeze(self, ids: Ids, reason: str) -> None:
        """Mark units as not removable, for this reason; `UNTRACKED` ids are passed over."""
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

    def product(self, axes: list[Ids]) -> Ids:
        """Units that run along one of several dimensions, which is left open; `(size of each,)`."""
        sizes = [len(ids) for ids in axes]
        grid = self.fresh(int(np.prod(sizes))).reshape(sizes)
        self.grids.append(grid)
        self.products.append((grid, axes))
        return grid

    def resolve(self) -> Ids:
        """Tie what grids ask for until all hold, and give the roots."""
        open_products = list(self.products)
        while True:
            roots = self.roots()
            if self._tie_grids(roots):
                continue
            if not open_products:
                return roots
            self._decide(*open_products.pop(0), roots)

    def _tie_grids(self, roots: Ids) -> bool:
        """Tie grids whose units depend on several dimensions along all but the longest; whether any was."""
        broken = False
        for grid in self.grids:
            labels = compress(rooted(grid, roots))
            varying = [d for d, size in enumerate(labels.shape) if size > 1]
            if len(varying) > 1:
                longest = max(varying, key=lambda d: labels.shape[d])
                self.tie_along(grid, [d for d in range(grid.ndim) if d != longest])
                broken = True
        return broken

    def _decide(self, grid: Ids, axes: list[Ids], roots: Ids) -> None:
        """Make a product's units those of the dimension that they depend on."""
        labels = compress(rooted(grid, roots))
        for dim, ids in enumerate(axes):
            if labels.shape[dim] > 1:
                self.tie(np.moveaxis(grid, dim, 0).reshape(len(ids), -1)[:, 0], ids)
            else:
                self.freeze(ids, "units of another dimension of the parameter go whole, with all of these")
        if labels.size == 1:
            self.freeze(grid[..., :1], "all of the parameter would be one unit")


def rooted(labels: Ids, roots: Ids) -> Ids:
    """Labels with each id replaced by its unit's root."""
    return np.where(labels == UNTRACKED, UNTRACKED, roots[labels] if len(roots) else labels)


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
