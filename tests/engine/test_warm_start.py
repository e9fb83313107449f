"""What a search takes over from another run, and what it does not."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

import autocompress as ac
from autocompress.checkpoint import open_checkpoint
from autocompress.engine.identity import identity
from autocompress.engine.prepare import Prepared, prepare
from autocompress.engine.replay import replay
from autocompress.engine.settings import Settings
from autocompress.engine.warm_start import WarmStart, plan_warm_start
from autocompress.measure import Objective, measure_split
from autocompress.study import SearchStudy, sqlite_url

pytestmark = pytest.mark.usefixtures("shared_ray")

FRONT = (Objective("accuracy", "maximize"), Objective("bytes", "minimize"))


def prepared_on(run: Path, out: Path, **options: Any) -> Prepared:
    return prepare("digits", Settings(warm_start=str(run), out=str(out), **options))


def planned(run: Path, out: Path, **options: Any) -> WarmStart:
    prepared = prepared_on(run, out, **options)
    return plan_warm_start(prepared, identity(prepared))


@pytest.fixture(scope="module")
def continued(
    finished: ac.SearchResult, tmp_path_factory: pytest.TempPathFactory
) -> tuple[ac.SearchResult, Path]:
    """A search that was warm-started from a finished run, which is gone since; and that run."""
    folder = tmp_path_factory.mktemp("warm")
    old = Path(shutil.copytree(finished.out, folder / "old"))
    options = {"trials": 1, "epochs": 4, "workers": 1, "out": folder / "new", "warm_start": old}
    options["objectives"] = ["accuracy", "macs"]
    ac.search("digits", **options)
    shutil.rmtree(old)
    return ac.search("digits", **options), old


def test_models_of_the_other_run_are_trials_of_this_one_and_started_from(
    continued: tuple[ac.SearchResult, Path], finished: ac.SearchResult, digits: ac.Task
) -> None:
    result, old = continued
    # Continued once more, and nothing was taken over twice.
    taken = {t.user_attrs["taken_over"]: t for t in result.study.trials if "taken_over" in t.user_attrs}
    coded = {t.number for t in finished.study.trials if "extra" in t.user_attrs}
    lines = [[n for n in point.lineage if n not in coded] for point in finished.front]
    # Codes of the reference have no other line than that.
    assert set(taken) == {line[-1] for line in lines if line}
    assert all(trial.user_attrs["warm_start"] == f"{old}/trials/{n:04d}" for n, trial in taken.items())
    trained = [t for t in result.study.trials if t.number and "extra" not in t.user_attrs]
    assert len(result.study.trials) == 1 + len(taken) + len(trained)
    assert len(trained) == 1
    assert trained[0].user_attrs["details"]["config"]["parent"] in {t.number for t in taken.values()}
    kept = [point for point in result.front if point.config["taken_over"]]
    assert kept
    for point in kept:
        assert point.lineage == (point.trial,)
        assert measure_split(point.load(), digits.val, digits).values["accuracy"] == point.metrics["accuracy"]
        module = point.module()
        assert sum(p.numel() for p in module.parameters()) == point.metrics["params"]


@pytest.mark.parametrize(
    ("theirs", "ours", "reason"),
    [
        ({}, {"exclude": ("features.0",)}, "it did not exclude 'features.0', which is to stay here"),
        (
            {"at_least": {"features.0": 0.25}},
            {"at_least": {"features.*": 0.5}},
            "it did not keep at least 0.5 of 'features.0', which is to stay here",
        ),
        ({"exclude": ["features.*"]}, {"exclude": ("features.0",), "at_least": {"features.4": 0.5}}, None),
        ({"at_least": {"Conv2d": 0.5}}, {"at_least": {"features.0": 0.5}}, None),
    ],
)
def test_models_are_taken_over_from_runs_with_limits_as_strict_alone(
    theirs: dict[str, Any],
    ours: dict[str, Any],
    reason: str | None,
    finished: ac.SearchResult,
    tmp_path: Path,
) -> None:
    old = Path(shutil.copytree(finished.out, tmp_path / "old"))
    data = json.loads((old / "run.json").read_text())
    data["identity"] |= theirs
    (old / "run.json").write_text(json.dumps(data))
    plan = planned(old, tmp_path / "new", **ours)
    assert bool(plan.models) == (reason is None)
    assert reason is None or reason in plan.note
    assert reason is None or plan.moves


def test_a_trial_that_began_with_one_is_trained_again_without_the_other_run(
    continued: tuple[ac.SearchResult, Path],
) -> None:
    result, old = continued
    assert not old.exists()
    number = next(t.number for t in result.study.trials if t.number and "extra" not in t.user_attrs)
    details = result.study.trials[number].user_attrs["details"]
    stored, again, path = replay(result.out, number)
    # What was not good enough to be kept has no file, whose size was estimated.
    measured = set(stored) - set(details["estimated"])
    assert "accuracy" in measured
    assert {name: again.metrics[name] for name in measured} == {name: stored[name] for name in measured}
    assert open_checkpoint(path).manifest["config"]["parent"] == details["config"]["parent"]


def test_a_run_that_was_warm_started_goes_on_as_that_alone(
    continued: tuple[ac.SearchResult, Path],
) -> None:
    options = {"epochs": 4, "objectives": ["accuracy", "macs"], "out": continued[0].out}
    with pytest.raises(ac.UsageError, match=r"warm_start of the run in '.*' is '.*old' but got None"):
        ac.search("digits", **options)


def test_a_run_without_its_reference_lends_its_moves_and_says_why(
    finished: ac.SearchResult, tmp_path: Path
) -> None:
    old = Path(shutil.copytree(finished.out, tmp_path / "old"))
    shutil.rmtree(old / "reference")
    plan = planned(old, tmp_path / "run", trials=4)
    assert not plan.models
    assert "no models, as its reference is missing or damaged; first come" in plan.note


def test_of_another_model_the_moves_come_first(finished: ac.SearchResult, tmp_path: Path) -> None:
    plan = planned(finished.out, tmp_path / "run", model="mlp", trials=4)
    assert not plan.models
    assert "no models, as its model has parameters of other names or shapes; first come 2 of" in plan.note
    trials = {trial.number: trial for trial in finished.study.trials}
    assert all(trials[number].params == move for number, move in plan.moves.items())
    made = SearchStudy(sqlite_url(tmp_path), "test", FRONT)
    made.add_reference({"accuracy": 0.9, "bytes": 100.0}, {})
    plan.enqueue(made)
    plan.enqueue(made)
    for number, move in plan.moves.items():
        trial = made.ask()
        assert made.study.trials[trial.number].system_attrs["fixed_params"] == move
        assert trial.user_attrs["warm_start"] == f"{finished.out}/trials/{number:04d}"
        assert trial.user_attrs["asked"] == trials[number].user_attrs["asked"]
        assert "extra" not in trial.user_attrs
    assert not made.waiting()


@pytest.mark.parametrize(
    ("others", "told"),
    [
        ((), None),
        (("train",), None),  # disjoint from its own validation and test rows, which are ours
        (("test",), None),
        (("val",), "its val rows are others"),
        (("train", "test"), "its train and test rows are others"),
    ],
)
def test_models_that_may_have_been_trained_on_our_validation_are_not_taken_over(
    others: tuple[str, ...], told: str | None, finished: ac.SearchResult, tmp_path: Path
) -> None:
    old = Path(shutil.copytree(finished.out, tmp_path / "old"))
    stored = json.loads((old / "run.json").read_text())
    for name in others:
        stored["identity"]["digests"][f"data.{name}"] = "another"
    (old / "run.json").write_text(json.dumps(stored))
    plan = planned(old, tmp_path / "run")
    assert bool(plan.models) == (told is None)
    assert bool(plan.moves) == (told is not None)
    assert told is None or f"no models, as {told}, so it may have trained on rows" in plan.note


def of_another_version(old: Path) -> None:
    stored = json.loads((old / "run.json").read_text())
    (old / "run.json").write_text(json.dumps({**stored, "schema": 99}))


def without_a_front(old: Path) -> None:
    shutil.rmtree(old / "trials")
    (old / "trials").mkdir()


@pytest.mark.parametrize(
    ("harm", "message"),
    [
        (shutil.rmtree, "RUN must be a folder that a search wrote but '.*old' is not"),
        (of_another_version, "RUN must be of schema 1 but '.*old' is of 99"),
        (without_a_front, "warm_start must have a compressed model on its front but '.*old' has none"),
    ],
)
def test_what_is_no_run_to_start_from_is_refused_before_anything_is_written(
    harm: Callable[[Path], None], message: str, finished: ac.SearchResult, tmp_path: Path
) -> None:
    old = Path(shutil.copytree(finished.out, tmp_path / "old"))
    harm(old)
    with pytest.raises(ac.UsageError, match=message):
        ac.search("digits", warm_start=old, out=tmp_path / "new", progress=ac.Progress())
    assert not (tmp_path / "new").exists()


def test_a_run_is_not_where_it_starts_from_itself(finished: ac.SearchResult) -> None:
    prepared = prepared_on(finished.out, finished.out)
    with pytest.raises(ac.UsageError, match="warm_start must be another run than out"):
        plan_warm_start(prepared, identity(prepared))


def test_a_front_that_is_of_no_use_here_is_refused(finished: ac.SearchResult, tmp_path: Path) -> None:
    prepared = prepared_on(finished.out, tmp_path / "run", model="mlp")
    without_moves = replace(prepared, spaces={"other": prepared.spaces["alcn"]})
    with pytest.raises(ac.UsageError, match=r"none of its \d+ moves can be"):
        plan_warm_start(without_moves, identity(prepared))
