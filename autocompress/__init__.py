"""autocompress: a Pareto front of compressed, deployable checkpoints from one command.

import autocompress as ac
result = ac.search("digits", trials=24)
point = result.pick("knee")
model = point.load()
"""

from autocompress.errors import (
    AutocompressError,
    CheckpointError,
    SearchFailedError,
    TrialError,
    UsageError,
)
from autocompress.report import Progress
from autocompress.result import ParetoModel, SearchResult
from autocompress.search import Compressed, Settings, compress, load_run, search
from autocompress.task import ModelProfile, Recipe, Task

__version__ = "0.1.0"

__all__ = [
    "AutocompressError",
    "CheckpointError",
    "Compressed",
    "ModelProfile",
    "ParetoModel",
    "Progress",
    "Recipe",
    "SearchFailedError",
    "SearchResult",
    "Settings",
    "Task",
    "TrialError",
    "UsageError",
    "compress",
    "load_run",
    "search",
]
