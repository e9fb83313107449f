"""Labels follow a tensor's own reshapes, and ties make units."""

from __future__ import annotations

import numpy as np
import pytest

from autocompress.graph.labels import UNTRACKED, Units, Value, compress, reshape_labels


@pytest.mark.parametrize(
    ("old", "new"),
    [
        ((2, 6, 4, 4), (2, 96)),
        ((2, 96), (2, 6, 4, 4)),
        ((2, 6, 1, 1), (2, 6)),
        ((2, 6), (2, 1, 6, 1)),
        ((2, 6, 5), (2, 3, 2, 5)),
        ((2, 3, 2, 5), (2, 6, 5)),
    ],
)
def test_reshaped_labels_equal_labels_of_the_reshaped_tensor(
    old: tuple[int, ...], new: tuple[int, ...]
) -> None:
    rng = np.random.default_rng(0)
    for dim in range(1, len(old)):
        sizes = [1] * len(old)
        sizes[dim] = old[dim]
        labels = rng.permutation(100)[: old[dim]].reshape(sizes)
        expected = np.broadcast_to(labels, old).reshape(new)
        reshaped = np.broadcast_to(reshape_labels(labels, old, new), new)
        assert np.array_equal(reshaped, expected)


def test_compressed_labels_are_smallest_and_equal() -> None:
    labels = np.broadcast_to(np.arange(3).reshape(1, 3, 1), (2, 3, 4))
    assert compress(labels).shape == (1, 3, 1)


def test_tied_ids_share_a_root_and_untracked_partners_freeze() -> None:
    units = Units()
    a, b = units.fresh(3), units.fresh(3)
    units.tie(a, np.array([b[0], UNTRACKED, b[2]]))
    roots = units.roots()
    assert roots[a[0]] == roots[b[0]]
    assert roots[a[1]] != roots[b[1]]
    assert [ids.tolist() for ids, _ in units.frozen] == [[1]]


def test_along_broadcasts_to_the_dimension() -> None:
    value = Value((2, 4), np.array([[UNTRACKED]]))
    assert value.along(1).tolist() == [UNTRACKED] * 4
