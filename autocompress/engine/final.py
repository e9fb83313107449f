"""What the front reports is measured at its end: with nothing else running, on the files themselves."""

from __future__ import annotations

from pathlib import Path

from autocompress.checkpoint.reload import check_reload
from autocompress.checkpoint.store import ARTIFACTS, ONNX, PROGRAM
from autocompress.engine.prepare import Prepared
from autocompress.errors import DivergedError
from autocompress.metrics import measure_split
from autocompress.metrics.latency import measure_latency
from autocompress.report import Progress
from autocompress.result import ParetoModel, SearchResult
from autocompress.score import SCORE, acc_comp
from autocompress.study import SearchStudy


def measure_front(prepared: Prepared, result: SearchResult, study: SearchStudy, progress: Progress) -> None:
    """Latency, one model at a time, of each point that has only the estimate made while trials ran.

    Raises:
        TrialError: a measurement failed.
    """
    if "latency" not in prepared.measuring.metrics:
        return
    known = study.final_metrics()
    waiting = [p for p in result.front if p.trial != 0 and p.trial not in known]
    reference, name = result.reference, ARTIFACTS[prepared.settings.artifact]
    found = {}
    for position, point in enumerate(waiting):
        progress.final(position, len(waiting))
        measured = measure_latency(
            point.path / name, reference.path / name, prepared.task.example(), prepared.latency
        )
        milliseconds = measured.ratio * reference.metrics["latency"]
        found[point.trial] = {"latency": milliseconds, "latency_spread": measured.spread}
    progress.final(len(waiting), len(waiting))
    if found:
        study.set_final_metrics(found)


def check_front(prepared: Prepared, result: SearchResult) -> None:
    """Every artefact of every point loads in a fresh process without this package.

    Raises:
        CheckpointError: one does not, or computes something else there.
    """
    points = {p.trial: p for p in [result.reference, *result.front]}.values()
    programs = [file for point in points for file in _programs(point)]
    check_reload(programs, prepared.task.example(3))


def _programs(point: ParetoModel) -> list[Path]:
    files = [point.path / name for name in (PROGRAM, ONNX)]
    return [file for file in files if file.is_file()]


def report_on_test(prepared: Prepared, result: SearchResult, study: SearchStudy, progress: Progress) -> None:
    """Task metrics on the test split of each point that has none yet."""
    task = prepared.task
    if task.test is None:
        return
    found = {}
    whole, tau = result.reference.metrics["params"], prepared.measuring.tau
    for point in [result.reference, *result.front]:
        if not point.test_metrics:
            program = point.checkpoint().program(prepared.settings.artifact)
            try:
                values = measure_split(program, task.test, task).values
            except DivergedError as error:
                progress.note(f"trial {point.trial} on the test split: {error}")
                continue
            if SCORE in prepared.measuring.metrics:
                values[SCORE] = acc_comp(values["accuracy"], point.metrics["params"], whole, tau)
            found[point.trial] = values
    if found:
        study.set_test_metrics(found)
