"""A real browser, where one is installed."""

from __future__ import annotations

import os
import shutil
import subprocess
from pathlib import Path

import pytest

NAMES = ("chromium", "chromium-browser", "google-chrome", "chrome")
_FOUND = next(filter(None, map(shutil.which, NAMES)), None)

needs_browser = pytest.mark.skipif(_FOUND is None, reason=f"none of {', '.join(NAMES)} is installed")


def opened(url: str, profile: Path, *options: str) -> tuple[str, str]:
    """The document after a page's scripts ran, and what the browser's console said.

    Args:
        url: of the page.
        profile: folder for the browser's own files.
        options: of the command line.
    """
    assert _FOUND is not None
    command = [
        *(
            _FOUND,
            "--headless",
            "--no-sandbox",
            "--disable-gpu",
            "--no-first-run",
            f"--user-data-dir={profile}",
        ),
        *("--disable-background-networking", "--disable-component-update", "--disable-extensions"),
        *("--enable-logging=stderr", "--virtual-time-budget=20000", *options, "--dump-dom", url),
    ]
    home = {**os.environ, "HOME": str(profile.parent), "XDG_CONFIG_HOME": str(profile.parent)}
    done = subprocess.run(command, capture_output=True, text=True, check=True, env=home)
    said = [line for line in done.stderr.splitlines() if "CONSOLE" in line]
    return done.stdout, "\n".join(said)
