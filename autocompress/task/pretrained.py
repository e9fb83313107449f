"""Trained weights as people have them: a file, a whole checkpoint, a module; names with or without prefixes.

One rule serves `Task(weights=...)` and `--weights`: of all mappings of names to tensors that are given, the
one is taken that has every name of the model, with the same words in front of each or fewer.
"""

from __future__ import annotations

import argparse
import difflib
from collections import Counter
from collections.abc import Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import takewhile
from pathlib import Path
from typing import Any

import numpy as np
import torch
from safetensors.torch import load_file
from torch import Tensor, nn

from autocompress.errors import TaskError, one_line

# A state dict or what holds one, a file of it, or a module that has it.
Weights = Mapping[str, Any] | str | Path | nn.Module
# The path of each mapping of names to tensors in a checkpoint, and the mapping.
Mappings = Sequence[tuple[str, Mapping[str, Tensor]]]

# What wrappers put into names, in front and between: `torch.compile`, data parallelism, checkpointing.
_WRAPPERS = ("_orig_mod", "module", "_fsdp_wrapped_module", "_checkpoint_wrapped_module", "_forward_module")
# What only counts: batch norm's batches, `AveragedModel`'s models, `thop`'s operations.
_BOOKKEEPING = ("num_batches_tracked", "n_averaged", "total_ops", "total_params")
# What checkpoints call the weights themselves, where they hold others beside.
_PLAIN = ("state_dict", "model_state_dict", "model", "net", "network", "module", "params", "weights")
# Of what checkpoints hold beside tensors, what can be read without running code of theirs: the arguments of
# a script, and numbers of NumPy.
_READABLE: list[Any] = [
    argparse.Namespace,
    np.dtype,
    np.ndarray,
    np.float64(0).__reduce__()[0],
    np.zeros(0).__reduce__()[0],
    *(type(np.dtype(kind)) for kind in ("f8", "f4", "i8", "i4", "u1", "?")),
]
# A checkpoint holds state dicts, or mappings that hold them.
_DEEPEST = 2


@dataclass(frozen=True)
class Fitted:
    """Trained weights under a model's own names.

    Args:
        state: every entry of the model's state dict.
        note: what was made of the weights that were given; None where they are the state dict itself.
    """

    state: dict[str, Tensor]
    note: str | None


def load_weights(model: nn.Module, weights: Weights) -> Fitted:
    """Copy trained weights into a model.

    Returns:
        The weights under the model's names.

    Raises:
        TaskError: the file cannot be read, or no weights in it fit the model.
    """
    fitted = fit(weights, model)
    extra = {name: value for name, value in model.state_dict().items() if not isinstance(value, Tensor)}
    model.load_state_dict(extra | fitted.state)
    return fitted


def fit(weights: Weights, model: nn.Module) -> Fitted:
    """Trained weights under the names of a model.

    Args:
        weights: a state dict, a checkpoint that holds it under any name, a module, or the path of a file with
            one of them. Prefixes of names and what only counts go; of several that fit, the averaged ones
            are taken ("ema" is in their name), else those that checkpoints call the weights themselves.
        model: not changed.

    Raises:
        TaskError: the file cannot be read, none fits, or several do.
    """
    mappings = list(_mappings(read_weights(weights)))
    wanted = _Wanted.of(model)
    readings = _readings(mappings, wanted)
    fitting = [reading for reading in readings if not reading.missing and not reading.misshapen]
    if not fitting:
        raise TaskError(f"weights must fit the model but {_misfit(mappings, readings, wanted)}.")
    chosen = _chosen([reading for reading in fitting if not reading.unknown] or fitting)
    if chosen.unknown:
        raise TaskError(
            f"weights must fit the model but hold {_some(chosen.unknown)}, which the model has not"
            f"{_nearest(chosen.unknown[0], wanted.tensors)}."
        )
    state = {name: chosen.tensors.get(name, own) for name, own in wanted.tensors.items()}
    return Fitted(state, chosen.note([reading.label for reading in fitting if reading is not chosen]))


_MOST_SAID = 300  # characters of an error's, which may hold what was read


def read_weights(weights: Weights) -> Mapping[str, Any]:
    """What is given as weights, read from its file where it is one; no code of a file is run.

    Raises:
        TaskError: the file is missing, or holds something else than tensors, numbers and texts.
    """
    if isinstance(weights, nn.Module):
        return weights.state_dict()
    if isinstance(weights, Mapping):
        return weights
    path = Path(weights)
    if not path.is_file():
        raise TaskError(f"weights must be an existing file but '{path}' is not.")
    try:
        content = _read(path)
    except Exception as error:  # of a damaged file it is any error
        raise TaskError(f"weights '{path}' must be a state dict but: {_why_unread(path, error)}") from error
    if not isinstance(content, Mapping):
        raise TaskError(f"weights '{path}' must be a state dict but is of type {type(content).__name__}.")
    return content


def _read(path: Path) -> Any:
    if path.suffix == ".safetensors":
        return load_file(path)
    if path.suffix == ".npz":
        with np.load(path) as archive:
            arrays = {name: archive[name] for name in archive.files}
        return {name: torch.from_numpy(array) for name, array in arrays.items() if _is_numeric(array)}
    with torch.serialization.safe_globals(_READABLE):
        return torch.load(path, map_location="cpu", weights_only=True)


def _why_unread(path: Path, error: Exception) -> str:
    """Where the file holds objects whose code would run, their classes; else what the error says first."""
    said = f"{type(error).__name__}: {one_line(error).partition('. ')[0][:_MOST_SAID]}"
    try:
        with torch.serialization.safe_globals(_READABLE):
            classes = torch.serialization.get_unsafe_globals_in_checkpoint(path)
    except Exception:  # the file is none of PyTorch's
        return said
    if not classes:
        return said
    return f"loading it would run the code of {_some(sorted(classes))} (store model.state_dict() alone)"


@dataclass(frozen=True)
class _Wanted:
    """What a model has to be given.

    Args:
        tensors: its state dict.
        names: without wrappers → its name.
        passing: names of buffers that it does not store; older weights may hold them.
        tied: name → the other names of the same tensor, of which files store one.
    """

    tensors: Mapping[str, Tensor]
    names: Mapping[str, str]
    passing: Collection[str]
    tied: Mapping[str, Sequence[str]]

    @classmethod
    def of(cls, model: nn.Module) -> _Wanted:
        """What this model has to be given."""
        state = model.state_dict(keep_vars=True)
        tensors = {name: value for name, value in state.items() if isinstance(value, Tensor)}
        same: dict[int, list[str]] = {}
        for name, tensor in tensors.items():
            same.setdefault(id(tensor), []).append(name)
        tied = {name: [n for n in names if n != name] for names in same.values() for name in names}
        names = _without_wrappers(tensors)
        passing = {_unwrapped(name) for name, _ in model.named_buffers()} - names.keys()
        return cls({name: tensor.detach() for name, tensor in tensors.items()}, names, passing, tied)

    def without(self, prefix: str) -> _Wanted:
        """The same with a prefix taken off all names, for weights of what the model wraps."""
        names = {name.removeprefix(prefix): original for name, original in self.names.items()}
        return replace(self, names=names, passing={name.removeprefix(prefix) for name in self.passing})

    def common_prefixes(self) -> list[str]:
        """What stands before every name, from the shortest, beginning with nothing."""
        columns = zip(*(name.split(".")[:-1] for name in self.names), strict=False)
        words = [column[0] for column in takewhile(lambda column: len(set(column)) == 1, columns)]
        return ["".join(f"{word}." for word in words[:end]) for end in range(len(words) + 1)]


@dataclass(frozen=True)
class _Reading:
    """One way to read weights for a model: a mapping of names to tensors, and what stands before names.

    Args:
        place: the mapping's path in the checkpoint; "" is the checkpoint itself.
        prefix: in front of the model's names in it, wrappers aside.
        wrapped: one of its names in which wrappers stand; "" where there is none.
        tensors: by the model's names.
        missing: the model's names that it has no tensor for.
        unknown: its names under the prefix that the model has not.
        beside: its names without the prefix.
        misshapen: names whose tensors are of other shapes.
    """

    place: str
    prefix: str
    wrapped: str
    tensors: Mapping[str, Tensor]
    missing: tuple[str, ...]
    unknown: tuple[str, ...]
    beside: tuple[str, ...]
    misshapen: tuple[str, ...]

    @classmethod
    def of(cls, place: str, prefix: str, given: Mapping[str, Tensor], wanted: _Wanted) -> _Reading:
        """What a mapping holds for a model."""
        names = _without_wrappers(given)
        under = {
            name.removeprefix(prefix): original for name, original in names.items() if name.startswith(prefix)
        }
        tensors = {own: given[under[name]] for name, own in wanted.names.items() if name in under}
        for name, twins in wanted.tied.items():
            stored = next((twin for twin in twins if twin in tensors), None)
            if name not in tensors and stored is not None:
                tensors[name] = tensors[stored]
        strange = [
            original for name, original in under.items() if name not in {*wanted.names, *wanted.passing}
        ]
        beside = [original for name, original in names.items() if not name.startswith(prefix)]
        return cls(
            place,
            prefix,
            next((o for name, o in names.items() if name != o and o not in wanted.tensors), ""),
            tensors,
            tuple(name for name in wanted.tensors if name not in tensors and not _counts(name)),
            tuple(name for name in strange if not _counts(name)),
            tuple(name for name in beside if not _counts(name)),
            tuple(n for n, tensor in tensors.items() if tensor.shape != wanted.tensors[n].shape),
        )

    @property
    def label(self) -> str:
        """Where it is, for a message."""
        place = f"'{self.place}'" if self.place else ""
        prefix = f"the names that begin with '{self.prefix}'" if self.prefix else ""
        return f"{prefix} in {place}" if prefix and place else prefix or place or "the mapping itself"

    @property
    def averaged(self) -> bool:
        """Whether it goes by the name of an exponential moving average."""
        return "ema" in f"{self.place}.{self.prefix}".lower().replace("_", ".").split(".")

    def note(self, others: Sequence[str]) -> str | None:
        """What was made of the weights, in a line; None where nothing was.

        Args:
            others: labels of other readings that fit.
        """
        parts = [
            f"taken from {self.label}" if self.place or self.prefix else "",
            f"without the names of wrappers, as in '{self.wrapped}'" if self.wrapped else "",
            f"{_some(self.beside)} left out" if self.beside else "",
            f"{' and '.join(others)} would fit too" if others else "",
        ]
        said = ", ".join(part for part in parts if part)
        return f"weights are {said}" if said else None


def _readings(mappings: Mappings, wanted: _Wanted) -> list[_Reading]:
    """Every way to read weights that has a name of the model; of what the model wraps where none fits."""
    readings: list[_Reading] = []
    for prefix in wanted.common_prefixes():
        inner = wanted.without(prefix)
        readings += [
            _Reading.of(place, begin, given, inner)
            for place, given in mappings
            for begin in _prefixes(_without_wrappers(given), inner.names)
        ]
        if any(not reading.missing for reading in readings):
            break
    return readings


def _mappings(content: Mapping[str, Any]) -> Iterator[tuple[str, dict[str, Tensor]]]:
    """All mappings of names to tensors in a checkpoint, with their paths in it."""
    pending: list[tuple[tuple[str, ...], Mapping[str, Any]]] = [((), content)]
    for place, mapping in pending:
        tensors: dict[str, Tensor] = {}
        for name, value in mapping.items():
            if not isinstance(name, str):
                continue
            if isinstance(value, Tensor):
                tensors[name] = value.detach()
            elif isinstance(value, np.ndarray) and _is_numeric(value):
                # A copy, because arrays that processes share are read-only.
                tensors[name] = torch.tensor(value)
            elif isinstance(value, (Mapping, nn.Module)) and len(place) < _DEEPEST:
                pending.append(((*place, name), read_weights(value)))
        if tensors:
            yield ".".join(place), tensors


def _is_numeric(array: np.ndarray) -> bool:
    return array.dtype.kind in "biufc"


def _prefixes(given: Collection[str], wanted: Collection[str]) -> list[str]:
    """What stands before most of the wanted names in the given ones: nothing, if that does."""
    counts: Counter[str] = Counter()
    for name in given:
        words = name.split(".")
        starts = (start for start in range(len(words)) if ".".join(words[start:]) in wanted)
        counts.update("".join(f"{word}." for word in words[:start]) for start in starts)
    most = max(counts.values(), default=0)
    prefixes = [prefix for prefix, count in counts.items() if count == most]
    return [""] if "" in prefixes else prefixes


def _without_wrappers(names: Collection[str]) -> dict[str, str]:
    """Names without wrappers → names, where these are as many; else the names as they are."""
    unwrapped = {_unwrapped(name): name for name in names}
    return unwrapped if len(unwrapped) == len(names) else {name: name for name in names}


def _unwrapped(name: str) -> str:
    return ".".join(word for word in name.split(".") if word not in _WRAPPERS)


def _counts(name: str) -> bool:
    return name.rpartition(".")[2] in _BOOKKEEPING


def _chosen(fitting: Sequence[_Reading]) -> _Reading:
    """The averaged weights, the only ones, or those with a plain name.

    timm's `load_checkpoint` takes averaged ones where there are any, too.

    Raises:
        TaskError: none of it says which.
    """
    averaged = [reading for reading in fitting if reading.averaged]
    plain = [reading for reading in fitting if reading.place in ("", *_PLAIN) and not reading.prefix]
    for readings in (averaged, fitting, plain):
        if len(readings) == 1:
            return readings[0]
    labels = " and ".join(reading.label for reading in fitting)
    raise TaskError(f"weights must hold the model once but hold it as {labels}: give one of them alone.")


def _misfit(mappings: Mappings, readings: Sequence[_Reading], wanted: _Wanted) -> str:
    """Why no reading fits, by the one that comes closest."""
    if not mappings:
        return "hold no tensors"
    if not readings:
        theirs, its = next(iter(mappings[0][1])), next(iter(wanted.tensors), "")
        return f"have none of its names: theirs begin with '{theirs}', its own with '{its}'"
    nearest = min(readings, key=lambda reading: (len(reading.missing), len(reading.misshapen)))
    if nearest.missing:
        names = nearest.unknown or nearest.beside
        return f"have no {_some(nearest.missing)}{_nearest(nearest.missing[0], names)}"
    shapes = {
        name: (tuple(nearest.tensors[name].shape), tuple(wanted.tensors[name].shape))
        for name in nearest.misshapen
    }
    (name, (given, own)), *others = shapes.items()
    differ = f"'{name}' is {given} in them and {own} in the model"
    if len({name.rpartition(".")[0] for name in shapes}) == 1 and given[1:] == own[1:] and given and own:
        return f"{differ}: make the model with {given[0]} outputs there, or train its own first"
    return f"{differ}{f', and {len(others)} more differ' if others else ''}"


def _nearest(name: str, known: Collection[str]) -> str:
    nearest = difflib.get_close_matches(name, known, n=1)
    return f" (the nearest is '{nearest[0]}')" if nearest else ""


def _some(names: Sequence[str]) -> str:
    shown = ", ".join(f"'{name}'" for name in names[:2])
    return f"{shown} and {len(names) - 2} more" if len(names) > 2 else shown
