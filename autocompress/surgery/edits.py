"""Edits as data: what a compressor decides should be physically changed in a model."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import Any

from autocompress.errors import UsageError


@dataclass(frozen=True)
class KeepChannels:
    """Keep the named units of one coupled channel group and remove its others everywhere.

    Args:
        group: name of the group, as `autocompress inspect` prints it.
        keep: indices of the units that stay, increasing.
    """

    group: str
    keep: tuple[int, ...]

    def __post_init__(self) -> None:
        if not self.keep or list(self.keep) != sorted(set(self.keep)) or self.keep[0] < 0:
            raise UsageError(
                "keep must be a non-empty, strictly increasing tuple of unit indices "
                f"but got {self.keep!r} for group {self.group!r}."
            )


@dataclass(frozen=True)
class DropBlock:
    """Remove the layers between two cut points, for which a translator stands.

    Args:
        start: graph node of the cut point before them.
        end: graph node of the one after them, "output" for the model's end.
        translator: name of the module that stands for them.
        layers: names of the layers to remove, which nothing uses any more.
    """

    start: str
    end: str
    translator: str
    layers: tuple[str, ...]


@dataclass(frozen=True)
class DropBranch:
    """Remove a branch whose gate is zero; the other side of the sum it goes to stands for it.

    Args:
        gate: name of the module that gates the branch.
    """

    gate: str


@dataclass(frozen=True)
class Factorize:
    """Put two layers in the place of one whose weight has a low rank.

    Args:
        layer: name of a linear or convolution layer.
        scheme: which kernel dimensions are rows of the folded weight (`weights/folding.py`).
        slices: parts that the input channels of each group are cut into.
        rank: of each slice.
    """

    layer: str
    scheme: int
    slices: int
    rank: int


@dataclass(frozen=True)
class StoreEncoded:
    """Store a layer's weight as codes, sparse values or factors that it is decoded from.

    Args:
        layer: name of the layer, whose encoding the released model carries.
        scheme: kind of the encoding, for people to read.
    """

    layer: str
    scheme: str


Edit = KeepChannels | DropBlock | DropBranch | Factorize | StoreEncoded
Plan = tuple[Edit, ...]

_EDITS: dict[str, Any] = {
    cls.__name__: cls for cls in (KeepChannels, DropBlock, DropBranch, Factorize, StoreEncoded)
}


def plan_to_json(plan: Plan) -> list[dict[str, Any]]:
    """A plan as JSON-able data; `plan_from_json` reads it back."""
    return [{"edit": type(edit).__name__, **asdict(edit)} for edit in plan]


def plan_from_json(data: list[Mapping[str, Any]]) -> Plan:
    """The plan that `plan_to_json` wrote.

    Raises:
        UsageError: an edit's name is unknown.
    """
    edits = []
    for item in data:
        fields = dict(item)
        name = fields.pop("edit")
        if name not in _EDITS:
            raise UsageError(f"edit must be one of {sorted(_EDITS)} but got {name!r}.")
        values: dict[str, Any] = {k: tuple(v) if isinstance(v, list) else v for k, v in fields.items()}
        edits.append(_EDITS[name](**values))
    return tuple(edits)
