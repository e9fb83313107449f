"""Which layers are compressed to what, and which of them together."""

from __future__ import annotations

import fnmatch
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from autocompress.compressors.lc.schemes import Scheme, View, scheme_from
from autocompress.errors import SettingsError, TrialError
from autocompress.graph.layers import WeightLayer


@dataclass(frozen=True)
class Assignment:
    """Layers and their scheme.

    Args:
        layers: names, patterns such as "layer1.*", or classes such as "Conv2d".
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
        TrialError: an assignment names no layer that is still free.
    """
    free = {layer.name: layer for layer in layers}
    found: list[tuple[tuple[WeightLayer, ...], Scheme]] = []
    for task in tasks:
        mine = [layer for layer in free.values() if any(_matches(layer, name) for name in task.layers)]
        if not mine:
            raise TrialError(
                f"tasks must name layers among {', '.join(layer.name for layer in layers)} "
                f"but got {', '.join(task.layers)}."
            )
        for layer in mine:
            del free[layer.name]
        views = [tuple(mine)] if task.joint else [(layer,) for layer in mine]
        found += [(view, task.scheme) for view in views]
    return found


def _matches(layer: WeightLayer, name: str) -> bool:
    return layer.name == name or layer.kind == name or fnmatch.fnmatchcase(layer.name, name)


def view_of(layers: Sequence[WeightLayer], reference_l1: float) -> View:
    """What a scheme may know of the layers whose weights it compresses."""
    return View(
        shapes=tuple(layer.shape for layer in layers),
        groups=tuple(layer.groups for layer in layers),
        macs=tuple(layer.macs for layer in layers),
        reference_l1=reference_l1,
    )
