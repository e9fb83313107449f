"""The command line: parse, call, print."""

from __future__ import annotations

import sys

from autocompress.cli import explain, search, use_run  # noqa: F401  (they register their commands)
from autocompress.cli.app import app
from autocompress.cli.show import print_error
from autocompress.errors import AutocompressError, CheckpointError, UsageError, one_line


def main() -> None:
    """Run the command line and end the process with its exit code."""
    # Console scripts do not have the working folder on the path; `module:function` needs it.
    sys.path.insert(0, "")
    try:
        app(standalone_mode=True)
    except (UsageError, CheckpointError) as error:
        print_error(one_line(error))
        sys.exit(2)
    except AutocompressError as error:
        print_error(one_line(error))
        sys.exit(1)
    except OSError as error:
        # A disk that is full, a file that is a folder: what the system says is what there is to say.
        print_error(one_line(error))
        sys.exit(1)


__all__ = ["main"]
