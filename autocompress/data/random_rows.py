"""Whether a loader's rows differ each time they are drawn, and the data set's own switch that ends it."""

from __future__ import annotations

import copy
from collections.abc import Iterator, Mapping
from typing import Any

import numpy as np
from numpy.typing import NDArray
from torch import Tensor
from torch.utils.data import DataLoader, Dataset, Subset

from autocompress.errors import TaskError, one_line
from autocompress.task.random_state import seeded

# A change that comes to a row with probability p is missed with (pⁿ + (1 − p)ⁿ)^ROWS, n = DRAWS: one in
# 800 for p = 0.1, never in practice for the usual mirror image with p = 0.5.
ROWS = 16
DRAWS = 4
# In the order they are tried in: what switches only augmentation first.
SWITCHES = ("augment", "training", "train")


def judging_dataset(
    loader: DataLoader[Any], drawn: DataLoader[Any], positions: NDArray[np.int64], name: str
) -> tuple[Dataset[Any], str]:
    """A data set whose rows are the same each time they are drawn, so that models can be compared on them.

    Some rows are drawn several times, through the loader's own `collate_fn`, in this process, from seeded
    global generators whose state is restored. Where they differ, a shallow copy of the data set serves whose
    own switch (a `bool` attribute `augment`, `training` or `train`, also inside a `Subset`) is off, if it is
    as long, its rows do not differ and they have the same targets.

    Args:
        loader: yields batches of a data set with an index; nothing is drawn from it.
        drawn: a copy of it, which is drawn from.
        positions: of the rows that the loader draws.
        name: of the split, for messages.

    Returns:
        The loader's own data set and an empty string, or the copy and which switch is off.

    Raises:
        TaskError: the rows differ and no switch ends it, or they cannot be drawn.
    """
    spread = np.linspace(0, len(positions) - 1, min(ROWS, len(positions))).astype(np.int64)
    rows = positions[spread]
    dataset = drawn.dataset
    with seeded():
        try:
            drawings = [_draw(drawn, dataset, rows) for _ in range(DRAWS)]
        except Exception as error:
            raise TaskError(
                f"val must be given where rows of {name} cannot be drawn one by one but "
                f"{type(dataset).__name__} failed: {type(error).__name__}: {one_line(error)} (give val=)."
            ) from error
        if _all_same(drawings):
            return loader.dataset, ""
        pairs = zip(_switched_off(dataset), _switched_off(loader.dataset), strict=True)
        for (switch, drawn_quiet), (_, quiet) in pairs:
            if _serves(drawn, drawn_quiet, rows, drawings):
                return quiet, f"{switch}=False"
    raise TaskError(
        f"val must be given where the rows of {name} are transformed at random, as models would be judged on "
        f"other inputs each time, but rows of {type(dataset).__name__} differ when drawn twice (give val=, a "
        "loader without augmentation)."
    )


def _draw(loader: DataLoader[Any], dataset: Dataset[Any], rows: NDArray[np.int64]) -> list[Any]:
    """Batches of some rows, made as the loader makes its own."""
    subset = Subset(dataset, rows.tolist())
    return list(DataLoader(subset, batch_size=loader.batch_size, collate_fn=loader.collate_fn))


def _switched_off(dataset: Any) -> Iterator[tuple[str, Dataset[Any]]]:
    """Shallow copies of a data set, or of a subset of one, each with one switch off."""
    if isinstance(dataset, Subset):
        for switch, inner in _switched_off(dataset.dataset):
            subset = copy.copy(dataset)
            subset.dataset = inner
            yield switch, subset
    for switch in SWITCHES:
        if getattr(dataset, switch, None) is not True:
            continue
        quiet = copy.copy(dataset)
        try:
            setattr(quiet, switch, False)
        except AttributeError:  # read-only, so not a switch
            continue
        if len(quiet) == len(dataset):
            yield switch, quiet


def _serves(
    loader: DataLoader[Any], quiet: Dataset[Any], rows: NDArray[np.int64], drawings: list[list[Any]]
) -> bool:
    """Whether the copy's rows are the same each time, and those of the data set as far as targets tell."""
    try:
        again = [_draw(loader, quiet, rows) for _ in range(DRAWS)]
    except Exception:
        # What cannot be drawn any more was not switched to evaluation.
        return False
    targets = [[_targets(batch) for batch in batches] for batches in (*drawings, again[0])]
    # A switch may choose the rows of another split; targets that augmentation does not touch show it.
    same_rows = _all_same(targets) or not _all_same(targets[:-1])
    return _all_same(again) and same_rows


def _targets(batch: Any) -> Any:
    return batch[1] if isinstance(batch, (tuple, list)) and len(batch) == 2 else None


def _all_same(drawings: list[Any]) -> bool:
    return all(_same(drawings[0], other) for other in drawings[1:])


def _same(a: Any, b: Any) -> bool:
    """Whether two trees of tensors, arrays, numbers and strings are equal, where NaN equals NaN.

    Leaves of other types are not compared.
    """
    if isinstance(a, Mapping) and isinstance(b, Mapping):
        return a.keys() == b.keys() and all(_same(a[key], b[key]) for key in a)
    if isinstance(a, (list, tuple)) and isinstance(b, (list, tuple)):
        return len(a) == len(b) and all(_same(x, y) for x, y in zip(a, b, strict=True))
    if isinstance(a, (Tensor, np.ndarray)) and type(a) is type(b):
        if a.shape != b.shape or a.dtype != b.dtype:
            return False
        equal: Any = (a == b) | ((a != a) & (b != b))
        return bool(equal.all())
    if isinstance(a, (int, float, complex, str, bytes, np.generic)):
        return bool(a == b or (a != a and b != b))
    return type(a) is type(b)
