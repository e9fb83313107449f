"""Trials are passed on to MLflow and Weights & Biases, by callbacks that Optuna brings."""

from __future__ import annotations

import sys
from pathlib import Path
from types import ModuleType
from typing import Any

import optuna
import pytest

from autocompress.engine.settings import Settings
from autocompress.errors import SettingsError
from autocompress.measure import Objective
from autocompress.study import SearchStudy, Tracker, sqlite_url

OBJECTIVES = (Objective("accuracy", "maximize"), Objective("bytes", "minimize"))
REFERENCE = {"accuracy": 0.9, "bytes": 100.0}


class Callback:
    """Stands for Optuna's, whose packages the tests do not need."""

    def __init__(self, **options: Any) -> None:
        self.options, self.seen = options, []

    def __call__(self, study: optuna.Study, trial: optuna.trial.FrozenTrial) -> None:
        if trial.state is optuna.trial.TrialState.PRUNED:
            raise ConnectionError("the server is gone\nas of now")
        self.seen.append((study.study_name, trial.number, trial.state.name, trial.values))


@pytest.fixture
def callbacks(monkeypatch: pytest.MonkeyPatch) -> None:
    integration = ModuleType("optuna_integration")
    integration.MLflowCallback = integration.WeightsAndBiasesCallback = Callback  # type: ignore[attr-defined]
    for name, module in (("optuna_integration", integration), ("mlflow", None), ("wandb", None)):
        monkeypatch.setitem(sys.modules, name, module or ModuleType(name))


@pytest.mark.usefixtures("callbacks")
def test_ends_of_trials_are_passed_on_until_a_tracker_fails(tmp_path: Path) -> None:
    study = SearchStudy(sqlite_url(tmp_path), "mine", OBJECTIVES)
    study.add_reference(REFERENCE, {})
    notes: list[str] = []
    tracker = Tracker(["accuracy", "bytes"], "file:runs", "project", notes.append)
    mlflow, wandb = tracker.callbacks["mlflow"], tracker.callbacks["wandb"]
    assert mlflow.options == {"tracking_uri": "file:runs", "metric_name": ["accuracy", "bytes"]}
    assert wandb.options["wandb_kwargs"]["project"] == "project"
    number = study.ask().number
    study.complete(number, {"accuracy": 0.8, "bytes": 50.0}, REFERENCE, {})
    tracker.tell(study.study, number)
    number = study.ask().number
    study.prune(number, "others are better")
    for _ in range(2):
        tracker.tell(study.study, number)
    for callback in (mlflow, wandb):
        assert callback.seen == [("mine", 1, "COMPLETE", [0.8, 50.0])]
    assert notes == [f"{name} gets no more trials: the server is gone" for name in ("mlflow", "wandb")]


@pytest.mark.parametrize(("mlflow", "wandb", "package"), [("x", None, "mlflow"), (None, "x", "wandb")])
def test_what_is_not_installed_is_asked_for(
    mlflow: str | None, wandb: str | None, package: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, package, None)
    with pytest.raises(SettingsError, match=rf"{package} must be installed.*pip install 'autocompress\["):
        Tracker(["accuracy"], mlflow, wandb, print)


def test_the_password_of_a_tracking_server_is_not_stored() -> None:
    settings = Settings(mlflow="https://me:hunter2@tracking.example:5000")
    assert settings.to_json()["mlflow"] == "https://me:***@tracking.example:5000"
