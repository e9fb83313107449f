"""An analysis within limits: what stays as it is leaves it, with the reason, and so does what is coupled."""

from __future__ import annotations

import bisect
import math
from collections.abc import Iterator, Mapping
from dataclasses import replace

from torch import fx

from autocompress.graph.structure import Analysis, Group
from autocompress.graph.topology import why_illegal
from autocompress.task import Limits
from autocompress.task.limits import owner_of


def within(analysis: Analysis, limits: Limits) -> Analysis:
    """What may be removed from a model within limits.

    A group with a member that stays as it is stays whole, and so does a branch with a layer that must not be
    deleted. Layers and cut points go by the limits where they are asked for, by `weights_of` and
    `CutPairs`.

    Args:
        analysis: of the model without any.
        limits: of the model that it was made of.
    """
    if limits == Limits():
        return analysis
    staying = {group.name: _why_whole(group, limits) for group in analysis.groups}
    groups = tuple(
        replace(group, least=_least(group, limits)[0])
        for group in analysis.groups
        if staying[group.name] is None
    )
    return replace(
        analysis,
        groups=groups,
        frozen=_frozen(analysis, groups, staying, limits),
        residuals=tuple(
            branch for branch in analysis.residuals if not any(map(limits.why_there, branch.branch))
        ),
        limits=limits,
    )


def _why_whole(group: Group, limits: Limits) -> str | None:
    """Why a group stays whole; None where units of it may go."""
    for member in group.members:
        made = limits.why_whole(member.layer) if member.role != "in" else None
        reason = limits.why_tensor(member.tensor) or made
        if reason is not None:
            return f"its channels are coupled with {member.layer or member.tensor!r}: {reason}"
    least, layer = _least(group, limits)
    if least < group.width or not limits.share(layer):
        return None
    return f"at least {limits.share(layer):g} of {layer!r} must stay, which is all that is left of it"


def _least(group: Group, limits: Limits) -> tuple[int, str]:
    """How many units of a group must stay, one at least, and the layer that they must stay of."""
    makers = (member for member in group.members if member.role != "in")
    return max((limits.least_units(m.tensor, m.dim, len(m.unit_of), group.width), m.layer) for m in makers)


def _frozen(
    analysis: Analysis, groups: tuple[Group, ...], staying: Mapping[str, str | None], limits: Limits
) -> dict[str, str]:
    """The analysis's reasons, and one for each layer whose output channels are in no group any more."""
    free = {member.layer for group in groups for member in group.members if member.role != "in"}
    frozen = dict(analysis.frozen)
    for group in analysis.groups:
        reason = staying[group.name]
        for member in group.members:
            if reason is not None and member.role != "in" and member.layer not in free:
                frozen.setdefault(member.layer, reason)
    own = {layer: limits.why_layer(layer) for layer in analysis.layers}
    return frozen | {layer: reason for layer, reason in own.items() if reason is not None}


class CutPairs:
    """Which pairs of a model's cut points a module may bridge.

    Args:
        analysis: of the model, within limits.
    """

    def __init__(self, analysis: Analysis) -> None:
        self.cuts = analysis.cut_points
        nodes = list(analysis.trace.graph.nodes)
        place = {node.name: position for position, node in enumerate(nodes)}
        self.places = [place[cut.node] for cut in self.cuts]
        self.fixed = [
            (position, f"{name!r}: {reason}")
            for position, node in enumerate(nodes if analysis.limits != Limits() else ())
            for name, reason in _staying(node, analysis.limits)
        ]

    def why_illegal(self, start: int, end: int | None) -> str | None:
        """Why no module may lead from one cut point to a later one, or to the model's output; None where one
        may.

        Args:
            start: position of the earlier one in the analysis.
            end: of the later one; None is the output.
        """
        reason = None if end is None else why_illegal(self.cuts[start], self.cuts[end])
        return reason or self._why_kept(self.places[start], math.inf if end is None else self.places[end])

    def _why_kept(self, after: int, until: float) -> str | None:
        """Why what runs after one node and up to another must not go."""
        first = bisect.bisect_right(self.fixed, after, key=lambda entry: entry[0])
        if first == len(self.fixed) or self.fixed[first][0] > until:
            return None
        return f"what lies between must stay, {self.fixed[first][1]}"


def _staying(node: fx.Node, limits: Limits) -> Iterator[tuple[str, str]]:
    """Tensors that a node reads which must stay there, and why."""
    for source in node.all_input_nodes:
        name = str(source.target)
        reason = (
            (limits.why_tensor(name) or limits.why_part(owner_of(name))) if source.op == "get_attr" else None
        )
        if reason is not None:
            yield owner_of(name) or name, reason
