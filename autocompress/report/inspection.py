"""What `autocompress inspect` shows: groups, their cost, and what is frozen with its reason."""

from __future__ import annotations

from typing import Any

from rich.box import SIMPLE_HEAD
from rich.console import Group as Renderables
from rich.table import Table

from autocompress.graph import Analysis
from autocompress.report.console import metric_text
from autocompress.task import ModelProfile


def inspection_json(analysis: Analysis, profile: ModelProfile) -> dict[str, Any]:
    """Groups and frozen layers as JSON-able data."""
    costs = {group.name: group for group in profile.groups}
    return {
        "params": profile.params,
        "macs": profile.macs,
        "groups": [
            {
                "name": group.name,
                "width": group.width,
                "params": costs[group.name].params,
                "macs": costs[group.name].macs,
                "members": [{"tensor": m.tensor, "dim": m.dim, "role": m.role} for m in group.members],
            }
            for group in analysis.groups
        ],
        "frozen": dict(analysis.frozen),
        "layers": list(analysis.layers),
    }


def inspection_tables(analysis: Analysis, profile: ModelProfile) -> Renderables:
    """Groups and frozen layers as tables."""
    groups = Table(
        title=f"{len(analysis.groups)} coupled channel groups "
        f"({metric_text('params', profile.params)} params, {metric_text('macs', profile.macs)} MACs)",
        title_justify="left",
        box=SIMPLE_HEAD,
    )
    for name in ("group", "width", "params", "MACs", "layers"):
        groups.add_column(name, justify="left" if name in ("group", "layers") else "right")
    costs = {group.name: group for group in profile.groups}
    for group in analysis.groups:
        cost = costs[group.name]
        groups.add_row(
            group.name,
            str(group.width),
            metric_text("params", cost.params),
            metric_text("macs", cost.macs),
            ", ".join(group.layers),
        )
    frozen = Table(
        title=f"{len(analysis.frozen)} layers whose outputs are left alone",
        title_justify="left",
        box=SIMPLE_HEAD,
    )
    frozen.add_column("layer")
    frozen.add_column("because")
    for layer, reason in analysis.frozen.items():
        frozen.add_row(layer or "(the model itself)", reason)
    return Renderables(groups, frozen)
