"""Recurrent layers and cells: a hidden unit is a unit of all of their layers and directions."""

from __future__ import annotations

from typing import Any

import numpy as np
from torch import fx

from autocompress.graph.corrections import operator_name
from autocompress.graph.labels import Ids, Value
from autocompress.graph.rules.layers import channels_of, consume, is_parameter, place
from autocompress.graph.tracing import Arguments, Tracer, freeze_all, like, rule, sizes

_LAYERS = ("lstm", "gru", "rnn_tanh", "rnn_relu")
_CELLS = ("lstm_cell", "gru_cell", "rnn_tanh_cell", "rnn_relu_cell")
# Operators that make zeros, and those that leave them as they are.
_ZEROS = ("zeros", "new_zeros")
_PASSING = ("to", "_to_copy", "clone", "contiguous", "detach", "alias", "type_as", "lift_fresh_copy")


@rule(*_LAYERS)
def recurrent(tracer: Tracer, arguments: Arguments, node: fx.Node) -> Any:
    """Weights `(gates · hidden, in)` and `(gates · hidden, hidden)` of each layer and direction, and biases.

    Hidden unit j has row j of each gate and column j of the recurrent weights, in all layers and directions,
    for these have one size; column j, or one for each direction, of the next layer's weights; and its part of
    the initial and the final states.
    """
    x, states = arguments["input"], arguments["hx"]
    states = states if isinstance(states, list) else [states]
    weights: list[Value] = arguments.get("params") or []
    directions = 2 if arguments["bidirectional"] else 1
    cells = int(arguments["num_layers"]) * directions
    each = 4 if arguments["has_biases"] else 2
    if not all(is_parameter(weight) and weight.elements is None for weight in weights):
        return freeze_all(tracer, [x, *states, *weights], node, "a recurrent layer's weights are computed")
    if "batch_sizes" in arguments or len(weights) != cells * each:
        reason = "a recurrent layer with projections (proj_size) or packed sequences is not analysed"
        return freeze_all(tracer, [x, *states, *weights], node, reason)
    units = tracer.axis(weights[1], 1, "in")
    _initial_states(tracer, states, node.args[1], units)
    for cell in range(cells):
        own = weights[cell * each : (cell + 1) * each]
        _cell(tracer, own, units)
        inputs = tracer.axis(own[0], 1, "in")
        if cell < directions:
            consume(tracer, channels_of(tracer, x, -1), inputs)
        else:
            tracer.units.tie(np.tile(units, directions), inputs)
    shapes = [sizes(tensor) for tensor in node.meta["val"]]
    made = [np.tile(units, directions), *[units] * (len(shapes) - 1)]
    return [place(ids, shape, len(shape) - 1) for ids, shape in zip(made, shapes, strict=True)]


@rule(*_CELLS)
def recurrent_cell(tracer: Tracer, arguments: Arguments, node: fx.Node) -> Any:
    """One step of a layer; hidden units run through the states that it takes and gives."""
    states = arguments["hx"]
    states = states if isinstance(states, list) else [states]
    weights = [arguments[name] for name in ("w_ih", "w_hh", "b_ih", "b_hh")]
    weights = [weight for weight in weights if weight is not None]
    if not all(is_parameter(weight) and weight.elements is None for weight in weights):
        values = [arguments["input"], *states, *weights]
        return freeze_all(tracer, values, node, "a recurrent cell's weights are computed")
    units = tracer.axis(weights[1], 1, "in")
    _initial_states(tracer, states, node.args[1], units)
    _cell(tracer, weights, units)
    consume(tracer, channels_of(tracer, arguments["input"], -1), tracer.axis(weights[0], 1, "in"))
    results = like(node)
    if isinstance(results, list):
        return [place(units, value.shape, len(value.shape) - 1) for value in results]
    return place(units, results.shape, len(results.shape) - 1)


def _cell(tracer: Tracer, weights: list[Value], units: Ids) -> None:
    """Tie what makes the units of one layer and direction: rows of weights and biases, for each gate."""
    tracer.units.tie(units, tracer.axis(weights[1], 1, "in"))
    for weight in weights:
        tracer.units.tie(tracer.axis(weight, 0, "out").reshape(-1, len(units)), units)


def _initial_states(tracer: Tracer, states: list[Value], nodes: Any, units: Ids) -> None:
    """Tie the states that a layer begins with to its units, or freeze these.

    A unit that is masked by its rows stays at zero where it begins with zero.
    """
    for value, node in zip(states, nodes if isinstance(nodes, (list, tuple)) else [nodes], strict=True):
        if is_parameter(value):
            tracer.units.tie(tracer.axis(value, len(value.shape) - 1, "out"), units)
        elif value.tracked:
            tracer.units.tie(channels_of(tracer, value, -1), units)
        elif not _follow_zeros(tracer, node, units):
            tracer.units.freeze(units, "its initial state is an input of the model, or no zeros")


def _follow_zeros(tracer: Tracer, node: fx.Node, units: Ids) -> bool:
    """Let the last dimension of zeros that the code makes be a layer's units; whether they are zeros that
    serve as states alone."""
    chain = [node]
    while operator_name(chain[-1]) in _PASSING and isinstance(chain[-1].args[0], fx.Node):
        chain.append(chain[-1].args[0])
    users = {user for link in chain for user in link.users} - {*chain}
    if operator_name(chain[-1]) not in _ZEROS or not all(map(_takes_states, users)):
        return False
    for link in chain:
        value = tracer.values[link.name]
        tracer.values[link.name] = place(units, value.shape, len(value.shape) - 1)
    return True


def _takes_states(node: fx.Node) -> bool:
    return operator_name(node) in (*_LAYERS, *_CELLS)
