"""Carries out `StoreEncoded`: weights are stored as their encodings and decoded when they are read."""

from __future__ import annotations

import copy
from collections.abc import Sequence

import torch
from torch import Tensor, nn

from autocompress.errors import TrialError
from autocompress.graph.exporting import plain_attention
from autocompress.graph.proof import relative_difference
from autocompress.surgery.edits import StoreEncoded
from autocompress.weights.decoders import carried, encode_weight


def store_encoded(model: nn.Module, edits: Sequence[StoreEncoded], probe: Tensor) -> tuple[nn.Module, float]:
    """The model with encoded weights, and the relative difference of its outputs on the probe.

    Args:
        model: whose layers carry their encodings, as its compressor released it.
        edits: which of them are stored.
        probe: inputs, `(B, ...)`.

    Raises:
        TrialError: a layer carries no encoding.
    """
    smaller = copy.deepcopy(model)
    layers = dict(smaller.named_modules())
    for edit in edits:
        encoding = carried(layers[edit.layer]) if edit.layer in layers else None
        if encoding is None:
            raise TrialError(f"layer must be one that carries its encoding but got {edit.layer!r}.")
        encode_weight(layers[edit.layer], encoding)
    with torch.no_grad(), plain_attention():
        return smaller, relative_difference(model.eval()(probe), smaller.eval()(probe))
