"""int8 files are a quarter of the size and compute nearly the same."""

from __future__ import annotations

import math
from pathlib import Path

import onnx
import pytest
import torch
from torch import Tensor, nn

from autocompress.checkpoint import export_onnx, export_program, load_program, reload
from autocompress.checkpoint.quantize import quantize_onnx
from autocompress.checkpoint.reload import reload_faults
from autocompress.checkpoint.store import Writer, open_checkpoint
from autocompress.errors import TrialError
from autocompress.task.limits import settle


@pytest.fixture
def network() -> nn.Module:
    torch.manual_seed(0)
    return nn.Sequential(
        nn.Conv2d(3, 64, 3), nn.ReLU(), nn.Conv2d(64, 128, 3), nn.ReLU(), nn.Flatten(), nn.Linear(2048, 64)
    ).eval()


def test_int8_is_a_quarter_of_the_size_and_close(network: nn.Module, tmp_path: Path) -> None:
    images = torch.randn(64, 3, 8, 8)
    path = tmp_path / "model.onnx"
    export_onnx(network, images[:2], path)
    whole = path.stat().st_size
    quantize_onnx(path, [images[:32], images[32:]])
    assert path.stat().st_size < 0.3 * whole
    with torch.no_grad():
        expected = network(images)
    assert (load_program(path)(images) - expected).abs().mean() < 0.05 * expected.abs().mean()
    types = {tensor.data_type for tensor in onnx.load(path).graph.initializer if tensor.dims}
    assert onnx.TensorProto.INT8 in types


def test_the_quantised_file_is_what_counts(network: nn.Module, tmp_path: Path) -> None:
    images = torch.randn(16, 3, 8, 8)
    writer = Writer(tmp_path / "made")
    checkpoint = writer.write(network, images[:2], "onnx-int8", [images])
    file = checkpoint.artifact_file("onnx-int8")
    assert file == checkpoint.path / "model.onnx"
    assert file.stat().st_size < 0.35 * checkpoint.artifact_file("pt2").stat().st_size
    writer.commit({})
    open_checkpoint(tmp_path / "made")


def float_weights(path: Path) -> set[int]:
    """Numbers of the weights that are stored as floats, biases aside."""
    tensors = onnx.load(path).graph.initializer
    return {math.prod(t.dims) for t in tensors if t.data_type == onnx.TensorProto.FLOAT and len(t.dims) > 1}


class Words(nn.Module):
    """A layer that is called on tokens, whose weight the exporter turns round and renames."""

    def __init__(self) -> None:
        super().__init__()
        self.enter, self.mix, self.head = nn.Linear(8, 40), nn.Linear(40, 48), nn.Linear(48, 5)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(torch.relu(self.mix(torch.relu(self.enter(x)))).mean(1))


@pytest.mark.parametrize("excluded", ["mix", "enter"])
def test_excluded_layers_stay_floats_and_frozen_ones_do_not(excluded: str, tmp_path: Path) -> None:
    torch.manual_seed(0)
    model, x = Words().eval(), torch.randn(16, 6, 8)
    model.head.requires_grad_(False)
    limits = settle(model, [excluded])
    writer = Writer(tmp_path / "made")
    checkpoint = writer.write(model, x[:2], "onnx-int8", [x], limits=limits)
    weight = model.get_submodule(excluded).weight
    assert float_weights(checkpoint.artifact_file("onnx-int8")) == {weight.numel()}


def test_what_cannot_be_quantised_says_so(tmp_path: Path) -> None:
    (tmp_path / "model.onnx").write_bytes(b"nothing")
    with pytest.raises(TrialError, match="could not be quantised to int8"):
        quantize_onnx(tmp_path / "model.onnx", [torch.randn(2, 3)])


def test_artefacts_load_without_this_package_and_agree(network: nn.Module, tmp_path: Path) -> None:
    images = torch.randn(16, 3, 8, 8)
    writer = Writer(tmp_path / "made")
    made = writer.write(network, images[:2], "onnx-int8", [images])
    assert reload_faults([made.path / "model.pt2", made.path / "model.onnx"], images[:3]) == {}


def test_programs_that_do_not_load_elsewhere_are_found_among_those_that_do(
    network: nn.Module, tmp_path: Path
) -> None:
    good, bad = tmp_path / "good.pt2", tmp_path / "bad.pt2"
    images = torch.randn(2, 3, 8, 8)
    export_program(network, images, good)
    bad.write_bytes(b"nothing")
    faults = reload_faults([good, bad], images)
    assert list(faults) == [bad]
    assert "bad.pt2 does not run as it should in a fresh process" in faults[bad]


def test_a_program_that_ends_the_process_is_told_from_the_others(
    network: nn.Module, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    # A native library may end the process that loads a file; this child does so for one of that name.
    source = reload._CHILD.read_text()
    child = tmp_path / "child.py"
    child.write_text(
        source.replace(
            "    if path.endswith", '    assert "bad" not in path or sys.exit(3)\n    if path.endswith', 1
        )
    )
    monkeypatch.setattr(reload, "_CHILD", child)
    images = torch.randn(2, 3, 8, 8)
    files = [tmp_path / "good.pt2", tmp_path / "bad.pt2"]
    for file in files:
        export_program(network, images, file)
    assert reload_faults(files, images) == {files[1]: "the process that loads it ended without an answer"}
