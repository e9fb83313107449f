"""A finished search: its front, its folder, its determinism."""

from __future__ import annotations

import copy
import json
import re
import shutil
import threading
import time
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import optuna
import pytest
import torch
from optuna_dashboard.artifact._backend import list_trial_artifacts

import autocompress as ac
from autocompress.checkpoint import open_checkpoint
from autocompress.engine.replay import replay
from autocompress.errors import DivergedError
from autocompress.measure import measure_split
from autocompress.pareto import dominates
from autocompress.report.progress import TrialEnd
from autocompress.training.loop import Trainer
from tests.test_trial import Branched, without_auxiliary

pytestmark = pytest.mark.usefixtures("shared_ray")


def test_front_points_dominate_each_other_nowhere_and_are_smaller(finished: ac.SearchResult) -> None:
    assert finished.front
    costs = finished.costs(finished.front).tolist()
    assert not any(dominates(a, b) for a in costs for b in costs)
    assert [-c[0] for c in costs] == sorted((-c[0] for c in costs), reverse=True)
    compressed = [p for p in finished.front if p.trial]
    assert compressed
    assert all(p.ratios["bytes"] < 1 for p in compressed)


def test_stored_metrics_agree_with_the_loaded_program(finished: ac.SearchResult, digits: ac.Task) -> None:
    for point in [finished.reference, *finished.front]:
        program = point.load()
        val = measure_split(program, digits.val, digits).values
        assert val["accuracy"] == point.metrics["accuracy"]
        test = measure_split(program, digits.test, digits).values
        assert test["accuracy"] == point.test_metrics["accuracy"]
        assert (point.path / "model.pt2").stat().st_size == point.metrics["bytes"]


def test_manifest_says_how_raw_inputs_become_the_programs(finished: ac.SearchResult, digits: ac.Task) -> None:
    spec = open_checkpoint(finished.front[0].path).manifest["input"]
    raw = digits.test.x.astype(np.float32)
    mean, std = (np.array(spec[k], dtype=np.float32).reshape(1, -1, 1, 1) for k in ("mean", "std"))
    inputs = torch.from_numpy((raw * np.float32(spec["scale"]) - mean) / std)
    with torch.no_grad():
        accuracy = (finished.front[0].load()(inputs).argmax(1).numpy() == digits.test.targets).mean()
    assert accuracy == finished.front[0].test_metrics["accuracy"]
    assert spec["shape"] == [None, 1, 8, 8]


def test_trial_0_is_the_reference(finished: ac.SearchResult) -> None:
    trials = finished.study.trials
    assert trials[0].values == [finished.reference.metrics["accuracy"], finished.reference.metrics["bytes"]]
    assert sum("extra" not in trial.user_attrs for trial in trials) == 5


def test_trials_start_where_others_ended_and_models_are_stored_as_codes_too(
    finished: ac.SearchResult,
) -> None:
    trials = [trial for trial in finished.study.trials if trial.number]
    configs = {trial.number: trial.user_attrs["details"]["config"] for trial in trials}
    trained = [number for number, config in configs.items() if config["epochs"]]
    assert [configs[number]["parent"] for number in trained] == [0, *trained[:-1]]
    extra = [trial.number for trial in trials if "extra" in trial.user_attrs]
    assert extra == [number for number, config in configs.items() if not config["epochs"]]
    assert all([s["method"] for s in configs[number]["stages"]] == ["lc"] for number in extra)
    for point in finished.front:
        parents = [configs[number]["parent"] for number in point.lineage]
        assert parents == [0, *point.lineage][:-1]
        assert not point.trial or point.lineage[-1] == point.trial


def test_the_dashboard_shows_a_picture_of_each_kept_trial(finished: ac.SearchResult) -> None:
    study = finished.study
    of_study = study._storage.get_study_system_attrs(study._study_id)
    kept = [p.trial for p in [*finished.front, *finished.contenders] if p.trial]
    assert kept
    for number in kept:
        trial = study.trials[number]
        (picture,) = list_trial_artifacts(of_study, trial.system_attrs, trial)
        assert picture["mimetype"] == "image/png"
        assert picture["filename"] == f"trial-{number}.png"
        content = (finished.out / "artifacts" / picture["artifact_id"]).read_bytes()
        assert content.startswith(b"\x89PNG")
    assert len(list((finished.out / "artifacts").iterdir())) == len(kept)


def test_only_trials_without_a_checkpoint_have_estimated_bytes(finished: ac.SearchResult) -> None:
    kept = {p.trial for p in [*finished.front, *finished.contenders]}
    for trial in finished.study.trials[1:]:
        estimated = trial.user_attrs["details"]["estimated"]
        folder = finished.out / "trials" / f"{trial.number:04d}"
        assert not (estimated and trial.number in kept)
        assert not (estimated and folder.exists())
        if folder.exists():
            assert trial.user_attrs["metrics"]["bytes"] == (folder / "model.pt2").stat().st_size


def test_run_folder_holds_what_the_contract_says(finished: ac.SearchResult) -> None:
    stored = json.loads((finished.out / "run.json").read_text())
    assert stored["identity"]["seed"] == 0
    assert stored["reference"]["metrics"] == finished.reference.metrics
    assert "torch" in stored["versions"]
    report = (finished.out / "report.html").read_text()
    assert '<script type="application/json" id="charts">' in report
    assert not re.search(r"(src|href)=.http", report)
    kept = {p.name for p in (finished.out / "trials").iterdir()}
    assert {f"{p.trial:04d}" for p in finished.front if p.trial} <= kept


def test_loaded_run_is_the_finished_one(finished: ac.SearchResult) -> None:
    assert ac.load_run(finished.out).to_json() == finished.to_json()
    assert len(finished.to_frame()) == len(finished.study.trials)


def test_a_point_of_a_named_task_is_a_module_that_computes_what_its_file_does(
    finished: ac.SearchResult, digits: ac.Task
) -> None:
    inputs = digits.example(8)
    for point in ac.load_run(finished.out).front:
        with torch.no_grad():
            assert torch.allclose(point.module().eval()(inputs), point.load()(inputs), atol=1e-5)


def test_a_model_of_the_front_trains_on_and_is_where_another_search_starts(
    residual_task: ac.Task, tmp_path: Path
) -> None:
    # Called like a built-in task, whose model is another one.
    task = replace(residual_task, name="digits")
    options = {"trials": 2, "workers": 1, "methods": ["alcn"], "constraints": [], "progress": ac.Progress()}
    result = ac.search(task, out=tmp_path / "first", **options)
    point = next(point for point in result.front if point.trial)
    module = point.module()
    assert type(module) is type(residual_task.model())
    assert sum(p.numel() for p in module.parameters()) == point.metrics["params"]
    (loaded,) = (other for other in ac.load_run(tmp_path / "first").front if other.trial == point.trial)
    with pytest.raises(
        ac.UsageError, match=rf"use ac\.rebuild\(MyModel\(\), '{re.escape(str(point.path))}'\)"
    ):
        loaded.module()
    Trainer(task, 1).fit(module, 1)
    again = replace(task, model=lambda: copy.deepcopy(module), weights=module.state_dict(), name="again")
    further = ac.search(again, out=tmp_path / "second", **options)
    assert further.reference.metrics["params"] == point.metrics["params"]
    smaller = [other for other in further.front if other.trial]
    assert all(other.metrics["params"] <= point.metrics["params"] for other in smaller)
    rebuilt = ac.rebuild(point.module(), smaller[0].path)
    inputs = task.example(8)
    with torch.no_grad():
        assert torch.allclose(rebuilt.eval()(inputs), smaller[0].load()(inputs), atol=1e-5)


def test_the_same_seed_and_one_worker_give_the_same_front(finished: ac.SearchResult, tmp_path: Path) -> None:
    again = ac.search("digits", trials=4, epochs=4, workers=1, out=tmp_path / "again")
    assert again.to_json() == finished.to_json()


class Notes(ac.Progress):
    """Keeps the lines that a search says."""

    def __init__(self) -> None:
        self.lines: list[str] = []

    def note(self, text: str) -> None:
        self.lines.append(text)


def test_the_driver_trains_nothing_itself(
    residual_task: ac.Task, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    fit = Trainer.fit

    def refused(trainer: Trainer, model: torch.nn.Module, *options: Any) -> None:
        """Let one batch be tried, on the CPU."""
        if trainer.steps_per_epoch > 1 or next(model.parameters()).device.type != "cpu":
            raise AssertionError("a GPU would be the driver's")
        fit(trainer, model, *options)

    class Epochs(ac.Progress):
        """Keeps what is told of the reference."""

        def __init__(self) -> None:
            self.seen: list[tuple[int, int]] = []

        def reference_epoch(self, epoch: int, epochs: int) -> None:
            self.seen.append((epoch, epochs))

    # In this process alone: workers import the package anew.
    monkeypatch.setattr(Trainer, "fit", refused)
    told = Epochs()
    task = residual_task.with_recipe(reference_epochs=3)
    options = {"trials": 1, "workers": 1, "methods": ["alcn"], "constraints": []}
    result = ac.search(task, progress=told, out=tmp_path / "run", **options)
    assert [trial.state.name for trial in result.study.trials] == ["COMPLETE", "COMPLETE"]
    assert told.seen == [(0, 3), (1, 3), (2, 3), (3, 3)]


def test_what_goes_wrong_with_the_reference_is_told_as_it_was_there(
    residual_task: ac.Task, tmp_path: Path
) -> None:
    options = {"trials": 1, "workers": 1, "methods": ["alcn"], "progress": ac.Progress()}
    with pytest.raises(DivergedError, match=r"the training loss became (nan|inf) in epoch \d") as raised:
        ac.search(residual_task.with_recipe(lr=1e30), out=tmp_path / "run", **options)
    assert "train_reference" in raised.value.__notes__[0]
    assert not (tmp_path / "run" / "reference").exists()


def test_a_finished_run_is_continued_with_more_trials_and_refused_with_other_settings(
    finished: ac.SearchResult, tmp_path: Path
) -> None:
    options = {"epochs": 4, "workers": 1, "out": tmp_path / "run"}
    shutil.copytree(finished.out, tmp_path / "run")
    told = Notes()
    more = ac.search("digits", trials=5, **options, progress=told)
    # The same rows as before, and said again.
    assert "validation is 144 rows carved from train, stratified" in told.lines
    assert any(
        line.startswith("5 trials: alcn makes the smallest so far smaller") and "; too few to try" in line
        for line in told.lines
    )
    before = [t.values for t in finished.study.trials]
    assert [t.values for t in more.study.trials[: len(before)]] == before
    assert sum("extra" not in trial.user_attrs for trial in more.study.trials) == 6
    with pytest.raises(ac.UsageError, match=r"epochs of the run in .* is 4 but got 3"):
        ac.search("digits", **{**options, "epochs": 3})


def test_failing_trials_do_not_end_the_search(tmp_path: Path, digits: ac.Task) -> None:
    class Fragile(torch.nn.Module):
        """Refuses to train when it is narrow."""

        def __init__(self) -> None:
            super().__init__()
            self.first = torch.nn.Linear(64, 32)
            self.head = torch.nn.Linear(32, 10)

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            trains = self.training and torch.is_grad_enabled()
            if trains and self.first.weight.shape[0] < 14:
                raise RuntimeError("too narrow")
            return self.head(torch.relu(self.first(x.flatten(1))))

    task = replace(digits, model=Fragile, name="fragile", recipe=ac.Recipe(epochs=2))
    options = {"trials": 8, "methods": ["alcn"], "sampler": "random", "constraints": []}
    result = ac.search(task, **options, out=tmp_path / "run")
    states = [t.state.name for t in result.study.trials[1:]]
    assert set(states) == {"COMPLETE", "FAIL"}
    failed = [t for t in result.study.trials if t.state.name == "FAIL"]
    assert {t.user_attrs["reason"] for t in failed} == {"RuntimeError: too narrow"}
    said: list[str] = []
    with pytest.raises(RuntimeError, match="too narrow"):
        replay(result.out, failed[0].number, task, note=said.append)
    assert "in forward" in said[0]
    assert said[0].endswith(f"trial {failed[0].number}: RuntimeError: too narrow")
    for folder in (tmp_path / "run" / "trials").iterdir():
        open_checkpoint(folder)


def test_no_success_at_all_is_a_failed_search(tmp_path: Path, digits: ac.Task) -> None:
    space = tmp_path / "broken.py"
    space.write_text("def suggest(trial, profile):\n    raise RuntimeError('no idea')\n")
    with pytest.raises(ac.SearchFailedError, match=r"none of the 2 trials succeeded: .*no idea"):
        ac.search("digits", spaces=[str(space)], trials=2, epochs=1, out=tmp_path / "run")
    said: list[str] = []
    with pytest.raises(ac.UsageError, match=r"trial must be one of those that ran, \[\], but got 1, whose"):
        replay(tmp_path / "run", 1, note=said.append)
    assert "in suggest" in said[0]
    assert said[0].endswith("trial 1: its search space failed: RuntimeError: no idea")


def test_what_optuna_refuses_of_a_space_fails_its_trial_alone(tmp_path: Path) -> None:
    def suggest(trial: optuna.Trial, profile: ac.ModelProfile) -> object:
        # Choices must be the same in all trials.
        ratio = trial.suggest_categorical("own.ratio", [0.5, 0.6] if trial.number != 2 else [0.4, 0.6])
        return ac.Alcn.Config(initial_ratio=ratio)

    options = {"epochs": 1, "workers": 1, "constraints": [], "sampler": "random", "out": tmp_path / "run"}
    result = ac.search("digits", spaces=[suggest], trials=3, **options)
    _, *trials = result.study.trials
    assert [trial.state.name for trial in trials] == ["COMPLETE", "FAIL", "COMPLETE"]
    assert trials[1].user_attrs["reason"].startswith("its search space failed: ValueError: Categorical")


def test_own_search_spaces_replace_the_built_in_ones(tmp_path: Path) -> None:
    space = tmp_path / "narrow.py"
    space.write_text(
        "import autocompress as ac\n"
        "def suggest(trial, profile):\n"
        "    return ac.Alcn.Config(initial_ratio=trial.suggest_float('narrow', 0.2, 0.3))\n"
    )
    result = ac.search("digits", spaces=[str(space)], trials=1, epochs=2, workers=1, out=tmp_path / "run")
    assert "narrow" in result.study.trials[1].params
    assert "alcn.initial_ratio" not in result.study.trials[1].params


def test_a_space_may_be_a_function_that_nothing_could_pickle(tmp_path: Path) -> None:
    lock = threading.Lock()

    def suggest(trial: optuna.Trial, profile: ac.ModelProfile) -> object:
        with lock:
            return ac.Alcn.Config(initial_ratio=trial.suggest_float("own.ratio", 0.2, 0.9))

    suggest.move = lambda profile, keep: {"own.ratio": max(0.2, round(keep, 3))}  # type: ignore[attr-defined]
    options = {"epochs": 2, "workers": 1, "constraints": [], "out": tmp_path / "run"}
    ac.search("digits", spaces=[suggest], trials=1, **options)
    result = ac.search("digits", spaces=[suggest], trials=2, **options)
    first, second = (trial.params["own.ratio"] for trial in result.study.trials[1:])
    assert first == 0.2  # the share of the reference that a single trial is to keep is less
    assert second >= 0.2
    # A trial that is trained again needs no space.
    stored, again, _ = replay(tmp_path / "run", 1)
    assert again.metrics == stored


def test_time_limit_ends_the_search_and_keeps_what_was_cut_off(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    clock = SimpleNamespace(now=0.0)
    times = SimpleNamespace(monotonic=lambda: clock.now, sleep=time.sleep)
    monkeypatch.setattr("autocompress.engine.interruption.time", times)

    class Hour(ac.Progress):
        """In the first epoch of the second trial the time ends that trials have of an hour."""

        def trial_epoch(self, number: int, epoch: int, epochs: int) -> None:
            if (number, epoch) == (2, 1):
                clock.now = 3600.0 - 60.0 + 1.0

    options = {"trials": 5, "epochs": 2, "workers": 1, "constraints": [], "out": tmp_path / "run"}
    options["objectives"] = ["accuracy", "macs"]
    result = ac.search("digits", timeout=3600, progress=Hour(), **options)
    assert not result.interrupted
    assert result.study.trials[1].state.name == "COMPLETE"
    cut = [t for t in result.study.trials if t.user_attrs.get("reason") == "the time limit was reached"]
    assert [t.number for t in cut] == [2]
    # The same command would begin with it.
    waiting = [t.system_attrs["fixed_params"] for t in result.study.trials[3:] if t.state.name == "WAITING"]
    assert cut[0].params in waiting


class Ends(ac.Progress):
    """Keeps how trials ended."""

    def __init__(self) -> None:
        self.pruned: dict[int, Mapping[str, float]] = {}

    def trial_end(self, end: TrialEnd) -> None:
        if end.state == "pruned":
            self.pruned[end.number] = end.metrics


def test_early_stopping_records_pruned_trials_with_their_values_and_goes_on(tmp_path: Path) -> None:
    options = {"early_stopping": True, "sampler": "random", "constraints": [], "workers": 1}
    # Codes multiply as often as what they stand for: accuracy alone tells the trials apart.
    options |= {"model": "mlp", "methods": ["lc"], "objectives": ["accuracy", "macs"]}
    options |= {"out": tmp_path / "run", "epochs": 4}
    told = Ends()
    ac.search("digits", trials=6, **options, progress=told)
    result = ac.search("digits", trials=9, **options, progress=told)
    by_state: dict[str, list[optuna.trial.FrozenTrial]] = {}
    for trial in result.study.trials[1:]:
        by_state.setdefault(trial.state.name, []).append(trial)
    assert set(by_state) == {"COMPLETE", "PRUNED"}
    assert sum(map(len, by_state.values())) == 9
    for trial in by_state["PRUNED"]:
        *_, (rung, metrics) = trial.user_attrs["rungs"].items()
        assert re.fullmatch(
            rf"stopped at rung {rung}: \d of the \d others there are better", trial.user_attrs["reason"]
        )
        assert metrics == trial.user_attrs["metrics"] == told.pruned[trial.number]
        assert metrics.keys() == result.reference.metrics.keys()
        assert trial.user_attrs["details"]["config"]["stages"][0]["method"] == "lc"
        assert not (tmp_path / "run" / "trials" / f"{trial.number:04d}").exists()
    for trial in by_state["COMPLETE"]:
        assert list(trial.user_attrs["rungs"]) == ["1", "3"]
    # Trials of the second call are compared with those of the first.
    last = max(by_state["PRUNED"], key=lambda trial: trial.number)
    assert last.number > 6
    assert (
        f"of the {last.number - 1} others" in last.user_attrs["reason"]
        or "rung 3" in (last.user_attrs["reason"])
    )


def test_a_search_measures_and_compresses_the_prepared_model(
    tmp_path: Path, residual_task: ac.Task, capsys: pytest.CaptureFixture[str]
) -> None:
    task = replace(
        residual_task, model=Branched, weights=Branched().state_dict(), prepare=without_auxiliary
    ).with_recipe(epochs=1)
    result = ac.search(task, methods=["alcn"], trials=1, constraints=[], workers=1, out=tmp_path / "run")
    said = "weight norm folded into 1 weight, 1 block merged by reparameterize(); trials train the model"
    assert said in " ".join(capsys.readouterr().err.split())
    # The convolution that is entered, the one that two were merged to, and the head.
    plain = (3 * 9 + 1) * 8 + (8 * 9 + 1) * 8 + 9 * 5
    assert result.reference.metrics["params"] == plain
    x = task.example(8)
    for point in [result.reference, *result.front]:
        module = point.module().eval()
        assert isinstance(module, Branched)
        assert torch.allclose(module(x), point.load()(x), atol=1e-5)
