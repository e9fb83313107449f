"""Carries out `Factorize`: two layers in the place of one."""

from __future__ import annotations

import copy
from collections.abc import Sequence

import torch
from torch import Tensor, nn

from autocompress.errors import TrialError
from autocompress.graph.exporting import plain_attention
from autocompress.graph.proof import relative_difference
from autocompress.surgery.edits import Factorize
from autocompress.weights.factored import FACTORABLE, factorize_layer, folding_of


def factorize_layers(model: nn.Module, edits: Sequence[Factorize], probe: Tensor) -> tuple[nn.Module, float]:
    """The model with factors in place of layers, and the relative difference of its outputs on the probe.

    Raises:
        TrialError: an edit names no linear or convolution layer, or a folding that it does not have.
    """
    smaller = copy.deepcopy(model)
    for edit in edits:
        layer = dict(smaller.named_modules()).get(edit.layer)
        if not edit.layer or not isinstance(layer, FACTORABLE):
            raise TrialError(f"layer must be a linear or convolution layer but got {edit.layer!r}.")
        folding = folding_of(layer, edit.scheme, edit.slices)
        if folding.shape[1] % edit.slices or not 1 <= edit.rank <= folding.full_rank:
            raise TrialError(
                f"slices must divide {folding.shape[1]} channels and rank be in [1, {folding.full_rank}] "
                f"but got {edit.slices} and {edit.rank} for layer {edit.layer!r}."
            )
        pair = factorize_layer(layer, edit.scheme, edit.slices, edit.rank)
        smaller.set_submodule(edit.layer, pair.train(layer.training))
    with torch.no_grad(), plain_attention():
        return smaller, relative_difference(model.eval()(probe), smaller.eval()(probe))
