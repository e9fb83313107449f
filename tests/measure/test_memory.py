"""Memory is what a call takes beyond what the process held before."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from torch import nn

from autocompress.checkpoint import export_onnx, export_program
from autocompress.measure.artifact import peak_memory

MIB = 1 << 20


@pytest.mark.parametrize("export", [export_program, export_onnx])
def test_weights_and_activations_count(export: object, tmp_path: Path) -> None:
    """16 MiB of weights and 32 MiB of activations."""
    assert callable(export)
    model = nn.Sequential(nn.Linear(64, 2048), nn.ReLU(), nn.Linear(2048, 2048)).eval()
    path = tmp_path / ("model.onnx" if export is export_onnx else "model.pt2")
    export(model, torch.randn(2, 64), path)
    taken = peak_memory(path, torch.randn(4096, 64))
    assert 48 * MIB < taken < 160 * MIB
