"""Latency by a function of the user's own, and memory, in a trial; and what is refused before a search."""

from __future__ import annotations

import types
from collections.abc import Callable, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

import autocompress as ac
from autocompress.engine.folder import RunFolder
from autocompress.engine.identity import identity
from autocompress.engine.prepare import prepare
from autocompress.engine.settings import Settings
from autocompress.measure.latency import LatencySettings
from autocompress.trial import Measuring, Reference, TrialConfig, run_trial, train_reference
from autocompress.trial.config import Stage


def by_size(path: Path, threads: int) -> float:
    return path.stat().st_size / 1000 + threads


def by_twice(path: Path) -> float:
    return path.stat().st_size / 500


def fails(path: Path) -> float:
    raise OSError(f"no board answers for {path.name}")


def test_a_trial_measures_by_the_function_and_the_memory_of_a_call(
    residual_task: ac.Task, tmp_path: Path
) -> None:
    task = residual_task.with_recipe(epochs=1)
    settings = LatencySettings(threads=2, by=by_size)
    measuring = Measuring(("accuracy", "latency", "memory"), latency=settings)
    assert not replace(measuring, metrics=("memory",)).without_file
    checkpoint = train_reference(task, tmp_path / "reference", measuring)
    reference = Reference.of(checkpoint, task.model())
    config = TrialConfig((Stage("alcn", {"initial_ratio": 0.5}),), epochs=1)
    measured = run_trial(task, reference, config, tmp_path / "trial", measuring).metrics
    for metrics in (checkpoint.manifest["metrics"], measured):
        assert metrics["latency"] == pytest.approx(metrics["bytes"] / 1000 + 2)
        assert metrics["latency_spread"] == 0
        assert metrics["memory"] > 0


def test_a_function_is_stored_by_its_name() -> None:
    assert Settings(latency_by=by_size).to_json()["latency_by"] == "by_size"
    assert Settings(latency_by="board:ms").to_json()["latency_by"] == "board:ms"


def refused(task: ac.Task, options: Mapping[str, Any]) -> None:
    prepare(task, Settings(**{"objectives": ("accuracy", "latency"), "constraints": (), **options}))


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"latency_by": "no_colon"}, "^latency_by must read like 'module:function' but got 'no_colon'"),
        ({"latency_by": "os:sep"}, "^latency_by must name a function of a path but 'os:sep' is a str"),
        ({"latency_by": "os:nothing"}, "^'os' must define 'nothing' but does not"),
        ({"latency_by": 3}, "^latency_by must be 'module:function' or a function of a path but got 3"),
        (
            {"latency_by": fails},
            "^latency_by must return .* 'model.pt2': OSError: no board answers for model.pt2$",
        ),
        (
            {"latency_by": by_size, "objectives": ("accuracy", "bytes")},
            r"^latency_by must be given where latency is .* that is accuracy, bytes \(add latency",
        ),
    ],
)
def test_what_cannot_measure_is_refused_before_anything_is_trained(
    options: dict[str, object], message: str, residual_task: ac.Task
) -> None:
    with pytest.raises(ac.UsageError, match=message):
        refused(residual_task, options)


def test_a_run_goes_on_with_the_same_function_alone(residual_task: ac.Task, tmp_path: Path) -> None:
    def of(by: Callable[..., float]) -> dict[str, object]:
        settings = Settings(objectives=("latency",), methods=("alcn",), latency_by=by)
        return identity(prepare(residual_task, settings))

    made = RunFolder(tmp_path / "run")
    made.write(Settings(), of(by_size), {})
    made.refuse_other_settings(of(by_size))
    with pytest.raises(ac.UsageError, match=r"^latency_by of the run in .* is 'by_size' but got 'by_twice'"):
        made.refuse_other_settings(of(by_twice))
    other = of(types.FunctionType(by_twice.__code__, by_twice.__globals__, "by_size"))
    with pytest.raises(ac.UsageError, match=r"^the function that measures latency changed"):
        made.refuse_other_settings(other)
