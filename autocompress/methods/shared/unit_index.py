"""Units of coupled channel groups as positions in one vector, and which of them each row of a tensor has."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from autocompress.graph import Analysis, Member

Place = tuple[str, int]


def unit_offsets(analysis: Analysis) -> list[int]:
    """Where each group's units begin in the vector of all units; the last entry is its length."""
    return [0, *np.cumsum([group.width for group in analysis.groups]).tolist()]


def units_by_width(widths: Sequence[int], device: torch.device) -> list[tuple[Tensor, Tensor]]:
    """Groups as wide as one another, to be computed together: one after the other they would take a GPU as
    long each as all of them.

    Args:
        widths: units of each group.
        device: of what is returned.

    Returns:
        For each width the groups of it, `(groups,)`, and their units as positions in the vector of all
        units, `(groups, width)`.
    """
    starts = np.cumsum([0, *widths[:-1]])
    by_width = []
    for width in sorted(set(widths)):
        groups = np.flatnonzero(np.array(widths) == width)
        units = starts[groups][:, None] + np.arange(width)
        by_width.append((torch.from_numpy(groups).to(device), torch.from_numpy(units).to(device)))
    return by_width


def unit_index(
    analysis: Analysis,
    wanted: Callable[[Member], bool],
    places: Callable[[Member], list[Place]] = lambda member: [(member.tensor, member.dim)],
) -> dict[Place, NDArray[np.int64]]:
    """For dimensions of tensors, the unit of each position in the vector of all units.

    Args:
        analysis: of the model.
        wanted: which members of groups count.
        places: (tensor, dimension) pairs that a member stands for; its own by default.

    Returns:
        By (tensor, dimension), `(size,)`; positions of no unit have the length of the vector.
    """
    offsets = unit_offsets(analysis)
    index: dict[Place, NDArray[np.int64]] = {}
    for group, offset in zip(analysis.groups, offsets, strict=False):
        for member in group.members:
            if not wanted(member):
                continue
            own = member.unit_of >= 0
            for place in places(member):
                units = index.setdefault(place, np.full(len(member.unit_of), offsets[-1]))
                units[own] = member.unit_of[own] + offset
    return index
