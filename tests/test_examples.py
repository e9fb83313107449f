"""The Python of the README and of the concept pages runs as it stands there, and so do the examples."""

from __future__ import annotations

import re
import runpy
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
EXAMPLES = sorted((ROOT / "examples").glob("*.py"))


# In the order in which they are read, as one script: what the README defines the others use.
PAGES = [
    "README.md",
    *(f"autocompress/{room}/README.md" for room in ("task", "measure", "engine", "checkpoint")),
]


def test_readme_python_runs(tmp_path: Path) -> None:
    text = "\n".join((ROOT / page).read_text() for page in PAGES)
    blocks = re.findall(r"```python\n(.*?)```", text, re.DOTALL)
    assert len(blocks) >= 5
    for page in ROOT.glob("autocompress/**/README.md"):
        assert "```python\n" not in page.read_text() or str(page.relative_to(ROOT)) in PAGES
    script = tmp_path / "script.py"
    script.write_text("\n".join(blocks))
    done = subprocess.run(
        [sys.executable, str(script)], cwd=tmp_path, capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr


@pytest.mark.usefixtures("shared_ray")
@pytest.mark.parametrize("example", EXAMPLES, ids=lambda path: path.stem)
def test_example_runs(example: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("EXAMPLE_TRIALS", "1")
    runpy.run_path(str(example), run_name="__main__")
