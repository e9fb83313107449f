"""Checks of settings that several methods share."""

from __future__ import annotations

from autocompress.errors import SettingsError


def at_least_0(name: str, value: float) -> None:
    """Refuse a setting below 0; raises SettingsError."""
    if not value >= 0:
        raise SettingsError(f"{name} must be at least 0 but got {value}.")
