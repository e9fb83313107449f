"""A model that is taken along: its folder runs, is described, and is ready for a hub."""

from __future__ import annotations

import json
import re
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from autocompress.checkpoint.program import export_program
from autocompress.engine.results import take_along
from autocompress.errors import SettingsError
from autocompress.report.loading import loading_lines
from autocompress.report.notes import code, plain
from autocompress.result import ParetoModel
from autocompress.tables import metric_text
from autocompress.task.inputs import to_json
from tests.report.runs import EVIL, WrittenRun

# `predict.py` without what it must do without, once as it is and once on a file.
PREDICT = """
import runpy, sys
_, blocked, program, given = sys.argv
for name in blocked.split():
    sys.modules[name] = None
for arguments in ([program], [program, given]):
    sys.argv = arguments
    runpy.run_path(program, run_name="__main__")
    print("--")
"""
EXECUTE = """
import json, sys
sys.modules["autocompress"] = None
for lines in json.load(sys.stdin):
    exec(lines, {})
    print("--")
"""
FILES = {"pt2": ("model.pt2",), "onnx": ("model.onnx",), "openvino": ("model.xml", "model.bin")}
RAW = torch.tensor([[1.0, 2.0, 3.0, 4.0], [9.0, -2.0, 0.0, 4.0], [0.0, 0.0, 8.0, -4.0]])


def output(program: str, *arguments: object, given: str = "") -> list[list[str]]:
    """Lines that a program prints in a fresh process, up to each `--`."""
    command = [sys.executable, "-P", "-c", program, *map(str, arguments)]
    done = subprocess.run(command, input=given, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    return [part.split("\n") for part in done.stdout.replace("\n--\n", "--").split("--")[:-1]]


@pytest.fixture(scope="module")
def model() -> nn.Module:
    torch.manual_seed(0)
    return nn.Linear(4, 2).eval()


@pytest.fixture(scope="module")
def run(model: nn.Module, tmp_path_factory: pytest.TempPathFactory) -> WrittenRun:
    written = WrittenRun(tmp_path_factory.mktemp("runs") / "mine")
    export_program(model, torch.zeros(2, 4), written.folder.trials / "0003" / "model.pt2")
    return written


@pytest.fixture(scope="module")
def taken(run: WrittenRun, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """The folder of trial 3 in each format."""
    root = tmp_path_factory.mktemp("taken")
    return {name: take_along(run.result, third(run), root / name, name) for name in FILES}


class Pair(nn.Module):
    def forward(self, a: Tensor, b: Tensor) -> Tensor:
        return a.sum(1) + b.float().sum(1)


@pytest.fixture(scope="module")
def several(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of a model with two inputs by name."""
    run = WrittenRun(tmp_path_factory.mktemp("several") / "mine")
    example = {"a": torch.zeros(2, 3), "b": torch.ones(2, 4, dtype=torch.int64)}
    checkpoint = run.folder.trials / "0003"
    export_program(Pair(), example, checkpoint / "model.pt2")
    stored = json.loads((checkpoint / "manifest.json").read_text())
    stored |= {"input": to_json(example), "class_counts": []}
    (checkpoint / "manifest.json").write_text(json.dumps(stored))
    return take_along(run.result, third(run), run.folder.path.parent / "taken")


def third(run: WrittenRun) -> ParetoModel:
    """The model of trial 3."""
    (point,) = [p for p in run.result.front if p.trial == 3]
    return point


@pytest.mark.parametrize(("format", "blocked"), [
    ("pt2", ("autocompress", "numpy", "onnxruntime")),
    ("onnx", ("autocompress", "torch", "onnx")),
    ("openvino", ("autocompress", "torch", "onnx", "onnxruntime")),
])  # fmt: skip
def test_its_program_needs_one_library_and_gives_the_models_labels(
    format: str, blocked: tuple[str, ...], model: nn.Module, taken: dict[str, Path]
) -> None:
    folder = taken[format]
    assert {file.name for file in folder.iterdir()} == {
        *("README.md", "labels.json", "predict.py", "preprocessing.json", *FILES[format])
    }
    assert len((folder / "predict.py").read_text().splitlines()) <= 16
    given = folder.parent / ("raw.pt" if format == "pt2" else "raw.npy")
    torch.save(RAW, given) if format == "pt2" else np.save(given, RAW.numpy())
    inputs = (0.5 * RAW - torch.tensor([1.0, 0.0, 2.0, 3.0])) / 2
    of_zeros, of_file = output(PREDICT, " ".join(blocked), folder / "predict.py", given)
    assert of_file == [(EVIL, "dog")[label] for label in model(inputs).argmax(1)]
    assert len(of_zeros) == 2


def test_its_card_is_one_of_a_model_hub(taken: dict[str, Path], run: WrittenRun) -> None:
    hub = pytest.importorskip("huggingface_hub")
    card = hub.ModelCard.load(taken["pt2"] / "README.md")
    assert card.data.library_name == "pytorch"
    assert card.data.tags == ["autocompress", "model-compression", "alcn", "lc"]
    (score,) = card.data.eval_results
    assert (score.metric_type, score.metric_value, score.dataset_name) == ("accuracy", 0.94, EVIL)
    text = card.text
    assert "| accuracy (validation) | 0.9800 ±0.0100 | 0.9400 ±0.0100 | 0.959 |" in text
    assert "| file bytes | 1 kB | 100 B | 0.1 |" in text
    lines = ["the reference with alcn", "trial 1 with alcn", "trial 2 with lc"]
    assert [f"{n}. Compresses {line}" in text for n, line in enumerate(lines, 1)] == [True] * 3
    assert "lc: `steps=7`" in text
    assert "1 × factorize, 2 × encode" in text
    assert "from -90.0 to +0.0 points" in text
    assert "on 80 rows" in text
    assert "<script>" not in text
    assert str(run.folder.path) not in text  # no path of this machine


def test_a_card_says_which_file_its_figures_are_of(taken: dict[str, Path]) -> None:
    cards = {name: (folder / "README.md").read_text() for name, folder in taken.items()}
    told = "These figures are of `model.pt2`, the file that the search measured; "
    assert told not in cards["pt2"]
    for name, files in FILES.items():
        if name != "pt2":
            size = sum((taken[name] / file).stat().st_size for file in files)
            said = f"{told}`{files[0]}` is the same model in {metric_text('bytes', size)}."
            assert said in cards[name]


def test_models_of_several_inputs_run_on_what_they_are_called_with(several: Path) -> None:
    assert not (several / "labels.json").exists()
    assert "`a` [2, 3] float32, `b` [2, 4] int64" in (several / "README.md").read_text()
    given = several.parent / "given.pt"
    torch.save(((), {"a": torch.ones(2, 3), "b": torch.full((2, 4), 2)}), given)
    of_zeros, of_file = output(PREDICT, "autocompress", several / "predict.py", given)
    assert (of_zeros, of_file) == (["tensor([0., 0.])"], ["tensor([11., 11.])"])


def test_five_lines_load_a_file_and_run_it(
    run: WrittenRun, several: Path, taken: dict[str, Path], model: nn.Module
) -> None:
    single = third(run).checkpoint().manifest
    both = single | {"input": to_json({"a": torch.zeros(2, 3), "b": torch.ones(2, 4, dtype=torch.int64)})}
    files = [(single, taken[name] / FILES[name][0]) for name in taken] + [(both, several / "model.pt2")]
    snippets = [loading_lines(manifest, str(file)) for manifest, file in files]
    assert all(len(lines.splitlines()) <= 5 for lines in snippets)
    *of_single, of_pair = output(EXECUTE, given=json.dumps(snippets))
    bias = model.bias.tolist()
    for shown in of_single:
        numbers = re.findall(r"-?[0-9]+[.][0-9]+", " ".join(shown))
        assert [float(number) for number in numbers] == pytest.approx(bias * 2, abs=1e-3)
    assert of_pair == ["tensor([0., 0.])"]


def test_a_folder_with_files_in_it_stays_as_it_is(run: WrittenRun, tmp_path: Path) -> None:
    (tmp_path / "mine.txt").write_text("mine")
    point = third(run)
    with pytest.raises(SettingsError, match="folder must be new or empty"):
        take_along(run.result, point, tmp_path)
    with pytest.raises(
        SettingsError, match="format must be pt2, onnx, openvino for a folder but got 'safetensors'"
    ):
        take_along(run.result, point, tmp_path / "new", "safetensors")
    assert [file.name for file in tmp_path.iterdir()] == ["mine.txt"]


def test_what_users_call_things_stays_letter_by_letter_in_markdown() -> None:
    assert plain("a_b <b>*x*</b> | [y]\nz") == r"a_b &lt;b&gt;\*x\*&lt;/b&gt; \| \[y\] z"
    assert plain("_x_") == r"\_x\_"
    assert code("a`b`") == "`a'b'`"
