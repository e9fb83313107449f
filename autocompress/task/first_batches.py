"""Streams whose end is said by the user."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from itertools import islice
from typing import Any

from autocompress.errors import TaskError


class FirstBatches:
    """Batches of which no more than the first so many are drawn in a pass, so that the pass has an end.

    It is for streams that do not say how long they are, as validation, test or training data. `len()` is the
    limit, or the batches' own length where that is less; a pass may be shorter.

    Args:
        batches: that can be drawn more than once, such as a `DataLoader` of an `IterableDataset`.
        most: batches of a pass.

    Raises:
        TaskError: `most` is below 1, or `batches` cannot be drawn more than once.
    """

    def __init__(self, batches: Iterable[Any], most: int) -> None:
        if most < 1:
            raise TaskError(f"most must be at least 1 batch but got {most}.")
        if not isinstance(batches, Iterable) or isinstance(batches, Iterator):
            raise TaskError(
                f"batches must be iterable more than once but are a {type(batches).__name__} "
                "(a function that makes a split returns the limited batches)."
            )
        self.batches, self.most = batches, most

    def __iter__(self) -> Iterator[Any]:
        return islice(self.batches, self.most)

    def __len__(self) -> int:
        try:
            return min(self.most, len(self.batches))  # type: ignore[arg-type]
        except (TypeError, NotImplementedError):  # a stream
            return self.most
