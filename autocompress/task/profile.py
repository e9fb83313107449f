"""What a search space sees of a model: sizes and costs, no tensors."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import Any


@dataclass(frozen=True)
class GroupProfile:
    """One coupled channel group.

    Args:
        name: of the group.
        width: its units.
        params: of the layers that it runs through, as far as it does.
        macs: of them.
        losses: what the model is predicted to lose, in the task's loss on training rows, when it keeps
            `width_at` 0, 1, … of the group's units; the last is 0. Empty where that was not probed.
        least: units that must stay.
    """

    name: str
    width: int
    params: int
    macs: int
    losses: tuple[float, ...] = ()
    least: int = 1

    def width_at(self, level: int) -> int:
        """The units that are kept where `losses[level]` is lost: equal shares of the width, rounded up."""
        return -(-self.width * (level + 1) // len(self.losses))


@dataclass(frozen=True)
class CostTerm:
    """A part of a model's cost that shrinks with the shares which some groups keep, as their product.

    Args:
        groups: positions in the profile's list: of none, of one, or of two (a weight between both; twice the
            same where one group makes and reads it), in order.
        params: of the whole model.
        macs: of one input through the whole model.
    """

    groups: tuple[int, ...]
    params: float
    macs: float


@dataclass(frozen=True)
class CutProfile:
    """A cut point: a tensor that every path through the model passes.

    Args:
        name: the module that makes it.
        shape: without the batch.
        params: of the layers up to here.
        macs: of one input, up to here.
        partners: later cut points that a translator can lead to, as positions in the list.
    """

    name: str
    shape: tuple[int, ...]
    params: int
    macs: int
    partners: tuple[int, ...]


@dataclass(frozen=True)
class LayerProfile:
    """The weight of a layer, or another parameter of more than one dimension.

    Args:
        name: of the layer, or of the parameter where that is not called `weight` ("lstm.weight_ih_l0").
        kind: class of the module that it is of.
        params: its numbers.
        macs: of one input.
        factorable: whether two layers may stand for the layer.
        product: whether it may be stored as a product of two factors, which saves numbers alone.
        least: share of its cost that two factors must have at least.
        rank_one: share of its cost that two factors of rank one have.
    """

    name: str
    kind: str
    params: int
    macs: int
    factorable: bool
    product: bool = True
    least: float = 0.0
    rank_one: float = 0.0


@dataclass(frozen=True)
class ModelProfile:
    """What a search space may know of a model: sizes and costs, no tensors.

    Args:
        params: of the whole model.
        macs: of one input through the whole model.
        groups: what channel removal may touch, from input to output.
        cut_points: single tensors that all paths pass through, from input to output.
        layers: weights of layers and other parameters of more than one dimension that may be changed, from
            input to output.
        outputs: shape of what the model makes of one input; empty where that is not one tensor.
        mixing_blocks: blocks that mix a path of convolutions with one of attention.
        cost_terms: what `params` and `macs` are the sums of, by the groups that they shrink with; empty in a
            profile that was stored before there were any.
        new_head: whether a new head may stand for what follows the last cut point.
        staying_params: of weights that stay as they are, which are none of `layers`, and of the least ranks
            of others.
        staying_macs: of them.
        aims_at: the metric that trials are to bring down, where a `move` is asked for.
    """

    params: int
    macs: int
    groups: tuple[GroupProfile, ...]
    cut_points: tuple[CutProfile, ...] = ()
    layers: tuple[LayerProfile, ...] = ()
    outputs: tuple[int, ...] = ()
    mixing_blocks: int = 0
    cost_terms: tuple[CostTerm, ...] = ()
    new_head: bool = True
    staying_params: int = 0
    staying_macs: int = 0
    aims_at: str = "macs"

    def to_json(self) -> dict[str, Any]:
        """Turn the profile into JSON-able data, which `from_json` reads back."""
        return asdict(self)

    @staticmethod
    def from_json(data: Mapping[str, Any]) -> ModelProfile:
        """Read the profile that `to_json` wrote."""
        return ModelProfile(
            params=data["params"],
            macs=data["macs"],
            groups=tuple(
                GroupProfile(**{**group, "losses": tuple(group.get("losses", ()))})
                for group in data["groups"]
            ),
            cut_points=tuple(
                CutProfile(**{**cut, "shape": tuple(cut["shape"]), "partners": tuple(cut["partners"])})
                for cut in data["cut_points"]
            ),
            layers=tuple(LayerProfile(**layer) for layer in data["layers"]),
            outputs=tuple(data["outputs"]),
            mixing_blocks=data["mixing_blocks"],
            cost_terms=tuple(
                CostTerm(tuple(term["groups"]), term["params"], term["macs"])
                for term in data.get("cost_terms", ())
            ),
            new_head=data.get("new_head", True),
            staying_params=data.get("staying_params", 0),
            staying_macs=data.get("staying_macs", 0),
        )
