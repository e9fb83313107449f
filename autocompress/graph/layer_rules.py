"""How units travel through operators with weights: convolutions, linear layers, normalisations."""

from __future__ import annotations

from typing import TypeGuard

import numpy as np
from torch import fx

from autocompress.graph.labels import UNTRACKED, Ids, Value
from autocompress.graph.tracing import Arguments, Tracer, like, rule, shape_of


def _channels(tracer: Tracer, value: Value, dim: int) -> Ids:
    """Unit ids along a tensor's channel dimension; freezes what varies along another one."""
    dim %= len(value.shape)
    if any(d != dim for d in value.varies()):
        tracer.freeze(value, "its units run across more than the channel dimension of a layer")
        return np.full(value.shape[dim], UNTRACKED, dtype=np.int64)
    return value.along(dim)


def _place(ids: Ids, shape: tuple[int, ...], dim: int) -> Value:
    """A value of that shape whose labels run along `dim`."""
    sizes = [1] * len(shape)
    sizes[dim] = shape[dim]
    return Value(shape, ids.reshape(sizes))


def _is_parameter(value: object) -> TypeGuard[Value]:
    return isinstance(value, Value) and value.parameter is not None


def _consume(tracer: Tracer, channels: Ids, weight_ids: Ids) -> None:
    """Tie input channels to a weight's input dimension."""
    known = channels != UNTRACKED
    tracer.units.freeze(weight_ids[~known], "its inputs are the model's inputs or cannot shrink")
    tracer.units.tie(channels[known], weight_ids[known])


def _bias(tracer: Tracer, arguments: Arguments, out: Ids) -> None:
    bias = arguments.get("bias")
    if _is_parameter(bias):
        tracer.units.tie(out, tracer.axis(bias, 0, "out"))


@rule("conv1d", "conv2d", "conv3d", "conv_transpose1d", "conv_transpose2d", "conv_transpose3d")
def convolution(tracer: Tracer, arguments: Arguments, node: fx.Node) -> Value:
    """Weight `(out, in/groups, *kernel)`, or `(in, out/groups, *kernel)` where transposed."""
    x, weight = arguments["input"], arguments["weight"]
    groups = int(arguments["groups"])
    transposed = "transpose" in str(node.target)
    shape = shape_of(node)
    channel_dim = len(shape) - len(weight.shape) + 1
    if not _is_parameter(weight):
        operands = [v for v in (x, weight, arguments.get("bias")) if isinstance(v, Value)]
        for value in operands:
            tracer.freeze(value, "a convolution's weight is computed, not a parameter")
        return Value.untracked(shape)
    channels = _channels(tracer, x, channel_dim)
    if groups == 1:
        weight_in, weight_out = (0, 1) if transposed else (1, 0)
        _consume(tracer, channels, tracer.axis(weight, weight_in, "in"))
        out = tracer.axis(weight, weight_out, "out")
    elif transposed:
        tracer.freeze(x, "a grouped transposed convolution is not analysed")
        tracer.freeze(weight, "a grouped transposed convolution is not analysed")
        return Value.untracked(shape)
    else:
        out = _grouped(tracer, channels, weight, groups)
    _bias(tracer, arguments, out)
    tracer.producers[node.name] = str(weight.parameter)
    return _place(out, shape, channel_dim)


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
def linear(tracer: Tracer, arguments: Arguments, node: fx.Node) -> Value:
    """Weight `(out, in)` on the last dimension."""
    x, weight = arguments["input"], arguments["weight"]
    shape = shape_of(node)
    if not _is_parameter(weight):
        return _computed_weight(tracer, [x, weight, arguments.get("bias")], shape)
    _consume(tracer, _channels(tracer, x, -1), tracer.axis(weight, 1, "in"))
    out = tracer.axis(weight, 0, "out")
    _bias(tracer, arguments, out)
    tracer.producers[node.name] = str(weight.parameter)
    return _place(out, shape, len(shape) - 1)


@rule("matmul", "mm")
def matmul(tracer: Tracer, arguments: Arguments, node: fx.Node) -> Value:
    """`x @ weight` with a parameter `(in, out)`; products of two activations are frozen."""
    x, weight = arguments["self"], arguments["other" if "other" in arguments else "mat2"]
    shape = shape_of(node)
    if not _is_parameter(weight) or len(weight.shape) != 2 or _is_parameter(x):
        return _computed_weight(tracer, [x, weight], shape)
    _consume(tracer, _channels(tracer, x, -1), tracer.axis(weight, 0, "in"))
    out = tracer.axis(weight, 1, "out")
    tracer.producers[node.name] = str(weight.parameter)
    return _place(out, shape, len(shape) - 1)


def _computed_weight(tracer: Tracer, operands: list[object], shape: tuple[int, ...]) -> Value:
    for value in operands:
        if isinstance(value, Value):
            tracer.freeze(value, "it enters a product of two computed tensors")
    return Value.untracked(shape)


@rule("batch_norm", "instance_norm", "_native_batch_norm_legit_no_training")
def channel_norm(tracer: Tracer, arguments: Arguments, node: fx.Node) -> Value:
    """Per-channel statistics: every tensor of the layer has one entry per channel."""
    x = arguments["input"]
    channels = _channels(tracer, x, 1)
    for name in ("weight", "bias", "running_mean", "running_var"):
        tensor = arguments.get(name)
        if _is_parameter(tensor):
            tracer.units.tie(channels, tracer.axis(tensor, 0, "channel"))
    source = node.args[0]
    gateable = _is_parameter(arguments.get("weight"))
    if (
        gateable
        and isinstance(source, fx.Node)
        and len(source.users) == 1
        and source.name in tracer.producers
    ):
        tracer.normalised.add(tracer.producers[source.name])
    return Value(x.shape, x.labels)


@rule("layer_norm", "rms_norm")
def layer_norm(tracer: Tracer, arguments: Arguments, node: fx.Node) -> Value:
    """Statistics over the last dimensions, which removing a channel would change."""
    x = arguments["input"]
    normalised = range(len(x.shape) - len(arguments["normalized_shape"]), len(x.shape))
    reason = "a layer normalisation computes its statistics over these channels"
    for name in ("weight", "bias"):
        if isinstance(arguments.get(name), Value):
            tracer.freeze(arguments[name], reason)
    if any(d in normalised for d in x.varies()):
        tracer.freeze(x, reason)
        return Value.untracked(x.shape)
    return Value(x.shape, x.labels)


@rule("group_norm")
def group_norm(tracer: Tracer, arguments: Arguments, node: fx.Node) -> Value:
    """Statistics over groups of channels, which removing a channel would change."""
    for value in (arguments["input"], arguments.get("weight"), arguments.get("bias")):
        if isinstance(value, Value):
            tracer.freeze(value, "a group normalisation computes its statistics over these channels")
    return Value.untracked(shape_of(node))


@rule("embedding")
def embedding(tracer: Tracer, arguments: Arguments, node: fx.Node) -> Value:
    """Weight `(entries, features)`: features are its outputs, entries stay."""
    weight = arguments["weight"]
    shape = shape_of(node)
    if not _is_parameter(weight):
        return Value.untracked(shape)
    tracer.units.freeze(tracer.axis(weight, 0, "in"), "entries of a table are not channels")
    out = tracer.axis(weight, 1, "out")
    return _place(out, shape, len(shape) - 1)


@rule("scaled_dot_product_attention")
def attention(tracer: Tracer, arguments: Arguments, node: fx.Node) -> Value:
    """Head dimensions are left alone."""
    for name in ("query", "key", "value"):
        tracer.freeze(arguments[name], "attention heads are not analysed")
    result: Value = like(node)
    return result
