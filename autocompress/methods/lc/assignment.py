"""Which layers are compressed to what, and which of them together."""

from __future__ import annotations

import fnmatch
import math
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from autocompress.errors import SettingsError, TrialError
from autocompress.graph.weights import Weight
from autocompress.methods.lc.scheme import Scheme, View
from autocompress.methods.lc.schemes import scheme_from
from autocompress.task import Limits

_PART = re.compile(r"(\d+)/([1-9]\d*)")


@dataclass(frozen=True)
class Assignment:
    """Layers and their scheme.

    Args:
        layers: names of layers or of parameters, patterns such as "layer1.*", classes such as "Conv2d", or
            parts such as "1/3", the first third of the layers.
        scheme: what their weights become.
        joint: one Θ for all of them; otherwise one for each.
    """

    layers: tuple[str, ...]
    scheme: Scheme
    joint: bool = False


Schemes = Mapping[str | tuple[str, ...], Scheme] | Sequence[Assignment | Mapping[str, Any]]


def assignments(schemes: Schemes) -> tuple[Assignment, ...]:
    """Assignments from `{"fc1": scheme, ("fc2", "fc3"): scheme}`, where a tuple means jointly.

    Args:
        schemes: such a mapping, or assignments, or what `dataclasses.asdict` made of them.

    Raises:
        SettingsError: there is none, or a scheme is not usable.
    """
    if isinstance(schemes, Scheme) or not isinstance(schemes, (Mapping, Sequence)):
        raise SettingsError(
            f'schemes must map layers to schemes, as {{"*": Codebook(k=4)}} does, but got {schemes!r}.'
        )
    if not schemes:
        raise SettingsError("schemes must name at least one layer but is empty.")
    if isinstance(schemes, Mapping):
        return tuple(
            Assignment(
                (key,) if isinstance(key, str) else tuple(key), _scheme(key, scheme), not isinstance(key, str)
            )
            for key, scheme in schemes.items()
        )
    return tuple(
        entry
        if isinstance(entry, Assignment)
        else Assignment(tuple(entry["layers"]), scheme_from(entry["scheme"]), bool(entry["joint"]))
        for entry in schemes
    )


def _scheme(key: str | tuple[str, ...], scheme: object) -> Scheme:
    if not isinstance(scheme, Scheme):
        raise SettingsError(
            f"schemes must map layers to schemes such as Codebook(k=4) but {key!r} has {scheme!r}."
        )
    return scheme


def resolve(
    schemes: Sequence[Assignment], layers: Sequence[Weight], limits: Limits
) -> list[tuple[tuple[Weight, ...], Scheme]]:
    """The layers of each compression; a layer belongs to the first assignment that names it.

    Args:
        schemes: that name layers.
        layers: that may be compressed.
        limits: that leave others out.

    Raises:
        TrialError: an assignment names no layer that is still free, or none names any.
    """
    free = {layer.name: layer for layer in layers}
    keys = {layer.name: _keys(layer, i, len(layers)) for i, layer in enumerate(layers)}
    compressions: list[tuple[tuple[Weight, ...], Scheme]] = []
    for assignment in schemes:
        named = [
            layer
            for layer in free.values()
            if any(_matches(keys[layer.name], name) for name in assignment.layers)
        ]
        if not named and not all(_PART.fullmatch(name) for name in assignment.layers):
            reasons = {name: limits.why_tensor(name) or limits.why_layer(name) for name in assignment.layers}
            staying = [f"{name!r}: {reason}" for name, reason in reasons.items() if reason is not None]
            raise TrialError(
                f"schemes must name layers among {', '.join(layer.name for layer in layers)} "
                f"but got {', '.join(staying) or ', '.join(assignment.layers)}."
            )
        for layer in named:
            del free[layer.name]
        views = [tuple(named)] if named and assignment.joint else [(layer,) for layer in named]
        compressions += [(view, assignment.scheme) for view in views]
    if not compressions:
        raise TrialError(f"schemes must name at least one of {len(layers)} layers but name none.")
    return compressions


@dataclass(frozen=True)
class _Keys:
    """By what a weight can be meant: names of it and of its layers, its class, where it stands in [0, 1)."""

    names: tuple[str, ...]
    kind: str
    place: float


def _keys(weight: Weight, position: int, count: int) -> _Keys:
    return _Keys((weight.name, weight.layer, *weight.aliases), weight.kind, position / count)


def _matches(keys: _Keys, name: str) -> bool:
    part = _PART.fullmatch(name)
    if part is not None:
        i, n = int(part[1]), int(part[2])
        return (i - 1) / n <= keys.place < i / n
    return name == keys.kind or any(fnmatch.fnmatchcase(own, name) for own in keys.names)


def view_of(layers: Sequence[Weight], reference_l1: float, limits: Limits) -> View:
    """What a scheme may know of the layers whose weights it compresses."""
    first, shape = layers[0], layers[0].product_shape
    full = min(shape[0], math.prod(shape[1:]))
    return View(
        shapes=tuple(layer.product_shape for layer in layers),
        groups=tuple(layer.groups for layer in layers),
        macs=tuple(layer.macs for layer in layers),
        reference_l1=reference_l1,
        least_rank=limits.least_rank(first.parameter, first.shape, full) if limits.share(first.layer) else 0,
    )
