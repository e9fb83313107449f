"""Opens the splits of a task: nothing is ever drawn from what the user gave, but from copies of it.

So a split can be sent to other processes at any time, although what was drawn from cannot be pickled any more
where it keeps worker processes or files open; and a training gets the same data however often others looked.
"""

from __future__ import annotations

import contextlib
import io
import itertools
import pickle
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from functools import cache
from typing import Any, Protocol, TypeGuard, TypeVar, cast, runtime_checkable

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import DataLoader, IterableDataset

from autocompress.errors import AutocompressError, TaskError
from autocompress.task.first_batches import FirstBatches
from autocompress.task.random_state import generators_of, seeded

Batches = Iterable[Any]
# What a user gives as a split: batches, or a function that makes them.
Split = Batches | Callable[[], Batches]
T = TypeVar("T")


@runtime_checkable
class MovableBatches(Protocol):
    """Batches that can be drawn where the model is, such as `TensorBatches`, and that no draw changes."""

    def on_device(self, device: torch.device) -> Batches:
        """The same batches, whose tensors lie on that device."""
        ...


# Large, and the same for all who draw rows of them.
_SHARED = (Tensor, np.ndarray, bytes)


def copied(value: T) -> T:
    """A copy as another process would get it, which shares tensors, arrays and bytes.

    Loaders come without the worker processes that they keep (`persistent_workers`).

    Raises:
        Exception: whatever pickling raises of what cannot be pickled.
    """
    shared: list[object] = []
    stream = io.BytesIO()
    _copier()(stream, shared).dump(value)
    stream.seek(0)
    copy: T = _Reader(stream, shared).load()
    return copy


def copied_if_possible(value: T) -> T:
    """A copy, or the value itself where it cannot be pickled; who would send it to a process says so."""
    try:
        return copied(value)
    except Exception:  # code of the user's own, which may raise anything
        return value


@cache
def _copier() -> Any:
    """The class that writes copies; made here, as machines that run trials alone may have no cloudpickle."""
    import cloudpickle

    class Copier(cloudpickle.Pickler):  # type: ignore[misc]
        def __init__(self, stream: io.BytesIO, shared: list[object]) -> None:
            super().__init__(stream)
            self.shared = shared

        def persistent_id(self, value: object) -> int | None:
            if not isinstance(value, _SHARED):
                return None
            self.shared.append(value)
            return len(self.shared) - 1

        def reducer_override(self, value: Any) -> Any:
            if not isinstance(value, DataLoader):
                return super().reducer_override(value)
            reduced: Any = value.__reduce_ex__(4)
            make, arguments, state, *rest = reduced
            return make, arguments, {**state, "_iterator": None} if isinstance(state, dict) else state, *rest

    return Copier


class _Reader(pickle.Unpickler):
    def __init__(self, stream: io.BytesIO, shared: list[object]) -> None:
        super().__init__(stream)
        self.shared = shared

    def persistent_load(self, number: int) -> object:
        return self.shared[number]


def is_function(split: Split | None) -> TypeGuard[Callable[[], Batches]]:
    """Whether a split is no batches, but makes them."""
    return callable(split) and not isinstance(split, Iterable)


def batches_of(split: Split, name: str = "train") -> Batches:
    """The batches of a split; where it is a function, what it makes now.

    Args:
        split: as a user gave it.
        name: of the split, for messages.

    Raises:
        TaskError: the function fails.
    """
    if not is_function(split):
        return cast(Batches, split)
    try:
        return split()
    except Exception as error:
        raise TaskError(
            f"{name} must make batches where it is a function but failed: {_in_a_line(error)}"
        ) from error


@contextmanager
def reading(name: str) -> Iterator[None]:
    """What a user's data raise when they are drawn from, in one line.

    Args:
        name: of the split.

    Raises:
        TaskError: the code inside raised something.
    """
    try:
        yield
    except AutocompressError:
        raise
    except Exception as error:
        raise TaskError(f"{name} must yield batches but failed: {_in_a_line(error)}") from error


def _in_a_line(error: Exception) -> str:
    """An error's type, and the first and last line of its message: what a loader's worker process raised
    begins with where that was and ends with what it is."""
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    return f"{type(error).__name__}: {' '.join(dict.fromkeys([*lines[:1], *lines[-1:]]))}"


def passed(batches: Split, name: str) -> Iterator[Any]:
    """One pass over a split.

    Args:
        batches: of the split.
        name: of the split, for messages.

    Raises:
        TaskError: the data fail, or go on where they should long have ended.
    """
    batches = batches_of(batches, name)
    length = length_of(batches)
    # Each process of a loader may pass over the whole of a stream that was not told to share it out.
    most = None if length is None else (length + 1) * max(1, getattr(batches, "num_workers", 0))
    with reading(name):
        iterator = iter(batches)
    for drawn in itertools.count():
        with reading(name):
            try:
                batch = next(iterator)
            except StopIteration:
                return
        if drawn == most:
            raise TaskError(f"{name} must end after the {length} batches that it says it has but goes on.")
        yield batch


def length_of(batches: Any) -> int | None:
    """How many batches there are in a pass, as they say themselves; None where they do not."""
    try:
        return len(batches)
    except (TypeError, NotImplementedError):  # a stream
        return None


def described_split(batches: Any) -> str:
    """A split as its owner knows it, for messages."""
    if not isinstance(batches, DataLoader):
        return f"a {type(batches).__name__}"
    if isinstance(batches.dataset, IterableDataset):
        return "a DataLoader of an IterableDataset"
    if batches.batch_size is None:
        return f"a DataLoader with a batch_sampler of its own ({type(batches.batch_sampler).__name__})"
    return f"a {type(batches).__name__} with a {type(batches.sampler).__name__}"


@dataclass
class _Source:
    """Where batches of a split come from, in one process.

    Args:
        given: by the user; None where there is no such split.
        made: what a function made of it here; None where it was not called.
        first: the first batches of a pass, as far as they were asked for.
        are_all: whether a pass has no others.
    """

    given: Split | None
    made: Batches | None = None
    first: list[Any] = field(default_factory=list)
    are_all: bool = False


class Splits:
    """The splits of a task, and where their batches come from.

    Args:
        current: the splits by name; None where there is none.
        sources: of them; None where they are what was given.
    """

    def __init__(
        self, current: Mapping[str, Split | None], sources: Mapping[str, _Source] | None = None
    ) -> None:
        self.current = dict(current)
        self.sources = sources or {name: _Source(split) for name, split in current.items()}

    @property
    def given(self) -> dict[str, Split | None]:
        """The splits as they were given, by name; nothing was drawn from them."""
        return {name: source.given for name, source in self.sources.items()}

    def replaced(self, current: Mapping[str, Split | None]) -> Splits:
        """The same, but for splits that are other ones now, which were given so."""
        sources = {
            name: self.sources[name] if split is self.current[name] else _Source(split)
            for name, split in current.items()
        }
        return Splits(current, sources)

    def opened(self) -> Splits:
        """Splits to draw from: copies of those that were given; of a function what it made in this process.

        A split that no draw changes is drawn from itself, so that what lies on a device is there once; so is
        one that cannot be copied, which cannot be sent to another process either.
        """
        current: dict[str, Split | None] = self._copies()
        for name, source in self.sources.items():
            if is_function(source.given):
                source.made = batches_of(source.given, name) if source.made is None else source.made
                current[name] = source.made
        return Splits(current, self.sources)

    def close(self) -> None:
        """End the worker processes that loaders keep, but those of loaders that are the user's own."""
        for name, split in self.current.items():
            loader = split.batches if isinstance(split, FirstBatches) else split
            if isinstance(loader, DataLoader) and split is not self.sources[name].given:
                loader._iterator = None

    def first(self, name: str, enough: Callable[[list[Any]], bool]) -> list[Any]:
        """The first batches of a pass over a split: the fewest that are enough, or all that there are.

        They are drawn once in a process, by a fixed seed, and are the same in each; no generator is moved.

        Args:
            name: of the split.
            enough: says of the batches so far, at least one, whether they are.
        """
        source = self.sources[name]
        for count in range(1, len(source.first) + 1):
            if enough(source.first[:count]):
                return source.first[:count]
        if not source.are_all:
            self._draw(name, enough)
        return list(source.first)

    def _draw(self, name: str, enough: Callable[[list[Any]], bool]) -> None:
        opened = self.opened()
        batches = opened.current[name]
        first: list[Any] = []
        are_all = True
        with seeded(*generators_of(batches)), contextlib.closing(opened):
            for batch in () if batches is None else passed(batches, name):
                first.append(batch)
                if enough(first):
                    are_all = False
                    break
        self.sources[name].first, self.sources[name].are_all = first, are_all

    def _copies(self) -> dict[str, Any]:
        """Copies of the splits that are no functions; what they share, their copies share too."""
        kept = {name: split for name, split in self.given.items() if isinstance(split, MovableBatches)}
        others = {n: s for n, s in self.given.items() if not (n in kept or is_function(s))}
        return {**kept, **copied_if_possible(others)}

    def __getstate__(self) -> dict[str, Any]:
        # As they were given, without the worker processes that their user's own use may have left in them.
        given = {**self.given, **self._copies()}
        sources = {n: replace(source, given=given[n], made=None) for n, source in self.sources.items()}
        return {"current": given, "sources": sources}
