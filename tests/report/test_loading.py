"""The lines that load a model's file run as they are printed, without this package."""

from __future__ import annotations

import json
import re
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from torch import Tensor, nn

from autocompress.checkpoint.store import Writer
from autocompress.report.loading import loading_lines
from autocompress.task.inputs import to_json

RUN = """
import json, sys
sys.modules["autocompress"] = None
for lines in json.load(sys.stdin):
    exec(lines, {})
"""


class Sum(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.layer = nn.Linear(3, 2)

    def forward(self, numbers: Tensor, tokens: Tensor) -> Tensor:
        return self.layer(numbers) + tokens.sum(1, keepdim=True)


@pytest.fixture
def files(tmp_path: Path) -> list[tuple[dict[str, object], Path]]:
    """A model of one input as `.pt2`, and one of two, by name, as `.onnx` and `.pt2`."""
    single = torch.zeros(2, 3)
    several = {"numbers": torch.zeros(2, 3), "tokens": torch.ones(2, 4, dtype=torch.int64)}
    one = Writer(tmp_path / "one").write(nn.Linear(3, 2).eval(), single, "pt2").path
    two = Writer(tmp_path / "two").write(Sum().eval(), several, "onnx").path
    return [
        ({"input": to_json(single)}, one / "model.pt2"),
        ({"input": to_json(several)}, two / "model.onnx"),
        ({"input": to_json(several)}, two / "model.pt2"),
    ]


def test_five_lines_load_a_file_and_run_it(files: list[tuple[dict[str, object], Path]]) -> None:
    snippets = [loading_lines(manifest, str(file)) for manifest, file in files]
    assert all(len(lines.splitlines()) <= 5 for lines in snippets)
    done = subprocess.run(
        [sys.executable, "-c", RUN], input=json.dumps(snippets), capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr
    shown = re.findall(r"\[\[[^\]]*\],\s*\[[^\]]*\]\]", done.stdout)
    assert len(shown) == 3  # two rows of each
