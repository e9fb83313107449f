"""`inspect`: what can be compressed in a model, and what cannot, and why, without a task."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

from torch import nn

from autocompress.engine.model_checks import check_calls, check_state
from autocompress.graph import Analysis, analyse, within
from autocompress.graph.costs import profile
from autocompress.graph.reach import Reach, reach
from autocompress.graph.structure import Group
from autocompress.graph.topology import CutPoint, ResidualBranch
from autocompress.surgery.preparation import prepare_model
from autocompress.task import Inputs, ModelProfile
from autocompress.task.copying import copied
from autocompress.task.inputs import repeated_rows, rows
from autocompress.task.limits import check_limits, check_something_left, settle


@dataclass(frozen=True)
class Inspection:
    """What methods may change of a model.

    Args:
        groups: coupled channel groups, from input to output.
        frozen: layer → why none of its output channels can be removed.
        cut_points: tensors that every path from input to output passes through.
        residuals: branches beside a shortcut.
        reach: method → which share of the model it can make smaller, and why not the rest.
        profile: sizes and costs, as search spaces see them.
        analysis: all that was found.
    """

    groups: tuple[Group, ...]
    frozen: Mapping[str, str]
    cut_points: tuple[CutPoint, ...]
    residuals: tuple[ResidualBranch, ...]
    reach: Mapping[str, Reach]
    profile: ModelProfile = field(repr=False)
    analysis: Analysis = field(repr=False)


def inspect(
    model: nn.Module,
    example: Inputs,
    *,
    exclude: Sequence[str] = (),
    at_least: Mapping[str, float] | None = None,
) -> Inspection:
    """Analyse a model as a search would: its coupled channels, cut points, branches, and what stays.

    Args:
        model: not changed.
        example: what it is called with, `(B, ...)`: a tensor, a tuple of arguments or a mapping of keyword
            arguments.
        exclude: names, patterns or classes of layers that stay as they are.
        at_least: pattern → least share of the units of its layers that stays.

    Raises:
        UsageError: the model cannot be analysed; or a pattern names nothing.
    """
    check_limits(tuple(exclude), at_least or {})
    check_state(model)
    subject = copied(model).to("cpu")
    inputs = repeated_rows(example, max(2, rows(example)))
    check_calls(subject, inputs)
    frozen = settle(subject)
    subject, _ = prepare_model(subject, inputs)
    limits = settle(subject, exclude, at_least).joined(frozen)
    check_something_left(subject, limits)
    analysis = within(analyse(subject.eval(), inputs), limits)
    described = profile(subject, inputs, analysis)
    return Inspection(
        groups=analysis.groups,
        frozen=analysis.frozen,
        cut_points=analysis.cut_points,
        residuals=analysis.residuals,
        reach=reach(subject, analysis, described),
        profile=described,
        analysis=analysis,
    )
