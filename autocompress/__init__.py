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
    from autocompress.engine.inspection import Inspection, inspect
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
    from autocompress.frameworks.huggingface import from_transformers
    from autocompress.frameworks.lightning import from_lightning
    from autocompress.lineage import Attempt, Family, Parent, Running, Target
    from autocompress.methods.alcn import Alcn
    from autocompress.methods.alds import Alds
    from autocompress.methods.autoplastic import Autoplastic
    from autocompress.methods.depth import Depth
    from autocompress.methods.lc import (
        Binary,
        Budget,
        Codebook,
        EntropyCodebook,
        FixedPoint,
        HalfPrecision,
        Lc,
        LowRank,
        MixedPrecision,
        PenaltyL0,
        PenaltyL1,
        PruneL0,
        PruneL1,
        RankSelection,
        ScaledBinary,
        Ternary,
    )
    from autocompress.methods.qat import Qat
    from autocompress.plugins import SearchSpace
    from autocompress.report import Progress
    from autocompress.result import ParetoModel, SearchResult
    from autocompress.task import FirstBatches, GroupProfile, InputSpec, ModelProfile, Recipe, Task

__version__ = "0.1.0"

# Public name → the module that defines it.
_HOME = {
    "Alcn": "methods.alcn",
    "Alds": "methods.alds",
    "Attempt": "lineage",
    "AutocompressError": "errors",
    "Autoplastic": "methods.autoplastic",
    "Binary": "methods.lc",
    "Budget": "methods.lc",
    "CheckpointError": "errors",
    "Codebook": "methods.lc",
    "Compressed": "engine.compress",
    "Depth": "methods.depth",
    "Family": "lineage",
    "FirstBatches": "task",
    "EntropyCodebook": "methods.lc",
    "FixedPoint": "methods.lc",
    "GroupProfile": "task",
    "HalfPrecision": "methods.lc",
    "InputSpec": "task",
    "Inspection": "engine.inspection",
    "Lc": "methods.lc",
    "LowRank": "methods.lc",
    "MixedPrecision": "methods.lc",
    "ModelProfile": "task",
    "Parent": "lineage",
    "ParetoModel": "result",
    "PenaltyL0": "methods.lc",
    "PenaltyL1": "methods.lc",
    "Progress": "report",
    "PruneL0": "methods.lc",
    "PruneL1": "methods.lc",
    "Qat": "methods.qat",
    "RankSelection": "methods.lc",
    "Recipe": "task",
    "Running": "lineage",
    "ScaledBinary": "methods.lc",
    "SearchFailedError": "errors",
    "SearchResult": "result",
    "SearchSpace": "plugins",
    "Settings": "engine.settings",
    "Target": "lineage",
    "Task": "task",
    "Ternary": "methods.lc",
    "TrialError": "errors",
    "UsageError": "errors",
    "compress": "engine.compress",
    "from_lightning": "frameworks.lightning",
    "from_transformers": "frameworks.huggingface",
    "inspect": "engine.inspection",
    "rebuild": "checkpoint",
    "load_run": "engine.results",
    "search": "engine.run",
}

__all__ = [
    "Alcn",
    "Alds",
    "Attempt",
    "AutocompressError",
    "Autoplastic",
    "Binary",
    "Budget",
    "CheckpointError",
    "Codebook",
    "Compressed",
    "Depth",
    "EntropyCodebook",
    "Family",
    "FirstBatches",
    "FixedPoint",
    "GroupProfile",
    "HalfPrecision",
    "InputSpec",
    "Inspection",
    "Lc",
    "LowRank",
    "MixedPrecision",
    "ModelProfile",
    "Parent",
    "ParetoModel",
    "PenaltyL0",
    "PenaltyL1",
    "Progress",
    "PruneL0",
    "PruneL1",
    "Qat",
    "RankSelection",
    "Recipe",
    "Running",
    "ScaledBinary",
    "SearchFailedError",
    "SearchResult",
    "SearchSpace",
    "Settings",
    "Target",
    "Task",
    "Ternary",
    "TrialError",
    "UsageError",
    "compress",
    "from_lightning",
    "from_transformers",
    "inspect",
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


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
