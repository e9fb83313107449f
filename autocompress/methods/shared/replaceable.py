"""Layers that other modules may stand for, and parameters that may be decoded whenever they are read."""

from __future__ import annotations

import copy
from collections.abc import Callable

import torch
from torch import nn

from autocompress.graph import TOLERANCE
from autocompress.graph.exporting import comparable
from autocompress.graph.proof import relative_difference
from autocompress.graph.weights import Weight
from autocompress.task.inputs import Inputs, call, device_of_inputs
from autocompress.weights.decoders import Verbatim
from autocompress.weights.encoded import install_code
from autocompress.weights.factored import stand_in


def replaceable(model: nn.Module, weights: list[Weight], example: Inputs) -> list[str]:
    """Names of the weights in whose layer's place the model's own code accepts another module.

    Args:
        model: not changed.
        weights: of it.
        example: inputs, `(B, ...)`, where the model is.
    """
    names = [weight.name for weight in weights if weight.obstacle is None]
    layers = {weight.name: weight.layer for weight in weights}

    def put(trial: nn.Module, name: str) -> None:
        trial.set_submodule(layers[name], stand_in(trial.get_submodule(layers[name])))

    return _accepted(model, names, example, put)


def decodable(model: nn.Module, weights: list[Weight], example: Inputs) -> list[str]:
    """Names of the weights that the model's own code takes from whatever gives them when they are read.

    Args:
        model: not changed.
        weights: of it.
        example: inputs, `(B, ...)`, where the model is.
    """
    parameters = {weight.name: weight.parameter for weight in weights}

    def put(trial: nn.Module, name: str) -> None:
        parameter = trial.get_parameter(parameters[name])
        install_code(trial, Verbatim(parameter), parameters[name])

    return _accepted(model, list(parameters), example, put)


def _accepted(
    model: nn.Module, names: list[str], example: Inputs, put: Callable[[nn.Module, str], None]
) -> list[str]:
    """The names for which a change leaves the model as it computes.

    Its own code may read a layer's weight or ask for its class, and fail in any way; halving finds the names
    that are concerned.
    """
    if not names:
        return []
    trial = copy.deepcopy(model)
    device = device_of_inputs(example)
    generators = [] if device.index is None else [device.index]
    forked = torch.random.fork_rng(generators, device_type=device.type)
    with comparable(), forked:
        try:
            for name in names:
                put(trial, name)
            expected = call(model.eval(), example)
            # Outputs that are not finite differ from themselves, and say nothing against a change.
            greatest = max(TOLERANCE, relative_difference(expected, expected))
            same = relative_difference(expected, call(trial.eval(), example)) <= greatest
            # Last, because it moves what batch norm remembers.
            call(trial.train(), example)
        except Exception:
            same = False
    if same:
        return names
    half = len(names) // 2
    if not half:
        return []
    return _accepted(model, names[:half], example, put) + _accepted(model, names[half:], example, put)
