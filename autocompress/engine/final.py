"""What the front reports is measured at its end: with nothing else running, on the files themselves."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from autocompress.checkpoint.reload import reload_faults
from autocompress.checkpoint.store import ARTIFACTS, ONNX, OPENVINO, PROGRAM
from autocompress.child import MOST_SECONDS
from autocompress.engine.folder import RunFolder
from autocompress.engine.interruption import Interruption
from autocompress.engine.prepare import Prepared
from autocompress.engine.results import build_result
from autocompress.errors import CheckpointError, DivergedError, TrialError, one_line
from autocompress.measure import measure_split
from autocompress.measure.latency import measure_latency
from autocompress.report import Progress
from autocompress.result import ParetoModel, SearchResult
from autocompress.score import SCORE, acc_comp
from autocompress.study import SearchStudy

UNSETTLED = (
    "the time limit ended the last measurements of the front, so some of it is not checked, or has no test "
    "score (the same command goes on with them)"
)


def settle_front(
    prepared: Prepared,
    folder: RunFolder,
    study: SearchStudy,
    progress: Progress,
    interruption: Interruption,
) -> None:
    """Measure what may be on the front once more, check its files, and score it on the test split.

    A point that fails leaves the front with its reason, and others take its place: they are checked in turn.
    Where the time limit comes before the end, the rest is left as it is, and a note says so.

    Raises:
        CheckpointError: the reference's file does not load, or computes something else.
    """
    checked: set[int] = set()
    while True:
        result = build_result(folder, study, prepared.objectives, prepared.fresh_model)
        faults = _measure_latency(prepared, result, study, progress, interruption)
        if not faults:
            # What was measured last may have moved points off the front, and others on it.
            result = build_result(folder, study, prepared.objectives, prepared.fresh_model)
            waiting = [p for p in [result.reference, *result.front] if p.trial not in checked]
            faults = check_front(prepared, waiting, interruption.left)
            checked |= {p.trial for p in waiting}
        if not interruption.left:
            # What took too long need be no fault of a point.
            progress.note(UNSETTLED)
            return
        if 0 in faults:
            raise CheckpointError(f"the reference must be deployable but: {faults[0]}")
        if not faults:
            break
        study.drop(faults)
        for number, reason in faults.items():
            progress.note(f"trial {number} left the front: {reason}")
    if not _score_on_test(prepared, result, study, progress, interruption):
        progress.note(UNSETTLED)


def _measure_latency(
    prepared: Prepared,
    result: SearchResult,
    study: SearchStudy,
    progress: Progress,
    interruption: Interruption,
) -> dict[int, str]:
    """Latency, one model at a time, of each point that has only the estimate made while trials ran.

    Returns:
        Why a trial could not be measured, by number.
    """
    if "latency" not in prepared.measuring.metrics:
        return {}
    known = study.final_metrics()
    waiting = [p for p in [*result.front, *result.contenders] if p.trial != 0 and p.trial not in known]
    reference, name = result.reference, ARTIFACTS[prepared.settings.artifact]
    final, faults = {}, {}
    for position, point in enumerate(waiting):
        if not interruption.left:
            break
        progress.final(position, len(waiting))
        try:
            measured = measure_latency(
                point.path / name,
                reference.path / name,
                prepared.task.example(),
                prepared.latency,
                reference.metrics["latency"],
                interruption.left,
            )
        except TrialError as error:
            faults[point.trial] = one_line(error)
            continue
        final[point.trial] = {"latency": measured.milliseconds, "latency_spread": measured.spread}
    progress.final(len(waiting), len(waiting))
    if final:
        study.set_final_metrics(final)
    return faults


def check_front(
    prepared: Prepared, points: Sequence[ParetoModel], limit: float = MOST_SECONDS
) -> dict[int, str]:
    """Load every artefact of some points in a fresh process without this package, and compare outputs.

    Args:
        prepared: the search.
        points: of it.
        limit: seconds that this may take.

    Returns:
        Why a trial's files are not what they should be, by number.
    """
    owners: dict[Path, int] = {}
    faults: dict[int, str] = {}
    for point in points:
        try:
            point.checkpoint()  # whose files are whole
        except CheckpointError as error:
            faults[point.trial] = one_line(error)
            continue
        files = [point.path / name for name in (PROGRAM, ONNX, OPENVINO)]
        owners |= {file: point.trial for file in files if file.is_file()}
    for file, reason in reload_faults(list(owners), prepared.task.example(3), limit).items():
        faults.setdefault(owners[file], reason)
    return faults


def _score_on_test(
    prepared: Prepared,
    result: SearchResult,
    study: SearchStudy,
    progress: Progress,
    interruption: Interruption,
) -> bool:
    """Task metrics on the test split of each point of the settled front that has none yet; whether there was
    time for all."""
    reference_params, tau = result.reference.metrics["params"], prepared.measuring.tau
    with prepared.task.opened() as task:
        for point in [result.reference, *result.front]:
            if task.test is None or point.test_metrics:
                continue
            if not interruption.left:
                break
            program = point.checkpoint().program(prepared.settings.artifact)
            try:
                values = measure_split(program, task.test, task, resampled=False, name="test").values
            except DivergedError as error:
                progress.note(f"trial {point.trial} on the test split: {error}")
                continue
            if SCORE in prepared.measuring.metrics:
                values[SCORE] = acc_comp(values["accuracy"], point.metrics["params"], reference_params, tau)
            # Each as soon as it is known: the next may be interrupted.
            study.set_test_metrics({point.trial: values})
    return bool(interruption.left)
