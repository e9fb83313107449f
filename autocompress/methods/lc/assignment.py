"""Which layers are compressed to what, and which of them together."""

from __future__ import annotations

import fnmatch
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from autocompress.errors import SettingsError, TrialError
from autocompress.graph.layers import WeightLayer
from autocompress.methods.lc.scheme import Scheme, View
from autocompress.methods.lc.schemes import scheme_from

_PART = re.compile(r"(\d+)/([1-9]\d*)")


@dataclass(frozen=True)
class Assignment:
    """Layers and their scheme.

    Args:
        layers: names, patterns such as "layer1.*", classes such as "Conv2d", or parts such as "1/3",
            the first third of the layers.
        scheme: what their weights become.
        joint: one Θ for all of them; otherwise one for each.
    """

    layers: tuple[str, ...]
    scheme: Scheme
    joint: bool = False


Tasks = Mapping[str | tuple[str, ...], Scheme] | Sequence[Assignment | Mapping[str, Any]]


def assignments(tasks: Tasks) -> tuple[Assignment, ...]:
    """Assignments from `{"fc1": scheme, ("fc2", "fc3"): scheme}`, where a tuple means jointly.

    Raises:
        SettingsError: a scheme is not usable.
    """
    if isinstance(tasks, Mapping):
        return tuple(
            Assignment((key,), scheme) if isinstance(key, str) else Assignment(tuple(key), scheme, joint=True)
            for key, scheme in tasks.items()
        )
    found = []
    for task in tasks:
        if isinstance(task, Assignment):
            found.append(task)
        else:
            scheme = scheme_from(task["scheme"])
            found.append(Assignment(tuple(task["layers"]), scheme, bool(task["joint"])))
    if not found:
        raise SettingsError("tasks must name at least one layer but is empty.")
    return tuple(found)


def resolve(
    tasks: Sequence[Assignment], layers: Sequence[WeightLayer]
) -> list[tuple[tuple[WeightLayer, ...], Scheme]]:
    """The layers of each compression; a layer belongs to the first assignment that names it.

    Raises:
        TrialError: an assignment names no layer that is still free, or none names any.
    """
    free = {layer.name: layer for layer in layers}
    keys = {layer.name: _keys(layer, i, len(layers)) for i, layer in enumerate(layers)}
    found: list[tuple[tuple[WeightLayer, ...], Scheme]] = []
    for task in tasks:
        mine = [
            layer for layer in free.values() if any(_matches(keys[layer.name], name) for name in task.layers)
        ]
        if not mine and not all(_PART.fullmatch(name) for name in task.layers):
            raise TrialError(
                f"tasks must name layers among {', '.join(layer.name for layer in layers)} "
                f"but got {', '.join(task.layers)}."
            )
        for layer in mine:
            del free[layer.name]
        views = [tuple(mine)] if mine and task.joint else [(layer,) for layer in mine]
        found += [(view, task.scheme) for view in views]
    if not found:
        raise TrialError(f"tasks must name at least one of {len(layers)} layers but name none.")
    return found


def _keys(layer: WeightLayer, position: int, count: int) -> tuple[str, str, float]:
    """By what a layer can be meant: its name, its class, and where it stands in [0, 1)."""
    return layer.name, layer.kind, position / count


def _matches(keys: tuple[str, str, float], name: str) -> bool:
    own, kind, place = keys
    part = _PART.fullmatch(name)
    if part is not None:
        i, n = int(part[1]), int(part[2])
        return (i - 1) / n <= place < i / n
    return name in (own, kind) or fnmatch.fnmatchcase(own, name)


def view_of(layers: Sequence[WeightLayer], reference_l1: float) -> View:
    """What a scheme may know of the layers whose weights it compresses."""
    return View(
        shapes=tuple(layer.shape for layer in layers),
        groups=tuple(layer.groups for layer in layers),
        macs=tuple(layer.macs for layer in layers),
        reference_l1=reference_l1,
    )
