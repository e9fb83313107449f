"""What is written beside a study and each of its trials, as Markdown."""

from __future__ import annotations

import html
import re
from collections.abc import Mapping

from autocompress.report.records import TrialRecord, metric_lines, sentence
from autocompress.result import SearchResult
from autocompress.tables import HEADINGS

# Underscores inside of words are none.
_MARKUP = re.compile(r"([\\`*\[\]|~]|(?<![A-Za-z0-9])_|_(?![A-Za-z0-9]))")


def plain(text: object) -> str:
    """A user's text as Markdown shows it letter by letter, on one line."""
    return _MARKUP.sub(r"\\\1", html.escape(" ".join(str(text).split()), quote=False))


def code(text: object) -> str:
    """The same as code."""
    return f"`{' '.join(str(text).split()).replace('`', chr(39))}`"


def trial_note(record: TrialRecord, files: Mapping[str, str]) -> str:
    """What a trial is in one sentence, where it came from, what it measured, and why it has no result.

    Args:
        record: of the trial.
        files: name → address, of its checkpoint.
    """
    title = "Reference" if record.number == 0 else f"Trial {record.number}: {plain(record.label)}"
    lines = [f"### {title}", "", plain(sentence(record)), ""]
    if record.number and record.config:
        parent = "the reference (trial 0)" if record.parent == 0 else f"trial {record.parent}"
        lines.append(f"- parent: {parent}")
    lines.append(f"- state: {_standing(record)}")
    if record.reason:
        lines.append(f"- reason: {plain(record.reason)}")
    if files:
        linked = ", ".join(f"[{plain(name)}]({address})" for name, address in files.items())
        lines.append(f"- files: {linked}")
    if record.metrics:
        lines += ["", "| metric | value | × reference |", "| --- | ---: | ---: |"]
        for name, text in metric_lines(record).items():
            value, _, ratio = text.partition(" (")
            heading = plain(HEADINGS.get(name, name))
            lines.append(f"| {heading} | {value} | {ratio.removesuffix(')') or '–'} |")
    return "\n".join(lines)


def _standing(record: TrialRecord) -> str:
    if record.number == 0:
        return "what all others are compared with"
    if record.feasible is False:
        return f"{record.state}, out of bounds: it is on no front"
    return f"{record.state}, {record.standing}" if record.standing else record.state


def study_note(
    result: SearchResult, records: Mapping[int, TrialRecord], bounds: list[str], report: str
) -> str:
    """What a run is, and its front as a table.

    Args:
        result: of the run.
        records: all trials.
        bounds: texts of the constraints.
        report: address of the report; empty where there is none yet.
    """
    names = [o.metric for o in result.objectives]
    shown = dict.fromkeys([*names, "bytes", "params", "macs"])
    shown = {name: None for name in shown if name in result.reference.metrics}
    counted = [record.state for record in records.values() if record.number]
    states = ", ".join(f"{counted.count(state)} {state}" for state in dict.fromkeys(counted))
    wanted = ", ".join(f"{plain(o.metric)} {'↑' if o.maximised else '↓'}" for o in result.objectives)
    bounded = ", ".join(f"`{text}`" for text in bounds) or "none"
    lines = [
        f"## {plain(result.out.resolve().name)}",
        "",
        f"Objectives: {wanted}. Constraints: {bounded}. Trials: {states or 'none yet'}. "
        "**Trial 0 is the reference**; × is over its value.",
        "",
        *([f"[The whole report]({report})", ""] if report else []),
        "| trial | what | from | " + " | ".join(plain(HEADINGS.get(n, n)) for n in shown) + " |",
        "| ---: | --- | ---: |" + " ---: |" * len(shown),
    ]
    for point in [result.reference, *(p for p in result.front if p.trial)]:
        record = records[point.trial]
        texts = metric_lines(record)
        origin = "" if not point.trial else "reference" if not record.parent else str(record.parent)
        cells = [str(point.trial), plain(record.label), origin, *(texts[name] for name in shown)]
        lines.append(f"| {' | '.join(cells)} |")
    return "\n".join(lines)
