"""The report of a run: one HTML file with everything in it."""

from __future__ import annotations

import io
import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import jinja2
from matplotlib.figure import Figure

from autocompress.report.console import HEADINGS, metric_text
from autocompress.report.plots import front_figure
from autocompress.result import SearchResult

_SIZES = ("bytes", "weight_bytes", "params", "macs", "latency", "memory")


def write_report(
    result: SearchResult,
    path: Path,
    settings: Mapping[str, Any],
    others: Sequence[Mapping[str, float]],
    counts: Mapping[str, int],
    dropped: Mapping[int, str],
) -> Path:
    """Write the report.

    Args:
        result: the run's outcome.
        path: the file to write.
        settings: what the run was made with.
        others: metrics of the trials that are not on the front.
        counts: number of trials by state.
        dropped: why trials left the front when their files were checked.
    """
    environment = jinja2.Environment(loader=jinja2.PackageLoader("autocompress.report", "."), autoescape=True)
    sizes = [name for name in _SIZES if name in result.reference.metrics]
    page = environment.get_template("template.html").render(
        result=result,
        settings={k: json.dumps(v) if not isinstance(v, str) else v for k, v in settings.items()},
        counts=counts,
        dropped=dropped,
        sizes=sizes,
        headings=HEADINGS,
        scores=[n for n in result.reference.metrics if n not in _SIZES and "_spread" not in n],
        knee=result.pick("knee").trial if result.front else None,
        points=[result.reference, *(p for p in result.front if p.trial != 0)],
        text=metric_text,
        plot=_svg(front_figure(result, others)) if result.front else "",
    )
    path.write_text(page, encoding="utf-8")
    return path


def _svg(figure: Figure) -> str:
    """The figure as an SVG element, without the file prolog that HTML does not allow."""
    buffer = io.StringIO()
    figure.savefig(buffer, format="svg")
    text = buffer.getvalue()
    return text[text.index("<svg") :]
