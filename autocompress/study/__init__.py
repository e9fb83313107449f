"""The Optuna study, the only record of trials; only this package and search_spaces/ import Optuna."""

from autocompress.study.record import ASKED, EXTRA, TAKEN_OVER, SearchStudy
from autocompress.study.samplers import SAMPLERS, make_sampler
from autocompress.study.storage import STUDY_NAME, check_storage, sqlite_url
from autocompress.study.tracking import Tracker

__all__ = [
    "ASKED",
    "EXTRA",
    "SAMPLERS",
    "STUDY_NAME",
    "TAKEN_OVER",
    "SearchStudy",
    "Tracker",
    "check_storage",
    "make_sampler",
    "sqlite_url",
]
