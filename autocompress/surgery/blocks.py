"""Carries out `DropBlock`: layers that nothing uses any more are taken out of the model."""

from __future__ import annotations

import copy
from collections.abc import Sequence

import torch
from torch import Tensor, fx, nn

from autocompress.errors import TrialError
from autocompress.graph.bridging import used_layers
from autocompress.graph.exporting import plain_attention
from autocompress.graph.proof import relative_difference
from autocompress.surgery.edits import DropBlock


def drop_blocks(model: nn.Module, edits: Sequence[DropBlock], probe: Tensor) -> tuple[nn.Module, float]:
    """The model without those layers, and the relative difference of its outputs on the probe.

    Raises:
        TrialError: a layer is still used.
    """
    if not isinstance(model, fx.GraphModule):
        raise TrialError("blocks must be dropped from a bridged model but its graph is unknown.")
    # A graph module keeps what its graph names and nothing else.
    smaller = fx.GraphModule(model, copy.deepcopy(model.graph), type(model).__name__)
    for edit in edits:
        still = used_layers(model.graph) & set(edit.layers)
        if still:
            raise TrialError(f"layers must not be used any more to be dropped but {sorted(still)} are.")
    with torch.no_grad(), plain_attention():
        return smaller, relative_difference(model.eval()(probe), smaller.eval()(probe))
