"""From a finished walk to an analysis: units that run through the same dimensions form one group."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Mapping
from dataclasses import replace

import numpy as np
from torch import Tensor, fx, nn

from autocompress.graph.labels import UNTRACKED, Ids
from autocompress.graph.structure import Analysis, Group, Member, Trace
from autocompress.graph.topology import find_cut_points, find_residuals
from autocompress.graph.tracing import Tracer


def build_analysis(
    model: nn.Module, tracer: Tracer, graph: fx.Graph, constants: Mapping[str, Tensor]
) -> Analysis:
    """What a walk over a model's graph has found; nothing of it is proven yet."""
    roots = tracer.units.resolve()
    reasons: dict[int, str] = {}
    for ids, reason in tracer.units.frozen:
        for root in np.unique(roots[ids]).tolist():
            reasons.setdefault(root, reason)
    # Constants are cut where the graph is, and are no members: the model has them under no name.
    axes = {key: ids for key, ids in tracer.axes.items() if key[0] not in constants}
    groups, units = _free_groups(tracer, axes, roots, reasons)
    return Analysis(
        groups,
        _frozen_layers(model, tracer, axes, roots, reasons, groups),
        _layers(model),
        find_cut_points(graph),
        find_residuals(graph),
        Trace(graph, tracer.values, roots, units, tracer.axes, tracer.shapes, constants),
    )


def _free_groups(
    tracer: Tracer, axes: Mapping[tuple[str, int], Ids], roots: Ids, reasons: dict[int, str]
) -> tuple[tuple[Group, ...], dict[str, Ids]]:
    """Free units that run through the same tensor dimensions form one group."""
    places: dict[int, list[tuple[str, int]]] = defaultdict(list)
    for key, ids in axes.items():
        for root in np.unique(roots[ids]).tolist():
            if root not in reasons:
                places[root].append(key)
    by_signature: dict[tuple[tuple[str, int], ...], list[int]] = defaultdict(list)
    for root, place in places.items():
        by_signature[tuple(place)].append(root)
    groups: list[Group] = []
    roots_of: list[Ids] = []
    for keys, units in by_signature.items():
        roles = {tracer.roles[key] for key in keys}
        if not roles & {"out", "channel"} or not roles & {"in", "channel"}:
            continue
        unit_index = np.full(int(roots.max()) + 1, UNTRACKED, dtype=np.int64)
        unit_index[units] = np.arange(len(units))
        members = tuple(_member(tracer, key, unit_index[roots[tracer.axes[key]]]) for key in keys)
        makers = [m for m in members if m.role != "in"]
        groups.append(Group(makers[0].layer or makers[0].tensor, len(units), members))
        roots_of.append(np.asarray(units, dtype=np.int64))
    named = _with_unique_names(groups)
    return named, {group.name: ids for group, ids in zip(named, roots_of, strict=True)}


def _member(tracer: Tracer, key: tuple[str, int], unit_of: Ids) -> Member:
    tensor, dim = key
    return Member(
        tensor,
        dim,
        tracer.roles[key],
        unit_of,
        normalised=tensor in tracer.normalised,
        whole_groups=tracer.whole_groups.get(tensor, 0) if dim == 0 else 0,
        statistics=tensor in tracer.statistics,
    )


def _with_unique_names(groups: list[Group]) -> tuple[Group, ...]:
    seen: dict[str, int] = defaultdict(int)
    named = []
    for group in groups:
        count = seen[group.name]
        seen[group.name] += 1
        named.append(replace(group, name=f"{group.name}#{count + 1}") if count else group)
    return tuple(named)


def _layers(model: nn.Module) -> tuple[str, ...]:
    return tuple(dict.fromkeys(name.rpartition(".")[0] for name, _ in model.named_parameters()))


def _frozen_layers(
    model: nn.Module,
    tracer: Tracer,
    axes: Mapping[tuple[str, int], Ids],
    roots: Ids,
    reasons: dict[int, str],
    groups: tuple[Group, ...],
) -> dict[str, str]:
    """A reason for each layer whose output channels are in no group."""
    free = {m.layer for group in groups for m in group.members if m.role != "in"}
    frozen: dict[str, str] = {}
    for layer in _layers(model):
        if layer in free:
            continue
        causes = [
            reasons[root]
            for (tensor, dim), ids in axes.items()
            if tensor.rpartition(".")[0] == layer and tracer.roles[tensor, dim] != "in"
            for root in np.unique(roots[ids]).tolist()
            if root in reasons
        ]
        frozen[layer] = causes[0] if causes else "no operator that is analysed uses its parameters"
    return frozen
