"""A search of many trials takes as much work for the last as for the first, by the benchmark's stand-in."""

from __future__ import annotations

import importlib.util
import sys
from collections import Counter
from pathlib import Path
from typing import Any

import pytest

import autocompress as ac
from autocompress import pareto
from autocompress.checkpoint.store import kept_trials
from autocompress.distribute import Job
from autocompress.engine import family
from autocompress.trial import Stage, TrialConfig

BENCHMARK = Path(__file__).parents[2] / "examples" / "benchmarks" / "search_scale.py"


@pytest.fixture
def scale(monkeypatch: pytest.MonkeyPatch) -> Any:
    spec = importlib.util.spec_from_file_location("search_scale", BENCHMARK)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    monkeypatch.setitem(sys.modules, "search_scale", module)
    spec.loader.exec_module(module)
    return module


def test_what_ended_trials_gave_is_read_once_and_only_what_is_kept_is_judged(
    scale: Any, residual_task: ac.Task, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    read: Counter[str] = Counter()
    judged: list[int] = []
    there: list[int] = []
    opened, dominated = family.open_checkpoint, pareto._dominated

    def counted_open(path: Path, verify: bool = True) -> Any:
        read[path.name] += 1
        return opened(path, verify)

    def counted_dominated(points: Any, tolerances: Any, positions: Any = None) -> Any:
        answer = dominated(points, tolerances, positions)
        if points.ndim == 3:
            judged.append(answer.shape[-1])
            there.append(1 + len(kept_trials(tmp_path / "run" / "trials")))
        return answer

    monkeypatch.setattr(family, "open_checkpoint", counted_open)
    monkeypatch.setattr(pareto, "_dominated", counted_dominated)
    search = scale.Search.begin(
        residual_task, tmp_path / "run", objectives=("accuracy", "bytes"), trials=20, workers=4, seed=1
    )
    log = scale.simulate(search, 4, scale.StandIn())
    kept = kept_trials(search.folder.trials)
    assert search.study.finished() == 20
    assert len(log.ends) == len(log.driver) >= 20
    assert log.ends == sorted(log.ends)
    assert set(read.values()) == {1}
    # Each trial is judged alone, and where it is kept, together with what is there.
    assert all(count <= present for count, present in zip(judged, there, strict=True))
    # Those that others took the place of are gone.
    assert len(kept) < 2 / 3 * len(search.study.complete_trials())
    assert {True} == set(search.study.worth().values())
    assert not kept & search.study.worth().keys()


def test_all_checkpoints_may_be_kept_with_the_search_as_it_would_be(
    scale: Any, residual_task: ac.Task, tmp_path: Path
) -> None:
    configs = []
    for keep in ("near", "all"):
        options = {"objectives": ("accuracy", "bytes"), "trials": 12, "workers": 1, "seed": 1, "keep": keep}
        search = scale.Search.begin(residual_task, tmp_path / keep, **options)
        scale.simulate(search, 1, scale.StandIn())
        configs.append([config.to_json() for config in search.study.configs()])
    complete = {trial.number for trial in search.study.complete_trials() if trial.number}
    assert configs[0] == configs[1]
    assert kept_trials(search.folder.trials) == complete
    assert not any(search.study.worth().values())


def test_seconds_of_trials_are_drawn_from_those_of_their_kind(
    scale: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    worker = scale.Trained({"alcn": [1.0], "alds": [2.0]}, seed=1)
    monkeypatch.setattr(worker, "_run", lambda search, job: "outcome")

    def job(methods: tuple[str, ...]) -> Any:
        stages = tuple(Stage(method, {}) for method in methods)
        return Job(1, TrialConfig(stages=stages, epochs=2), None)

    assert worker(None, job(("alcn",))) == ("outcome", 1.0)
    assert worker(None, job(("alds",))) == ("outcome", 2.0)
    assert worker(None, job(()))[1] in (1.0, 2.0)
    assert set(worker.seconds) == {"alcn", "alds", "train on"}
