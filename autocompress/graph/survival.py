"""What survives a removal: which elements of each tensor in a model's graph."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from autocompress.errors import TrialError
from autocompress.graph.labels import Value, compress, rooted
from autocompress.graph.structure import Keep, Trace

Alive = NDArray[np.bool_]


class Survival:
    """Which elements of each tensor survive a removal."""

    def __init__(self, trace: Trace, keep: Keep) -> None:
        self.trace = trace
        # The last entry, at index UNTRACKED, stands for elements of no unit.
        self.alive = np.ones(int(trace.roots.max(initial=-1)) + 2, dtype=bool)
        for name, kept in keep.items():
            self.alive[np.delete(trace.units[name], list(kept))] = False

    def along(self, value: Value, dim: int) -> Alive:
        """Which positions of a dimension survive; `(size,)`.

        Raises:
            TrialError: what survives is not a smaller tensor.
        """
        alive = self._elements(value)
        others = tuple(d for d in range(alive.ndim) if d != dim)
        lines = alive.any(axis=others, keepdims=True)
        if not np.array_equal(alive, alive.any(axis=dim, keepdims=True) & lines):
            raise TrialError("what is kept of a tensor must be a smaller tensor but is not.")
        return np.broadcast_to(lines.ravel(), (value.shape[dim],))

    def size(self, value: Value, dim: int) -> int:
        """How many positions of a dimension survive, the batch as in the example."""
        return int(self.along(value, dim).sum())

    def _elements(self, value: Value) -> Alive:
        """Labels' shape: True where an element survives."""
        if value.parameter is None:
            alive: Alive = self.alive[rooted(value.labels, self.trace.roots)]
            return alive
        alive = np.ones((1,) * len(value.shape), dtype=bool)
        shape = self.trace.shapes[value.parameter]
        for dim in range(len(shape)):
            ids = self.trace.axes.get((value.parameter, dim))
            own = None if ids is None else self.alive[self.trace.roots[ids]]
            if own is not None and not own.all():
                alive = alive & own[compress(np.unravel_index(value.positions(), shape)[dim])]
        return alive
