"""Carries out `DropBranch`: branches whose gate is zero are taken out of the model."""

from __future__ import annotations

import copy
from collections.abc import Sequence

import torch
from torch import Tensor, fx, nn

from autocompress.errors import TrialError
from autocompress.graph.branches import drop_branch, gates_in
from autocompress.graph.exporting import plain_attention
from autocompress.graph.proof import relative_difference
from autocompress.surgery.edits import DropBranch


def drop_branches(model: nn.Module, edits: Sequence[DropBranch], probe: Tensor) -> tuple[nn.Module, float]:
    """The model without those branches, and the relative difference of its outputs on the probe.

    Raises:
        TrialError: the model has no such gate.
    """
    if not isinstance(model, fx.GraphModule):
        raise TrialError("branches must be dropped from a gated model but its graph is unknown.")
    graph = copy.deepcopy(model.graph)
    for edit in edits:
        calls = gates_in(graph, model)
        # A gate inside a branch that is gone went with it.
        if edit.gate in calls:
            drop_branch(graph, calls[edit.gate])
        elif edit.gate not in gates_in(model.graph, model):
            raise TrialError(f"gate must be one of the model's but got {edit.gate!r}.")
    smaller = fx.GraphModule(model, graph, type(model).__name__)
    with torch.no_grad(), plain_attention():
        return smaller, relative_difference(model.eval()(probe), smaller.eval()(probe))
