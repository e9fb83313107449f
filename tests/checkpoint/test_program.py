"""Exported programs run in a process where autocompress cannot be imported."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from autocompress.checkpoint import export_onnx, export_program, load_program
from autocompress.errors import CheckpointError, TrialError

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
    loaded = load_program(tmp_path / "model.pt2")
    assert loaded.eval() is loaded
    with pytest.raises(CheckpointError, match="fixed to inference"):
        loaded.train()
