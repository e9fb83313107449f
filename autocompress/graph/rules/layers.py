"""Operators with weights: convolutions, linear layers, normalisations, tables."""

from __future__ import annotations

from typing import Any, TypeGuard

import numpy as np
from torch import fx

from autocompress.graph.labels import UNTRACKED, Ids, Value
from autocompress.graph.tracing import Arguments, Tracer, freeze_all, rule, shape_of


def channels_of(tracer: Tracer, value: Value, dim: int) -> Ids:
    """Unit ids along a tensor's channel dimension; freezes what varies along another one."""
    dim %= len(value.shape)
    if any(d != dim for d in value.varies()):
        tracer.freeze(value, "its units run across more than the channel dimension of a layer")
        return np.full(value.shape[dim], UNTRACKED, dtype=np.int64)
    return value.along(dim)


def place(ids: Ids, shape: tuple[int, ...], dim: int) -> Value:
    """A value of that shape whose labels run along `dim`."""
    sizes = [1] * len(shape)
    sizes[dim] = shape[dim]
    return Value(shape, ids.reshape(sizes))


def is_parameter(value: object) -> TypeGuard[Value]:
    """Whether it is a parameter, a buffer or a view of one; constants are followed element by element."""
    return isinstance(value, Value) and value.parameter is not None and not value.constant


def consume(tracer: Tracer, channels: Ids, weight_ids: Ids) -> None:
    """Tie input channels to a weight's input dimension."""
    known = channels != UNTRACKED
    tracer.units.freeze(weight_ids[~known], "its inputs are the model's inputs or cannot shrink")
    tracer.units.tie(channels[known], weight_ids[known])


def _bias(tracer: Tracer, arguments: Arguments, out: Ids) -> None:
    bias = arguments.get("bias")
    if is_parameter(bias):
        tracer.units.tie(out, tracer.axis(bias, 0, "out"))
    elif isinstance(bias, Value):
        tracer.units.tie(out, bias.along(0))


def _made_by(tracer: Tracer, node: fx.Node, weight: Value) -> None:
    if weight.elements is None:
        tracer.producers[node.name] = str(weight.parameter)


@rule("conv1d", "conv2d", "conv3d", "conv_transpose1d", "conv_transpose2d", "conv_transpose3d")
def convolution(tracer: Tracer, arguments: Arguments, node: fx.Node) -> Any:
    """Weight `(out, in/groups, *kernel)`, or `(in, out/groups, *kernel)` where transposed."""
    x, weight = arguments["input"], arguments["weight"]
    groups = int(arguments["groups"])
    transposed = "transpose" in str(node.target)
    shape = shape_of(node)
    channel_dim = len(shape) - len(weight.shape) + 1
    if not is_parameter(weight):
        operands = (x, weight, arguments.get("bias"))
        reason = "a convolution's weight is computed, not a parameter"
        return freeze_all(tracer, operands, node, reason)
    channels = channels_of(tracer, x, channel_dim)
    if groups == 1:
        weight_in, weight_out = (0, 1) if transposed else (1, 0)
        consume(tracer, channels, tracer.axis(weight, weight_in, "in"))
        out = tracer.axis(weight, weight_out, "out")
    elif transposed or weight.elements is not None:
        reason = "a grouped transposed convolution is not analysed"
        return freeze_all(tracer, (x, weight, arguments.get("bias")), node, reason)
    else:
        out = _grouped(tracer, channels, weight, groups)
    _bias(tracer, arguments, out)
    _made_by(tracer, node, weight)
    return place(out, shape, channel_dim)


def _grouped(tracer: Tracer, channels: Ids, weight: Value, groups: int) -> Ids:
    """Couple the channels of a grouped convolution so that groups stay equal in size.

    Where groups are many and narrow (depthwise ones above all) a whole group is one unit; where
    they are few and wide, channel j of every group is.
    """
    out = tracer.axis(weight, 0, "channel")
    inner = tracer.axis(weight, 1, "in")
    per_group_in = channels.reshape(groups, -1)
    per_group_out = out.reshape(groups, -1)
    if (channels == UNTRACKED).any():
        tracer.units.freeze(np.concatenate([channels, out]), "its inputs cannot shrink")
        tracer.units.freeze(inner, "its inputs cannot shrink")
    elif groups >= per_group_in.shape[1]:
        tracer.units.tie(per_group_in, per_group_in[:, :1])
        tracer.units.tie(per_group_out, per_group_in[:, :1])
        tracer.units.freeze(inner, "its channels are removed by whole convolution groups")
        assert weight.parameter is not None
        tracer.whole_groups[weight.parameter] = groups
    else:
        tracer.units.tie(per_group_in, per_group_in[:1])
        tracer.units.tie(per_group_in[0], inner)
        tracer.units.tie(per_group_out, per_group_out[:1])
    return out


@rule("linear")
def linear(tracer: Tracer, arguments: Arguments, node: fx.Node) -> Any:
    """Weight `(out, in)` on the last dimension."""
    x, weight = arguments["input"], arguments["weight"]
    shape = shape_of(node)
    if not is_parameter(weight):
        reason = "a linear layer's weight is computed, not a parameter"
        return freeze_all(tracer, (x, weight, arguments.get("bias")), node, reason)
    consume(tracer, channels_of(tracer, x, -1), tracer.axis(weight, 1, "in"))
    out = tracer.axis(weight, 0, "out")
    _bias(tracer, arguments, out)
    _made_by(tracer, node, weight)
    return place(out, shape, len(shape) - 1)


@rule("batch_norm", "instance_norm", "_native_batch_norm_legit_no_training")
def channel_norm(tracer: Tracer, arguments: Arguments, node: fx.Node) -> Any:
    """Per-channel statistics: every tensor of the layer has one entry per channel."""
    x = arguments["input"]
    channels = channels_of(tracer, x, 1)
    for name in ("weight", "bias", "running_mean", "running_var"):
        tensor = arguments.get(name)
        if is_parameter(tensor):
            tracer.units.tie(channels, tracer.axis(tensor, 0, "channel"))
    _note_normalised(tracer, arguments, node)
    return Value(x.shape, x.labels)


@rule("rms_norm")
def rms_norm(tracer: Tracer, arguments: Arguments, node: fx.Node) -> Any:
    """Statistics over the last dimensions, which must stay."""
    x = arguments["input"]
    first = len(x.shape) - len(arguments["normalized_shape"])
    if any(d >= first for d in x.varies()):
        reason = "an RMS normalisation computes its statistics over these channels"
        return freeze_all(tracer, (x, arguments.get("weight")), node, reason)
    return Value(x.shape, x.labels)


@rule("layer_norm")
def layer_norm(tracer: Tracer, arguments: Arguments, node: fx.Node) -> Any:
    """Statistics over the last dimensions: after a removal, over the channels that are kept."""
    x, weight = arguments["input"], arguments.get("weight")
    first = len(x.shape) - len(arguments["normalized_shape"])
    varying = [d for d in x.varies() if d >= first]
    if not varying:
        return Value(x.shape, x.labels)
    if len(x.varies()) > 1 or not is_parameter(weight) or weight.elements is not None:
        reason = "a layer normalisation computes its statistics over these channels"
        return freeze_all(tracer, (x, weight, arguments.get("bias")), node, reason)
    for tensor in (weight, arguments.get("bias")):
        if is_parameter(tensor):
            ids = tracer.axis(tensor, varying[0] - first, "channel")
            tracer.units.tie(x.along(varying[0]), ids)
    tracer.statistics.add(str(weight.parameter))
    return Value(x.shape, x.labels)


@rule("group_norm")
def group_norm(tracer: Tracer, arguments: Arguments, node: fx.Node) -> Any:
    """Statistics over groups of channels: a whole group is one unit."""
    x, weight, groups = arguments["input"], arguments.get("weight"), int(arguments["num_groups"])
    channels = channels_of(tracer, x, 1)
    for tensor in (weight, arguments.get("bias")):
        if is_parameter(tensor):
            tracer.units.tie(channels, tracer.axis(tensor, 0, "channel"))
    if groups == 1:
        if not is_parameter(weight):
            reason = "a group normalisation computes its statistics over these channels"
            return freeze_all(tracer, (x,), node, reason)
        tracer.statistics.add(str(weight.parameter))
        return Value(x.shape, x.labels)
    per_group = channels.reshape(groups, -1)
    tracer.units.tie(per_group, per_group[:, :1])
    if is_parameter(weight):
        tracer.whole_groups[str(weight.parameter)] = groups
    _note_normalised(tracer, arguments, node)
    return Value(x.shape, x.labels)


def _note_normalised(tracer: Tracer, arguments: Arguments, node: fx.Node) -> None:
    """A producer that only this normalisation reads need not be gated: the normalisation is."""
    source = node.args[0]
    if (
        is_parameter(arguments.get("weight"))
        and isinstance(source, fx.Node)
        and len(source.users) == 1
        and source.name in tracer.producers
    ):
        tracer.normalised.add(tracer.producers[source.name])


@rule("embedding")
def embedding(tracer: Tracer, arguments: Arguments, node: fx.Node) -> Any:
    """Weight `(entries, features)`: features are its outputs, entries stay."""
    weight = arguments["weight"]
    shape = shape_of(node)
    if not is_parameter(weight):
        return Value.untracked(shape)
    tracer.units.freeze(tracer.axis(weight, 0, "in"), "entries of a table are not channels")
    out = tracer.axis(weight, 1, "out")
    return place(out, shape, len(shape) - 1)
