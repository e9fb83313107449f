"""Trials as runs of MLflow or Weights & Biases, by Optuna's own callbacks."""

from __future__ import annotations

import importlib
import logging
from collections.abc import Callable, Sequence
from typing import Any

import optuna
from optuna.trial import FrozenTrial

from autocompress.errors import SettingsError, one_line

Callback = Callable[[optuna.Study, FrozenTrial], None]


class Tracker:
    """Tells MLflow and Weights & Biases how trials ended; what goes wrong there ends no search.

    Args:
        metrics: names of the objectives, in the study's order.
        mlflow: tracking URI of MLflow; None does not track there.
        wandb: project of Weights & Biases; None does not track there.
        note: hears, once each, why one of them takes no more trials.

    Raises:
        SettingsError: a package that this needs is not installed.
    """

    def __init__(
        self, metrics: Sequence[str], mlflow: str | None, wandb: str | None, note: Callable[[str], None]
    ) -> None:
        self.note = note
        self.callbacks: dict[str, Callback] = {}
        if mlflow is not None:
            kind = _callback("mlflow", "MLflowCallback")
            self.callbacks["mlflow"] = kind(tracking_uri=mlflow, metric_name=list(metrics))
        if wandb is not None:
            kind = _callback("wandb", "WeightsAndBiasesCallback")
            options = {"project": wandb, "settings": {"silent": True}}
            self.callbacks["wandb"] = kind(metric_name=list(metrics), wandb_kwargs=options, as_multirun=True)

    def tell(self, study: optuna.Study, number: int) -> None:
        """Pass a trial that ended on.

        Args:
            study: that the trial is in.
            number: of the trial.
        """
        for name, callback in list(self.callbacks.items()):
            try:
                callback(study, study.get_trials(deepcopy=False)[number])
            except Exception as error:  # a server that is gone, a name that it refuses
                del self.callbacks[name]
                self.note(f"{name} gets no more trials: {one_line(error)}")


def _callback(package: str, name: str) -> Any:
    try:
        importlib.import_module(package)
        # It announces each run on standard error, where the display is.
        logging.getLogger("mlflow").setLevel(logging.ERROR)
        return getattr(importlib.import_module("optuna_integration"), name)
    except ImportError as error:
        raise SettingsError(
            f"{package} must be installed, and optuna-integration, to track trials there but: "
            f"{one_line(error)} (pip install 'autocompress[{package}]')."
        ) from error
