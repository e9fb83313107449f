"""What says which run this is: its settings, and digests of all that the settings do not hold."""

from __future__ import annotations

import inspect
from collections.abc import Mapping
from dataclasses import asdict
from types import CodeType, ModuleType
from typing import Any, cast

from torch import Tensor

from autocompress.engine.changes import DIGESTS
from autocompress.engine.digests import digest, state_digest
from autocompress.engine.prepare import Prepared
from autocompress.engine.samples import data_digest
from autocompress.models.registry import ModelFactory
from autocompress.plugins import SearchSpace, load_attribute, search_spaces
from autocompress.task import Task
from autocompress.task.criterion import without_values
from autocompress.task.opening import is_function


def identity(prepared: Prepared) -> dict[str, Any]:
    """JSON-able entries that are equal where a run may be continued, in whatever process they are made.

    Data are told by their length and a sample of rows; code by what it computes, not by its text; settings
    of execution and places by nothing. Takes well under a second beside what `prepare` does.

    Args:
        prepared: the search.
    """
    task = prepared.task
    batch_size = getattr(task.train, "batch_size", None)  # of a function, its code says that
    recipe = {name: value for name, value in asdict(task.recipe).items() if name != "epochs"}
    return {
        **prepared.settings.identity(),
        "recipe": recipe,
        "input": task.input_json(),
        "metrics": None if task.metrics is None else sorted(task.metrics),
        "batch_size": batch_size if isinstance(batch_size, int) else None,
        DIGESTS: _digests(prepared),
    }


def _digests(prepared: Prepared) -> dict[str, str | None]:
    """Digest of each thing that is known by no setting; None, or no entry, where there is none."""
    task = prepared.task
    return {
        **_data(task),
        # What a prepared search has of weights is by its model's names.
        "weights": None if task.weights is None else state_digest(cast(Mapping[str, Tensor], task.weights)),
        **{name: digest(own) for name, own in _own(task).items() if own is not None},
        # The default metrics are the package's own.
        **({} if prepared.latency.by is None else {"latency_by": digest(prepared.latency.by)}),
        **{f"metrics.{name}": digest(metric) for name, metric in (task.metrics or {}).items()},
        "architecture": _architecture(prepared),
        "frozen": digest(sorted(n for n, p in prepared.model.named_parameters() if not p.requires_grad)),
        # Weights that a model begins with are drawn anew; trained ones are `weights`.
        "model": digest(_maker(task), tensors=False),
        **_spaces(prepared.spaces),
    }


def _own(task: Task) -> dict[str, Any]:
    """What trains a model of the task, or prepares it, and may be the user's own."""
    names = ("loss", "step", "optimizer", "scheduler", "teacher", "prepare")
    given = {name: getattr(task, name) for name in names}
    if task.weights is None:
        # What they begin with is drawn anew, as the model's weights are.
        given |= {name: without_values(given[name]) for name in ("loss", "step")}
    return given


def _data(task: Task) -> dict[str, str]:
    """A digest of each split: of its rows, and of the function that makes it."""
    digests = {}
    with task.opened() as opened:
        for name, given in task.splits.given.items():
            if given is not None:
                rows = data_digest(getattr(opened, name))
                digests[f"data.{name}"] = digest((given, rows)) if is_function(given) else rows
    return digests


def _maker(task: Task) -> Any:
    """What makes a model of the task: of `module:function` the function itself."""
    if isinstance(task.model, ModelFactory) and ":" in task.model.name:
        return task.model, load_attribute(task.model.name)
    return task.model


def _architecture(prepared: Prepared) -> str:
    """A digest of the exported graph, and of the shapes of what it computes with."""
    trace = prepared.analysis.trace
    tensors = {**prepared.model.state_dict(), **trace.constants}
    shapes = {name: (tuple(tensor.shape), str(tensor.dtype)) for name, tensor in tensors.items()}
    return digest((str(trace.graph), shapes))


def _spaces(spaces: Mapping[str, SearchSpace]) -> dict[str, str]:
    """A digest of each space of the user's own: of its module, and of what its functions call elsewhere."""
    return {
        f"spaces.{label}": digest((_source(space.module), space.suggest, space.move))
        for label, space in spaces.items()
        if label not in search_spaces()
    }


def _source(module: ModuleType | None) -> CodeType | None:
    if module is None:
        return None
    try:
        return compile(inspect.getsource(module), module.__name__, "exec")
    except (OSError, TypeError):  # Compiled: it goes by the names of its functions.
        return None
