"""Exported programs run in a process where autocompress cannot be imported."""

from __future__ import annotations

import json
import math
import subprocess
import sys
import zipfile
from pathlib import Path

import numpy as np
import onnx
import pytest
import torch
from torch import Tensor, nn

from autocompress.checkpoint import export_onnx, export_program, load_program
from autocompress.checkpoint.program import load_module, weight_bytes
from autocompress.errors import CheckpointError, TrialError
from autocompress.weights.encoded import encode_weight
from autocompress.weights.encodings import Quantized

ALONE = """
import sys
class Refuse:
    def find_spec(self, name, path=None, target=None):
        if name.split(".")[0] in ("autocompress", "search_spaces"):
            raise ImportError(name)
sys.meta_path.insert(0, Refuse())
import numpy as np, torch
try:
    import autocompress
    raise SystemExit("autocompress was importable")
except ImportError:
    pass
model = torch.export.load(sys.argv[1]).module()
for batch in (1, 2, 5):
    x = torch.from_numpy(np.load(sys.argv[2])[:batch])
    with torch.no_grad():
        np.save(f"{sys.argv[3]}{batch}.npy", model(x).numpy())
"""


def test_program_gives_the_same_outputs_where_autocompress_is_not_importable(
    residual: nn.Module, tmp_path: Path
) -> None:
    x = torch.randn(5, 3, 8, 8)
    export_program(residual, x[:2], tmp_path / "model.pt2")
    np.save(tmp_path / "x.npy", x.numpy())
    arguments = [tmp_path / "model.pt2", tmp_path / "x.npy", tmp_path / "y"]
    subprocess.run([sys.executable, "-c", ALONE, *map(str, arguments)], check=True, cwd=tmp_path)
    for batch in (1, 2, 5):
        with torch.no_grad():
            expected = residual(x[:batch]).numpy()
        assert np.allclose(np.load(tmp_path / f"y{batch}.npy"), expected, atol=1e-6)


def test_onnx_gives_the_same_outputs(residual: nn.Module, images: Tensor, tmp_path: Path) -> None:
    export_onnx(residual, images[:2], tmp_path / "model.onnx")
    program = load_program(tmp_path / "model.onnx")
    with torch.no_grad():
        for batch in (1, 4):
            assert torch.allclose(program(images[:batch]), residual(images[:batch]), atol=1e-5)


def test_export_leaves_the_training_mode_alone(residual: nn.Module, images: Tensor, tmp_path: Path) -> None:
    residual.train()
    export_program(residual, images, tmp_path / "model.pt2")
    assert residual.training


def test_models_that_cannot_be_exported_fail_with_their_reason(tmp_path: Path) -> None:
    class Branching(nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            return x if x.sum() > 0 else -x

    with pytest.raises(TrialError, match="could not be exported"):
        export_program(Branching(), torch.randn(2, 3), tmp_path / "model.pt2")


def test_missing_and_damaged_programs_are_refused(tmp_path: Path) -> None:
    with pytest.raises(CheckpointError, match="must be an existing file"):
        load_program(tmp_path / "model.pt2")
    (tmp_path / "model.pt2").write_bytes(b"nothing")
    with pytest.raises(CheckpointError, match="cannot be loaded"):
        load_program(tmp_path / "model.pt2")


def test_loaded_modules_accept_eval_and_refuse_training(
    residual: nn.Module, images: Tensor, tmp_path: Path
) -> None:
    export_program(residual, images, tmp_path / "model.pt2")
    loaded = load_module(tmp_path / "model.pt2")
    assert loaded.eval() is loaded
    with pytest.raises(CheckpointError, match="fixed to inference"):
        loaded.train()


def encoded_chain(levels: int, width: int = 128) -> nn.Module:
    """Three square layers whose weights take few levels, most often the first."""
    model = nn.Sequential(*(nn.Linear(width, width) for _ in range(3)))
    generator = torch.Generator().manual_seed(0)
    for layer in model:
        skewed = torch.rand(width * width, generator=generator).pow(4) * levels
        encode_weight(layer, Quantized(torch.randn(levels, generator=generator), skewed.long()))
    return model


def test_programs_are_deflated_and_hold_no_debugging_metadata(residual: nn.Module, tmp_path: Path) -> None:
    export_program(residual, torch.randn(2, 3, 8, 8), tmp_path / "model.pt2")
    with zipfile.ZipFile(tmp_path / "model.pt2") as archive:
        assert {entry.compress_type for entry in archive.infolist()} == {zipfile.ZIP_DEFLATED}
        graph = json.loads(archive.read("model/models/model.json"))["graph_module"]["graph"]
    assert graph["nodes"]
    for node in graph["nodes"]:
        assert not {"stack_trace", "nn_module_stack", "source_fn_stack", "torch_fn"} & set(node["metadata"])


def test_equal_models_make_equal_files_whatever_they_are_called(residual: nn.Module, tmp_path: Path) -> None:
    for name in ("one.pt2", "other.pt2"):
        export_program(residual, torch.randn(2, 3, 8, 8), tmp_path / name)
    sizes = {(tmp_path / name).stat().st_size for name in ("one.pt2", "other.pt2")}
    assert len(sizes) == 1


def test_the_archive_codes_codes_near_their_entropy(tmp_path: Path) -> None:
    model = encoded_chain(levels=5)
    export_program(model, torch.randn(2, 128), tmp_path / "model.pt2")
    skewed = (torch.rand(128 * 128 * 3, generator=torch.Generator().manual_seed(1)).pow(4) * 5).long()
    shares = torch.bincount(skewed) / len(skewed)
    entropy = float(-(shares * shares.log2()).sum()) * len(skewed) / 8
    biases_and_levels = 4 * (3 * 128 + 3 * 5)
    assert 0.95 * entropy < weight_bytes(tmp_path / "model.pt2") < 1.25 * entropy + biases_and_levels


@pytest.mark.parametrize("levels", [2, 4, 5, 16])
def test_onnx_files_keep_codes_and_no_debugging_metadata(levels: int, tmp_path: Path) -> None:
    width = 48  # small enough for the exporter to compute the weights, were it let
    model = encoded_chain(levels, width)
    export_onnx(model, torch.randn(2, width), tmp_path / "model.onnx")
    proto = onnx.load(tmp_path / "model.onnx")
    for item in (*proto.graph.node, *proto.graph.initializer, *proto.graph.input, *proto.graph.output):
        assert not item.metadata_props
        assert not item.doc_string
    floats = [t for t in proto.graph.initializer if t.data_type == onnx.TensorProto.FLOAT]
    assert max(math.prod(t.dims) for t in floats) <= width
    assert weight_bytes(tmp_path / "model.onnx") < 3 * width * width
    x = torch.randn(5, width)
    with torch.no_grad():
        assert torch.allclose(load_program(tmp_path / "model.onnx")(x), model(x), atol=1e-4)
