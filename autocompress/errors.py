"""Every exception that autocompress raises on purpose.

AutocompressError
├── UsageError            the caller gave something that cannot work        (exit code 2)
│   ├── TaskError         the task, its data or its model
│   ├── TraceError        the model cannot be analysed by torch.export
│   └── SettingsError     a setting, or a run folder made with other settings
├── TrialError            one trial failed; the search goes on
│   ├── DivergedError     a loss or a metric became NaN or infinite
│   └── ProofError        the compact model does not equal the masked one
├── ClusterError          Ray failed as a whole; the same command continues    (exit code 1)
├── StorageError          the study or the disk failed; the same command continues   (exit code 1)
├── CheckpointError       a checkpoint is missing, damaged or of another version
└── SearchFailedError     no trial succeeded                                (exit code 1)
"""

from __future__ import annotations

import contextlib
import difflib
from collections.abc import Collection, Iterable, Iterator
from pathlib import Path


class AutocompressError(Exception):
    """Base of all errors raised on purpose."""


class UsageError(AutocompressError, ValueError):
    """The caller gave something that cannot work; nothing was written over."""


class TaskError(UsageError):
    """The task, its data or its model is not usable."""


class TraceError(UsageError):
    """`torch.export` cannot trace the model."""


class SettingsError(UsageError):
    """A setting is not usable, or a run folder was made with other settings."""


class TrialError(AutocompressError):
    """One trial failed."""


class DivergedError(TrialError):
    """A loss or a metric became NaN or infinite."""


class ProofError(TrialError):
    """The compact model does not compute what the masked one does."""


class ClusterError(AutocompressError):
    """Ray failed as a whole; what had finished is recorded."""


class StorageError(AutocompressError):
    """The study's storage, or the disk, failed; what had finished is kept."""


class CheckpointError(AutocompressError):
    """A checkpoint is missing, damaged or of another version."""


class SearchFailedError(AutocompressError):
    """No trial of the search succeeded."""


def one_line(error: BaseException) -> str:
    """The first non-empty line of an error's message, or its class name where it has none."""
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    return lines[0] if lines else type(error).__name__


@contextlib.contextmanager
def writing_to(argument: str, path: Path) -> Iterator[None]:
    """Say by which argument a file or folder was asked for that cannot be written where it is to be; what
    else goes wrong there, as a full disk, is no fault of the argument.

    Args:
        argument: its name.
        path: that was given.

    Raises:
        SettingsError: a part of the path is missing, no folder, or not the user's to write.
    """
    try:
        yield
    except (
        FileExistsError,
        FileNotFoundError,
        IsADirectoryError,
        NotADirectoryError,
        PermissionError,
    ) as error:
        raise SettingsError(
            f"{argument} must be where files can be written but '{path}' is not: {error.strerror}."
        ) from error


def refuse_unknown(owner: str, given: Iterable[str], known: Collection[str]) -> None:
    """Refuse settings by names that their owner does not know.

    Args:
        owner: whose settings they are, in words.
        given: the names.
        known: all names that there are.

    Raises:
        SettingsError: one is unknown; it names the known one that is spelled most alike.
    """
    for name in given:
        if name not in known:
            nearest = difflib.get_close_matches(name, known, n=1, cutoff=0.0)
            remedy = f" (did you mean {nearest[0]!r}?)" if nearest else ""
            raise SettingsError(f"settings of {owner} must be known but got {name!r}{remedy}.")
