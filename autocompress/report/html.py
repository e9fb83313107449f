"""The report of a run: one HTML file that asks for nothing outside of itself."""

from __future__ import annotations

import re
import shlex
from collections.abc import Mapping, Sequence
from functools import cache
from pathlib import Path
from typing import Any

from autocompress.checkpoint import open_checkpoint
from autocompress.checkpoint.store import trial_folder
from autocompress.errors import CheckpointError, one_line
from autocompress.measure import Constraint
from autocompress.report.charts import (
    Chart,
    family_chart,
    front_chart,
    growth_chart,
    importance_chart,
)
from autocompress.report.console import disk_text
from autocompress.report.details import class_chart, curve_charts, layer_charts
from autocompress.report.loading import artifact_name, loading_lines
from autocompress.report.records import TrialRecord, sentence, trial_records
from autocompress.report.rendering import FOLDER, environment, shortened
from autocompress.report.summary import contributions, growth
from autocompress.result import ParetoModel, SearchResult
from autocompress.study import SearchStudy, importance
from autocompress.tables import HEADINGS, metric_text, scores_of, sizes_of
from autocompress.trial import changed_settings

# Addresses in Plotly, of its logo, its cloud and its maps, none of which is used; names of namespaces stay.
_ADDRESS = re.compile(r"https?://(?!www\.w3\.org/)")


def write_report(
    result: SearchResult,
    path: Path,
    study: SearchStudy,
    constraints: Sequence[Constraint],
    settings: Mapping[str, Any],
    defaults: Mapping[str, Any],
) -> Path:
    """Write the report.

    Args:
        result: the run's outcome.
        path: the file to write.
        study: of the run.
        constraints: of the search.
        settings: what the run was made with.
        defaults: what settings are where nobody gave them.
    """
    page = _Page(result, study, constraints)
    changed = {name: value for name, value in settings.items() if defaults.get(name) != value}
    text = environment().get_template("report.html").render(
        page=page,
        result=result,
        plotly=_plotly(),
        changed={name: _shown(value) for name, value in changed.items()},
        usual={name: _shown(value) for name, value in settings.items() if name not in changed},
        task=settings["task"],
        model=settings["model"],
        artifact=settings["artifact"],
        headings=HEADINGS,
        text=metric_text,
        shortened=shortened,
        sentence=sentence,
    )  # fmt: skip
    path.write_text(text, encoding="utf-8")
    return path


@cache
def _plotly() -> str:
    source = (FOLDER / "vendor" / "plotly-basic.min.js").read_text(encoding="utf-8")
    return _ADDRESS.sub("about:blank#", source)


def _shown(value: Any) -> str:
    if isinstance(value, Mapping):
        return ", ".join(f"{name}={item}" for name, item in value.items()) or "none"
    if isinstance(value, (list, tuple)):
        return ", ".join(map(str, value)) or "none"
    return "not given" if value is None else str(value)


class _Page:
    """What the template reads: tables, and charts by the identifier of the element that they are drawn in."""

    def __init__(self, result: SearchResult, study: SearchStudy, constraints: Sequence[Constraint]) -> None:
        self.result, self.study, self.constraints = result, study, constraints
        self.records = trial_records(study, result)
        self.disk = disk_text(result)
        self.counts, self.dropped = study.counts(), study.dropped()
        metrics = result.reference.metrics
        # The first cost and the first score come first, as a telephone shows no more.
        self.sizes = sorted(sizes_of(metrics), key=lambda name: name != result.first_cost)
        self.scores = sorted(scores_of(metrics), key=lambda name: name != result.objectives[0].metric)
        marked, self.mark = result.marked
        self.marked = None if marked is None else marked.trial
        grown = growth(self.records, result.objectives)
        self.spent = grown[-1].epochs if grown else 0
        primary = result.objectives[0]
        self.contributions = contributions(self.records, grown, result.first_cost, primary.metric)
        self.importances = {
            objective.metric: importance(study.study, position)
            for position, objective in enumerate(result.objectives)
        }
        silent = [set(each.silent) for each in self.importances.values()]
        self.silent = sorted(set.intersection(*silent))
        self.untrained = sum(
            r.state == "complete" and r.number > 0 and not r.epochs for r in self.records.values()
        )
        rest = [o.metric for o in result.objectives[1:]] or ["bytes"]
        self.fronts = {
            f"front-{position}": front_chart(result, self.records, constraints, across)
            for position, across in enumerate(rest)
        }
        self.charts: dict[str, Chart] = {**self.fronts, "growth": growth_chart(grown, self.records)}
        if any(point.trial for point in result.front):
            self.charts["family"] = family_chart(result, self.records)
        if any(each.shares for each in self.importances.values()):
            self.charts["importance"] = importance_chart(self.importances)
        before = _manifest(result.reference.path)
        points = [point for point in result.front if point.trial]
        self.points = [_Point(point, self.records, before) for point in points]
        for point in self.points:
            self.charts |= point.charts

    @property
    def rows(self) -> list[ParetoModel]:
        """The reference and the front, as the table has them."""
        return [self.result.reference, *(p for p in self.result.front if p.trial)]

    @property
    def has_alternatives(self) -> bool:
        """Whether one of several metrics is bounded."""
        return any(len(constraint.metrics) > 1 for constraint in self.constraints)

    @property
    def failures(self) -> list[TrialRecord]:
        """Trials that have no result, and why."""
        return [r for r in self.records.values() if r.reason and r.state in ("failed", "stopped early")]


class _Point:
    """What the template reads of one model of the front."""

    def __init__(
        self, point: ParetoModel, records: Mapping[int, TrialRecord], before: Mapping[str, Any]
    ) -> None:
        self.point, self.record = point, records[point.trial]
        manifest = _manifest(point.path)
        self.lineage = [records[number] for number in point.lineage]
        self.layer_charts = _numbered(
            f"layers-{point.trial}", layer_charts(manifest.get("layers", ()), before.get("layers", ()))
        )
        self.trained, history = _training(point)
        self.curve_charts = _numbered(f"curves-{point.trial}", curve_charts(history))
        by_class = class_chart(
            manifest.get("class_counts", ()), before.get("class_counts", ()), manifest.get("class_names")
        )
        self.class_charts = {} if by_class is None else {f"classes-{point.trial}": by_class}
        self.stages = [
            (
                stage["method"],
                {name: shortened(value, 400) for name, value in changed.items()},
                stage["config"],
            )
            for stage in self.record.config.get("stages", ())
            for changed in [changed_settings(stage["method"], stage["config"])]
        ]
        folder = point.path
        self.files = {p.name: p.stat().st_size for p in sorted(folder.iterdir())} if folder.is_dir() else {}
        self.fault = manifest.get("fault", "")
        self.loading = ""
        self.export = ""
        if not self.fault:
            name = artifact_name(manifest)
            self.loading = loading_lines(manifest, str(folder / name))
            run = shlex.quote(str(folder.parent.parent))
            self.export = f"autocompress export {run} --trial {point.trial} -o model{Path(name).suffix}"

    @property
    def charts(self) -> dict[str, Chart]:
        """All of its charts, by identifier."""
        return self.layer_charts | self.curve_charts | self.class_charts


def _numbered(prefix: str, charts: Mapping[str, Chart]) -> dict[str, Chart]:
    return {f"{prefix}-{position}": chart for position, chart in enumerate(charts.values())}


def _training(point: ParetoModel) -> tuple[int, Sequence[Mapping[str, float]]]:
    """The last trial of a model's line that trained and whose checkpoint is there, and its epochs."""
    for number in reversed(point.lineage):
        manifest = _manifest(trial_folder(point.path.parent, number))
        if manifest.get("history"):
            return number, manifest["history"]
    return point.trial, ()


def _manifest(path: Path) -> Mapping[str, Any]:
    """The manifest of a checkpoint; of one that is gone or damaged, the `fault`."""
    try:
        return open_checkpoint(path, verify=False).manifest
    except CheckpointError as error:
        return {"fault": one_line(error)}
