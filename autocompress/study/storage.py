"""Where studies are stored, without what only their storage is to know."""

from __future__ import annotations

import os
import re
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any
from urllib.parse import quote_plus

import optuna
from sqlalchemy.engine import URL, make_url
from sqlalchemy.exc import ArgumentError, SQLAlchemyError

from autocompress.errors import SettingsError, one_line
from autocompress.remote.address import HIDDEN, without_secrets

STUDY_NAME = "autocompress"
# The variable that a storage URL may be given in, where a command line would show it to other users.
STORAGE_VARIABLE = "AUTOCOMPRESS_STORAGE"
# What using a study may raise through no fault of the code: locks, full disks, lost connections.
STORAGE_ERRORS = (SQLAlchemyError, optuna.exceptions.StorageInternalError)
_SECRET_NAMES = re.compile("pass|pwd|secret|token", re.IGNORECASE)


def masked(storage: str) -> str:
    """A storage URL as it may be written and shown: without its password, nor others in its query."""
    secrets = secrets_of(storage)
    try:
        url = make_url(storage)
    except (ArgumentError, ValueError):
        return without_secrets(storage, secrets)
    if not secrets:
        return storage
    hidden = {name: HIDDEN for name in url.query if _SECRET_NAMES.search(name)}
    text = url.update_query_dict(hidden).render_as_string(hide_password=True)
    return text.replace(quote_plus(HIDDEN), HIDDEN)


def unmasked(stored: str) -> str:
    """The storage URL that a run's `run.json` names, with the password that is not written there.

    Raises:
        SettingsError: the environment does not tell it.
    """
    if HIDDEN not in stored:
        return stored
    given = os.environ.get(STORAGE_VARIABLE)
    if given is None or masked(given) != stored:
        other = "" if given is None else f", which is {masked(given)!r}"
        raise SettingsError(
            f"storage {stored!r} must be opened with a password, which the run does not store: give the "
            f"whole URL in the environment variable {STORAGE_VARIABLE}{other}."
        )
    return given


def open_storage(storage: str, create: bool = True) -> optuna.storages.RDBStorage:
    """Connect to a storage.

    Args:
        storage: its URL.
        create: whether to make the tables of an empty one.

    Raises:
        SettingsError: it cannot be opened.
    """
    with opening(storage):
        # The driver that the extra "postgres" brings, where the URL names none.
        url = re.sub(r"^postgres(ql)?:", "postgresql+psycopg:", storage)
        return optuna.storages.RDBStorage(url, skip_table_creation=not create)


def check_storage(storage: str) -> None:
    """Refuse a storage that cannot be opened.

    Raises:
        SettingsError: it cannot.
    """
    open_storage(storage).engine.dispose()


@contextmanager
def opening(storage: str) -> Iterator[None]:
    """Say what a storage fails with in one line, without its secrets.

    Raises:
        SettingsError: it failed inside.
    """
    try:
        yield
    except ImportError as error:
        # Optuna's error says less than what it came from.
        package = getattr(error.__cause__ or error, "name", None) or one_line(error)
        extra = " (pip install 'autocompress[postgres]')" if package.startswith("psycopg") else ""
        raise SettingsError(
            f"storage {masked(storage)!r} must have its driver installed but there is no package "
            f"{package}{extra}."
        ) from error
    except Exception as error:  # of a database's driver it may be any error
        said: BaseException = error
        while isinstance(said, optuna.exceptions.StorageInternalError) and said.__cause__ is not None:
            said = said.__cause__  # of which that says nothing
        reason = without_secrets(one_line(said), secrets_of(storage))
        # Not from it: it may say more than is to be read in a traceback.
        raise SettingsError(f"storage {masked(storage)!r} cannot be used: {reason}") from None


def secrets_of(storage: str) -> list[str]:
    """What nobody is to read in a storage URL, the longest first; as far as it is a URL."""
    try:
        url = make_url(storage)
    except (ArgumentError, ValueError):
        # What comes before the last @ may be one, however the rest is written.
        _, colon, secret = storage.rpartition("@")[0].rpartition("://")[2].partition(":")
        return [secret] if colon and secret else []
    query: Mapping[str, Any] = url.query
    values = [value for name, value in query.items() if _SECRET_NAMES.search(name)]
    flat = [item for value in values for item in ((value,) if isinstance(value, str) else value)]
    secrets = {str(secret) for secret in (url.password, *flat) if secret and secret != HIDDEN}
    return sorted(secrets, key=len, reverse=True)


def sqlite_url(folder: Path) -> str:
    """The URL of a run folder's own storage.

    Raises:
        SettingsError: the folder's name cannot be part of a URL, as in older versions of SQLAlchemy.
    """
    file = str((folder / "study.db").resolve())
    url = URL.create("sqlite", database=file).render_as_string(hide_password=False)
    if make_url(url).database != file:
        raise SettingsError(f"out must be a folder without '?' and the like in its name but got '{folder}'.")
    return url
