"""Sums of products over named dimensions, of two computed tensors or of one and a parameter."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from math import prod

import numpy as np

from autocompress.graph.labels import UNTRACKED, Ids, Value
from autocompress.graph.rules.layers import consume
from autocompress.graph.tracing import Role, Tracer


@dataclass(frozen=True)
class Factor:
    """A tensor of a product.

    Args:
        value: the tensor.
        names: of its dimensions, one each.
    """

    value: Value
    names: Sequence[str]

    def size(self, name: str) -> int:
        """Of the dimension of that name; 1 where there is none."""
        return self.value.shape[self.names.index(name)] if name in self.names else 1

    def varies(self) -> list[str]:
        """Names of the dimensions along which the units differ."""
        return [self.names[d] for d in self.value.varies()]

    def labels(self, order: Sequence[str]) -> Ids:
        """The units, with a dimension for each name of `order`, which has all of the factor's."""
        return _ordered(self.value.labels, self.names, order)


def contract(
    tracer: Tracer, factors: Sequence[Factor], result: Sequence[str], shape: tuple[int, ...]
) -> Value:
    """A product of computed tensors, summed over the names that `result` lacks.

    What is summed over goes whole where units also run along other dimensions (a head's features go
    with the head), and unit by unit, the same in both factors, where they do not.
    """
    order = [*result, *sorted({name for factor in factors for name in factor.names} - set(result))]
    sizes = [[factor.size(name) for name in order] for factor in factors]
    labels = [factor.labels(order) for factor in factors]
    over = range(len(result), len(order))
    varying = [d for d in range(len(order)) if any(ids.shape[d] > 1 for ids in labels)]
    kept = [d for d in varying if d not in over]
    if kept:
        labels = [tracer.units.tie_along(ids, over) for ids in labels]
    # A factor that has none of the dimensions on which units depend is broadcast, not coupled.
    along = kept or varying
    coupled = [ids for ids, own in zip(labels, sizes, strict=True) if any(own[d] > 1 for d in along)]
    for other in coupled[1:]:
        tracer.units.tie(coupled[0], other)
    if not kept:
        return Value.untracked(shape)
    widest = max(coupled, key=lambda ids: ids.size)
    return Value(shape, widest.reshape(widest.shape[: len(result)]))


def contract_parameter(
    tracer: Tracer, computed: Factor, parameter: Factor, result: Sequence[str], shape: tuple[int, ...]
) -> Value:
    """A product of a computed tensor and a parameter, of any number of dimensions each.

    The parameter reads the units along the dimensions that are summed over, and makes those along its own. In
    a stack of matrices, one for each position of a dimension that both have, whole matrices are units where
    they are many and small, and else position j of every matrix is one, as in grouped convolutions.
    """
    order = [*result, *sorted({*computed.names, *parameter.names} - set(result))]
    shared = [n for n in parameter.names if parameter.size(n) > 1 and computed.size(n) > 1]
    stack, summed = [n for n in shared if n in result], [n for n in shared if n not in result]
    made = [n for n in parameter.names if parameter.size(n) > 1 and n not in shared]
    varying = computed.varies()
    stacked = [n for n in varying if n in stack]
    labels = computed.labels(order)
    if set(varying) - set(shared) or len(stacked) > 1:
        tracer.freeze(computed.value, "its units run across more than the channel dimension of a layer")
        labels, stacked = np.full((1,) * len(order), UNTRACKED, dtype=np.int64), []
    if stacked:
        inner = prod(computed.size(n) for n in varying if n in summed)
        if computed.size(stacked[0]) >= inner:
            return _whole_matrices(tracer, (labels, order), parameter, stacked[0], (result, shape))
        labels = tracer.units.tie_along(labels, [order.index(stacked[0])])
    _freeze(tracer, parameter, stack, "its inputs are the model's inputs or cannot shrink")
    _freeze(tracer, parameter, [n for n in made if n not in result], "a sum runs over these channels")
    read = _ids(tracer, parameter, summed, "in", order)
    consume(tracer, *(np.ascontiguousarray(ids).ravel() for ids in np.broadcast_arrays(labels, read)))
    out = _ids(tracer, parameter, [n for n in made if n in result], "out", order)
    return Value(shape, out.reshape(out.shape[: len(result)]))


def _whole_matrices(
    tracer: Tracer,
    computed: tuple[Ids, list[str]],
    parameter: Factor,
    stacked: str,
    results: tuple[Sequence[str], tuple[int, ...]],
) -> Value:
    """Each matrix of a stack is a unit, with all that it reads and makes."""
    (labels, order), (result, shape) = computed, results
    dims = [d for d, name in enumerate(order) if name != stacked]
    units = tracer.units.tie_along(labels, dims)
    tracer.units.tie(units, _ids(tracer, parameter, [stacked], "channel", order))
    others = [name for name in parameter.names if name != stacked]
    _freeze(tracer, parameter, others, "matrices of a stack go whole")
    return Value(shape, units.reshape(units.shape[: len(result)]))


def _freeze(tracer: Tracer, parameter: Factor, names: Sequence[str], reason: str) -> None:
    for name in names:
        tracer.units.freeze(_ids(tracer, parameter, [name], "out", parameter.names), reason)


def _ids(tracer: Tracer, parameter: Factor, names: Sequence[str], role: Role, order: Sequence[str]) -> Ids:
    """Units along some dimensions of a parameter, with a dimension for each name of `order`.

    Where they are several, that one dimension of the parameter is seen as, units run along it; else along one
    of them, which is left open.
    """
    value = parameter.value
    dims = [parameter.names.index(name) for name in names if parameter.size(name) > 1]
    sizes = [1] * len(value.shape)
    if not dims:
        return np.full((1,) * len(order), UNTRACKED, dtype=np.int64)
    if len(dims) == 1:
        sizes[dims[0]] = value.shape[dims[0]]
        ids = tracer.axis(value, dims[0], role).reshape(sizes)
    else:
        ids = _several(tracer, value, sorted(dims), role)
    return _ordered(ids, parameter.names, order)


def _several(tracer: Tracer, value: Value, dims: list[int], role: Role) -> Ids:
    try:
        joint = None if value.elements is None else tracer.axis(value, dims, role)
    except ValueError:
        joint = None  # each runs along a dimension of its own
    if joint is not None:
        tracer.units.grids.append(joint)
        return joint
    sizes = [size if d in dims else 1 for d, size in enumerate(value.shape)]
    return tracer.units.product([tracer.axis(value, d, role) for d in dims]).reshape(sizes)


def _ordered(labels: Ids, names: Sequence[str], order: Sequence[str]) -> Ids:
    """Labels with a dimension for each name of `order`; along those that it lacks they do not differ."""
    dims = [names.index(name) for name in order if name in names]
    rest = [d for d in range(labels.ndim) if d not in dims]
    moved = labels.transpose([*dims, *rest])
    sizes = iter(moved.shape)
    return moved.reshape([next(sizes) if name in names else 1 for name in order])
