"""The rows of weights that make each unit of the coupled channel groups."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor, nn

from autocompress.graph import Analysis
from autocompress.methods.shared.gates import unit_offsets


@dataclass(frozen=True)
class Maker:
    """A weight whose rows make units.

    Args:
        tensor: state-dict name of the parameter.
        dim: along which its rows stand.
        units: of each row as a position in the vector of all units, the last one standing for "of no
            unit"; `(rows,)`.
    """

    tensor: str
    dim: int
    units: Tensor


def find_makers(model: nn.Module, analysis: Analysis) -> list[Maker]:
    """Every weight matrix or kernel that makes channels of a group."""
    offsets = unit_offsets(analysis)
    parameters = dict(model.named_parameters())
    found: dict[tuple[str, int], np.ndarray] = {}
    for group, offset in zip(analysis.groups, offsets, strict=False):
        for member in group.members:
            if member.role == "out" and member.tensor in parameters and parameters[member.tensor].dim() > 1:
                empty = np.full(len(member.unit_of), offsets[-1])
                index = found.setdefault((member.tensor, member.dim), empty)
                mine = member.unit_of >= 0
                index[mine] = member.unit_of[mine] + offset
    device = next(model.parameters()).device
    return [Maker(name, dim, torch.from_numpy(index).to(device)) for (name, dim), index in found.items()]


def unit_norms(makers: Sequence[Maker], tensor: Callable[[str], Tensor | None], units: int) -> Tensor:
    """√(Σ of squares) over all rows that make a unit; `(units,)`.

    Args:
        makers: of the units.
        tensor: name → a tensor of the parameter's shape, such as its gradient; None counts as zero.
        units: how many there are.
    """
    device = makers[0].units.device if makers else None
    squares = torch.zeros(units + 1, device=device)
    for maker in makers:
        value = tensor(maker.tensor)
        if value is not None:
            rows = value.detach().movedim(maker.dim, 0).flatten(1).float().square().sum(1)
            squares = squares.index_add(0, maker.units, rows)
    return squares[:units].sqrt()
