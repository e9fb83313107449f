"""Values that the processes of a run compute once between them, through files in a folder of the run."""

from __future__ import annotations

import hashlib
import os
import pickle
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from pathlib import Path
from typing import TypeVar

from filelock import FileLock

COMPUTED = ".computed"  # folder of a run
_MOST_BYTES = 1 << 30  # that a process writes to a folder; what it computes later is not shared
_written: Counter[Path] = Counter()
_folder: ContextVar[Path | None] = ContextVar("folder", default=None)
T = TypeVar("T")


@contextmanager
def sharing(folder: Path) -> Iterator[None]:
    """Let `once` find there what other processes computed, and leave there what this one does."""
    folder.mkdir(parents=True, exist_ok=True)
    token = _folder.set(folder)
    try:
        yield
    finally:
        _folder.reset(token)


def once(key: object, compute: Callable[[], T]) -> T:
    """A value, from the folder within `sharing`; a second process that wants it waits for the first.

    Args:
        key: names the value; equal in `repr` where the values are.
        compute: makes it where it is not there yet, or nothing is shared.
    """
    folder = _folder.get()
    if folder is None:
        return compute()
    name = hashlib.sha256(repr(key).encode()).hexdigest()
    file = folder / f"{name}.pickle"
    with FileLock(folder / f"{name}.lock"):
        if file.is_file():
            stored: T = pickle.loads(file.read_bytes())
            return stored
        value = compute()
        content = pickle.dumps(value)
        if _written[folder] + len(content) <= _MOST_BYTES:
            _written[folder] += len(content)
            aside = file.with_suffix(".tmp")
            aside.write_bytes(content)
            os.replace(aside, file)
        return value
