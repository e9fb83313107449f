"""What is not there on every system is imported where it is used."""

from __future__ import annotations

import ast
from pathlib import Path

import autocompress

POSIX = {"resource", "fcntl", "pwd", "grp", "termios", "pty", "syslog"}


def test_no_module_needs_posix_to_be_imported() -> None:
    for file in Path(autocompress.__file__).parent.rglob("*.py"):
        for node in ast.parse(file.read_text()).body:
            if isinstance(node, ast.Import):
                names = {alias.name for alias in node.names}
            else:
                names = {node.module or ""} if isinstance(node, ast.ImportFrom) else set()
            assert not names & POSIX, file
