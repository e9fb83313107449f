"""What `autocompress inspect` shows: groups, cut points, branches, and what is frozen and why."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict
from typing import Any

from rich.box import SIMPLE_HEAD
from rich.console import Group as Renderables
from rich.table import Table

from autocompress.graph import Analysis
from autocompress.graph.reach import Reach
from autocompress.tables import metric_text
from autocompress.task import ModelProfile


def inspection_json(analysis: Analysis, profile: ModelProfile, reach: Mapping[str, Reach]) -> dict[str, Any]:
    """Groups, cut points, branches, frozen layers and what each method reaches, as JSON-able data."""
    return {
        "params": profile.params,
        "macs": profile.macs,
        "groups": _groups_json(analysis, profile),
        "cut_points": [
            {
                "name": cut.name,
                "shape": list(cut.shape),
                "macs_before": cut.macs,
                "partners": list(cut.partners),
            }
            for cut in profile.cut_points
        ],
        "residuals": [
            {
                "name": residual.name,
                "shape": list(residual.shape),
                "branch": list(residual.branch),
                "shortcut": list(residual.shortcut),
            }
            for residual in analysis.residuals
        ],
        "frozen": dict(analysis.frozen),
        "layers": list(analysis.layers),
        "reach": {method: asdict(share) for method, share in reach.items()},
    }


def _groups_json(analysis: Analysis, profile: ModelProfile) -> list[dict[str, Any]]:
    costs = {group.name: group for group in profile.groups}
    return [
        {
            "name": group.name,
            "width": group.width,
            "at_least": group.least,
            "params": costs[group.name].params,
            "macs": costs[group.name].macs,
            "members": [
                {"tensor": m.tensor, "dim": m.dim, "role": m.role, "positions": int((m.unit_of >= 0).sum())}
                for m in group.members
            ],
        }
        for group in analysis.groups
    ]


def inspection_tables(analysis: Analysis, profile: ModelProfile, reach: Mapping[str, Reach]) -> Renderables:
    """Groups, cut points, branches, frozen layers and what each method reaches, as tables."""
    return Renderables(
        _groups(analysis, profile),
        _cut_points(profile),
        _residuals(analysis),
        _frozen(analysis),
        _reach(reach),
    )


def _groups(analysis: Analysis, profile: ModelProfile) -> Table:
    free = {m.layer for group in analysis.groups for m in group.members if m.role != "in"}
    table = _table(
        f"{len(analysis.groups)} coupled channel groups over {len(free)} of {len(analysis.layers)} layers "
        f"({metric_text('params', profile.params)} params, {metric_text('macs', profile.macs)} MACs)",
        ("group", "width", "params", "MACs", "layers"),
    )
    costs = {group.name: group for group in profile.groups}
    for group in analysis.groups:
        cost = costs[group.name]
        table.add_row(
            group.name,
            str(group.width) if group.least == 1 else f"{group.width} (at least {group.least})",
            metric_text("params", cost.params),
            metric_text("macs", cost.macs),
            ", ".join(layer or "(the model itself)" for layer in group.layers),
        )
    return table


def _cut_points(profile: ModelProfile) -> Table:
    table = _table(
        f"{len(profile.cut_points)} cut points", ("#", "after", "shape", "MACs before", "share", "leads to")
    )
    for number, cut in enumerate(profile.cut_points):
        share = cut.macs / profile.macs if profile.macs else 0.0
        shape = " × ".join(map(str, cut.shape))
        macs = metric_text("macs", cut.macs)
        name = cut.name or "(the model itself)"
        table.add_row(str(number), name, shape, macs, f"{share:.0%}", _ranges(cut.partners) or "-")
    return table


def _ranges(numbers: tuple[int, ...]) -> str:
    """1, 2, 3, 5 as "1-3, 5"."""
    parts: list[list[int]] = []
    for number in numbers:
        if parts and number == parts[-1][-1] + 1:
            parts[-1].append(number)
        else:
            parts.append([number])
    return ", ".join(f"{part[0]}-{part[-1]}" if len(part) > 1 else str(part[0]) for part in parts)


def _residuals(analysis: Analysis) -> Table:
    table = _table(
        f"{len(analysis.residuals)} residual branches", ("added in", "shape", "branch", "shortcut")
    )
    for residual in analysis.residuals:
        shape = " × ".join(map(str, residual.shape))
        table.add_row(
            residual.name, shape, ", ".join(residual.branch), ", ".join(residual.shortcut) or "identity"
        )
    return table


def _frozen(analysis: Analysis) -> Table:
    table = _table(f"{len(analysis.frozen)} layers whose outputs are left alone", ("layer", "because"))
    for layer, reason in analysis.frozen.items():
        table.add_row(layer or "(the model itself)", reason)
    return table


def _reach(reach: Mapping[str, Reach]) -> Table:
    table = _table(
        "what each method can reach", ("method", "of params", "of MACs", "of bytes", "leaves alone")
    )
    for method, share in reach.items():
        left = "; ".join(f"{part:.0%} as {reason}" for reason, part in share.why_not.items() if part >= 0.005)
        shares = (f"{part:.0%}" for part in (share.params, share.macs, share.bytes))
        table.add_row(method, *shares, left or "-")
    return table


def _table(title: str, columns: tuple[str, ...]) -> Table:
    table = Table(title=title, title_justify="left", box=SIMPLE_HEAD)
    numbers = ("#", "width", "params", "MACs", "MACs before", "share", "of params", "of MACs", "of bytes")
    for name in columns:
        table.add_column(name, justify="right" if name in numbers else "left")
    return table
