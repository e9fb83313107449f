"""The rows of weights that make each unit of the coupled channel groups."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from autocompress.graph import Analysis
from autocompress.methods.shared.unit_index import unit_index


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
    parameters = dict(model.named_parameters())
    index = unit_index(
        analysis, lambda m: m.role == "out" and m.tensor in parameters and parameters[m.tensor].dim() > 1
    )
    device = next(model.parameters()).device
    return [Maker(name, dim, torch.from_numpy(units).to(device)) for (name, dim), units in index.items()]


def unit_norms(makers: Sequence[Maker], tensor: Callable[[str], Tensor | None], units: int) -> Tensor:
    """√(Σ of squares) over all rows that make a unit; `(units,)`.

    Args:
        makers: of the units.
        tensor: name → a tensor of the parameter's shape, such as its gradient; None counts as zero.
        units: how many there are.
    """
    device = makers[0].units.device if makers else None
    squares = torch.zeros(units + 1, device=device)
    present = [(maker, value) for maker in makers if (value := tensor(maker.tensor)) is not None]
    if present:
        norms = torch.cat([norms_along(value, maker.dim).float() for maker, value in present])
        squares = squares.index_add(0, torch.cat([maker.units for maker, _ in present]), norms.square())
    return squares[:units].sqrt()


def norms_along(tensor: Tensor, dim: int) -> Tensor:
    """√(Σ w²) over all dimensions but one, without gradient; `(size,)`."""
    others = [other for other in range(tensor.dim()) if other != dim]
    # Of no dimension PyTorch would take all.
    norms: Tensor = torch.linalg.vector_norm(tensor.detach(), dim=others) if others else tensor.detach().abs()
    return norms
