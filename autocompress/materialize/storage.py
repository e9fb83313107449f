"""Carries out `StoreEncoded`: weights are stored as their encodings and decoded when they are read."""

from __future__ import annotations

import copy
from collections.abc import Sequence

import torch
from torch import Tensor, nn

from autocompress.errors import TrialError
from autocompress.graph.exporting import plain_attention
from autocompress.graph.proof import relative_difference
from autocompress.plan import StoreEncoded
from autocompress.weights.decoders import encode_weight


def store_encoded(model: nn.Module, edits: Sequence[StoreEncoded], probe: Tensor) -> tuple[nn.Module, float]:
    """The model with encoded weights, and the relative difference of its outputs on the probe.

    Args:
        model: carries the encodings by layer as `encodings`, as its compressor released it.
        edits: which of them are stored.
        probe: inputs, `(B, ...)`.

    Raises:
        TrialError: the model carries no encoding of a layer.
    """
    encodings = getattr(model, "encodings", {})
    smaller = copy.deepcopy(model)
    if hasattr(smaller, "encodings"):
        del smaller.encodings
    for edit in edits:
        if edit.layer not in encodings:
            raise TrialError(f"layer must be one whose encoding the model carries but got {edit.layer!r}.")
        layer = smaller.get_submodule(edit.layer)
        encoding = encodings[edit.layer]
        encode_weight(layer, encoding)
    with torch.no_grad(), plain_attention():
        return smaller, relative_difference(model.eval()(probe), smaller.eval()(probe))
