"""The Optuna study, the only record of trials; only this package and search_spaces/ import Optuna."""

from autocompress.study.importance import Importance, importance
from autocompress.study.moves import unasked
from autocompress.study.record import (
    ASKED,
    CONFIG,
    DIVERGED,
    EXTRA,
    INTERRUPTED,
    TAKEN_OVER,
    SearchStudy,
)
from autocompress.study.samplers import SAMPLERS, make_sampler
from autocompress.study.storage import (
    STORAGE_ERRORS,
    STORAGE_VARIABLE,
    STUDY_NAME,
    check_storage,
    masked,
    secrets_of,
    sqlite_url,
    unmasked,
)
from autocompress.study.tracking import Tracker

__all__ = [
    "ASKED",
    "CONFIG",
    "DIVERGED",
    "EXTRA",
    "INTERRUPTED",
    "SAMPLERS",
    "STORAGE_ERRORS",
    "STORAGE_VARIABLE",
    "STUDY_NAME",
    "TAKEN_OVER",
    "Importance",
    "SearchStudy",
    "Tracker",
    "check_storage",
    "importance",
    "make_sampler",
    "masked",
    "secrets_of",
    "sqlite_url",
    "unasked",
    "unmasked",
]
