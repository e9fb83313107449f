"""What other users see of this process in a list of all."""

from __future__ import annotations

from collections.abc import Iterable

from ray._raylet import getproctitle, setproctitle  # type: ignore[attr-defined]


def hide_in_title(secrets: Iterable[str]) -> None:
    """Take secrets that were given on the command line out of it."""
    title = shown = getproctitle()
    for secret in secrets:
        shown = shown.replace(secret, "***")
    if shown != title:
        setproctitle(shown)
