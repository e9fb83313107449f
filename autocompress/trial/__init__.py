"""One trial, from the reference to a measured checkpoint; knows neither Optuna nor Ray."""

from autocompress.trial.config import Stage, TrialConfig
from autocompress.trial.measuring import Measuring, Reference
from autocompress.trial.run import (
    TrialResult,
    load_state,
    run_trial,
    seed_everything,
    train_reference,
)
from autocompress.trial.rungs import epoch_values, rung_metrics
from autocompress.trial.stages import (
    CompressedStage,
    compress_in_stages,
    compress_stage,
    compressing_epochs,
    make_method,
)
from autocompress.trial.wording import changed_settings, move_text, trial_name

__all__ = [
    "CompressedStage",
    "Measuring",
    "Reference",
    "Stage",
    "TrialConfig",
    "TrialResult",
    "changed_settings",
    "compress_in_stages",
    "compress_stage",
    "compressing_epochs",
    "epoch_values",
    "load_state",
    "make_method",
    "move_text",
    "run_trial",
    "rung_metrics",
    "seed_everything",
    "train_reference",
    "trial_name",
]
