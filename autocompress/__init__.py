"""autocompress: a Pareto front of compressed, deployable checkpoints from one command.

import autocompress as ac
result = ac.search("digits", trials=24)
point = result.pick("knee")
model = point.load()
"""

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from autocompress.checkpoint import rebuild
    from autocompress.engine.compress import Compressed, compress
    from autocompress.engine.results import load_run
    from autocompress.engine.run import search
    from autocompress.engine.settings import Settings
    from autocompress.errors import (
        AutocompressError,
        CheckpointError,
        SearchFailedError,
        TrialError,
        UsageError,
    )
    from autocompress.report import Progress
    from autocompress.result import ParetoModel, SearchResult
    from autocompress.task import ModelProfile, Recipe, Task

__version__ = "0.1.0"

_HOME = {
    "AutocompressError": "errors",
    "CheckpointError": "errors",
    "Compressed": "engine.compress",
    "ModelProfile": "task",
    "ParetoModel": "result",
    "Progress": "report",
    "Recipe": "task",
    "SearchFailedError": "errors",
    "SearchResult": "result",
    "Settings": "engine.settings",
    "Task": "task",
    "TrialError": "errors",
    "UsageError": "errors",
    "compress": "engine.compress",
    "rebuild": "checkpoint",
    "load_run": "engine.results",
    "search": "engine.run",
}

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
    "rebuild",
    "search",
]


def __getattr__(name: str) -> Any:
    # Imported at first use, so that `autocompress --help` need not wait for PyTorch and Ray.
    if name not in _HOME:
        raise AttributeError(f"module 'autocompress' has no attribute {name!r}")
    value = getattr(import_module(f"autocompress.{_HOME[name]}"), name)
    globals()[name] = value
    return value
