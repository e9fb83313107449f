"""Where studies are stored."""

from __future__ import annotations

from pathlib import Path

import optuna

from autocompress.errors import SettingsError, one_line

STUDY_NAME = "autocompress"


def check_storage(url: str) -> None:
    """Refuse a storage that cannot be opened.

    Raises:
        SettingsError: it cannot.
    """
    try:
        optuna.storages.get_storage(url)
    except Exception as error:
        raise SettingsError(f"storage {url!r} cannot be used: {one_line(error)}") from error


def sqlite_url(folder: Path) -> str:
    """The URL of a run folder's own storage."""
    return f"sqlite:///{(folder / 'study.db').resolve()}"
