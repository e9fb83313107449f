"""Print `name==version` of the lowest versions that pyproject.toml allows, for `pip install -c`."""

from __future__ import annotations

import itertools
import re
import tomllib
from pathlib import Path


def lowest(requirement: str) -> str:
    """`ray[tune]>=2.50` → `ray==2.50`."""
    match = re.fullmatch(r"([\w.-]+)(?:\[[\w,]+\])?[>=]=([\w.]+)", requirement)
    if match is None:
        raise SystemExit(f"a requirement must read name>=version or name==version but got {requirement!r}.")
    return "==".join(match.groups())


project = tomllib.loads((Path(__file__).parents[1] / "pyproject.toml").read_text())["project"]
extras = project["optional-dependencies"].values()
print(*sorted({lowest(r) for r in itertools.chain(project["dependencies"], *extras)}), sep="\n")
