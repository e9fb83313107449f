"""One trial, from the reference to a measured checkpoint; knows neither Optuna nor Ray."""

from autocompress.trial.config import Stage, TrialConfig
from autocompress.trial.run import (
    Measuring,
    Reference,
    TrialResult,
    load_state,
    run_trial,
    seed_everything,
    train_reference,
)
from autocompress.trial.stages import (
    CompressorHooks,
    compress_stage,
    compressing_epochs,
    make_compressor,
    split_epochs,
)

__all__ = [
    "CompressorHooks",
    "Measuring",
    "Reference",
    "Stage",
    "TrialConfig",
    "TrialResult",
    "compress_stage",
    "compressing_epochs",
    "load_state",
    "make_compressor",
    "run_trial",
    "seed_everything",
    "split_epochs",
    "train_reference",
]
