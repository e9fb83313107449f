"""Scripts of this package that run in a process of their own, for so long and no longer."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

# Of one child process: a hundred times what a model of a billion multiplications takes, and not for ever.
MOST_SECONDS = 900.0


def run_script(script: Path, argument: str, limit: float = MOST_SECONDS) -> subprocess.CompletedProcess[str]:
    """Run a script of this package in a fresh Python that neither this folder nor the working directory may
    lend a module, and keep what it prints.

    Args:
        script: its path.
        argument: for its command line.
        limit: seconds after which it is killed; more than `MOST_SECONDS` are as many.

    Raises:
        TimeoutError: it did not end in that time.
    """
    limit = min(limit, MOST_SECONDS)
    try:
        return subprocess.run(
            [sys.executable, "-P", str(script), argument],
            capture_output=True,
            text=True,
            check=False,
            timeout=limit,
        )
    except subprocess.TimeoutExpired as error:
        raise TimeoutError(f"the process did not end within {limit:.0f} s") from error
