"""Layers that other modules may stand for."""

from __future__ import annotations

import copy

import torch
from torch import nn

from autocompress.graph import TOLERANCE
from autocompress.graph.exporting import plain_attention
from autocompress.graph.proof import relative_difference
from autocompress.task.inputs import Inputs, call, device_of_inputs
from autocompress.weights.factored import stand_in


def replaceable(model: nn.Module, names: list[str], example: Inputs) -> list[str]:
    """Layers in whose place the model's own code accepts another module.

    It may read a layer's weight or ask for its class, and fail in any way; halving finds the layers that
    are concerned.
    """
    trial = copy.deepcopy(model)
    for name in names:
        trial.set_submodule(name, stand_in(trial.get_submodule(name)))
    device = device_of_inputs(example)
    generators = [] if device.index is None else [device.index]
    forked = torch.random.fork_rng(generators, device_type=device.type)
    with torch.no_grad(), plain_attention(), forked:
        try:
            same = relative_difference(call(model.eval(), example), call(trial.eval(), example)) <= TOLERANCE
            # Last, because it moves what batch norm remembers.
            call(trial.train(), example)
        except Exception:
            same = False
    if same:
        return names
    half = len(names) // 2
    if not half:
        return []
    return replaceable(model, names[:half], example) + replaceable(model, names[half:], example)
