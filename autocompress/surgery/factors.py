"""`Factorize`: two layers stand for one whose weight has a low rank."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import nn

from autocompress.errors import CheckpointError
from autocompress.surgery.edits import Edit
from autocompress.task import Inputs
from autocompress.weights.factored import factor_pair, folding_of, layer_kind, layer_weight


@dataclass(frozen=True)
class Factorize(Edit):
    """Put two layers in the place of one.

    Args:
        layer: name of a linear, convolution or embedding layer.
        scheme: which kernel dimensions are rows of the folded weight (`weights/folding.py`).
        slices: parts that the input channels of each group are cut into.
        rank: of each slice.
    """

    kind: ClassVar[str] = "factorize"
    layer: str
    scheme: int
    slices: int
    rank: int

    def apply(self, model: nn.Module, example: Inputs) -> nn.Module:
        """Replace the layer, in place, by two whose weights are zero until they are loaded.

        Raises:
            CheckpointError: the layer is of none of these, or slices or rank do not fit it.
        """
        layer = dict(model.named_modules()).get(self.layer)
        if not self.layer or layer is None or layer_kind(layer) is None:
            raise CheckpointError(
                f"layer must be a linear, convolution or embedding layer but got {self.layer!r}."
            )
        folding = folding_of(layer, self.scheme, self.slices)
        if folding.shape[1] % self.slices or not 1 <= self.rank <= folding.full_rank:
            raise CheckpointError(
                f"slices must divide {folding.shape[1]} channels and rank be in [1, {folding.full_rank}] "
                f"but got {self.slices} and {self.rank} for layer {self.layer!r}."
            )
        weight = layer_weight(layer)
        parts = folding.groups * folding.slices
        left = torch.zeros(parts, folding.rows, self.rank).to(weight)
        right = torch.zeros(parts, self.rank, folding.columns).to(weight)
        model.set_submodule(self.layer, factor_pair(layer, folding, left, right).train(layer.training))
        return model
