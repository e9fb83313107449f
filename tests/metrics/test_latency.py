"""Latency is a ratio that tells a large model from a small one."""

from __future__ import annotations

import re
from pathlib import Path

import pytest
import torch
from torch import nn

from autocompress.checkpoint import export_program
from autocompress.errors import SettingsError, TrialError
from autocompress.metrics.latency import LatencySettings, measure_latency


def saved(width: int, path: Path) -> Path:
    model = nn.Sequential(nn.Linear(64, width), nn.ReLU(), nn.Linear(width, 64)).eval()
    export_program(model, torch.randn(2, 64), path)
    return path


def test_larger_models_have_a_larger_ratio_and_equal_ones_about_one(tmp_path: Path) -> None:
    small, large = saved(256, tmp_path / "small.pt2"), saved(4096, tmp_path / "large.pt2")
    settings = LatencySettings(batch_size=64, pairs=10)
    example = torch.randn(2, 64)
    assert measure_latency(large, small, example, settings).ratio > 4
    same = measure_latency(small, small, example, settings)
    assert same.ratio == pytest.approx(1, abs=0.3)
    assert same.milliseconds > 0
    assert same.spread >= 0


def test_a_failed_measurement_says_why(tmp_path: Path) -> None:
    (tmp_path / "model.pt2").write_bytes(b"nothing")
    with pytest.raises(TrialError, match="latency could not be measured"):
        measure_latency(tmp_path / "model.pt2", None, torch.randn(2, 64), LatencySettings())


def test_settings_out_of_range_are_refused() -> None:
    with pytest.raises(SettingsError, match=re.escape("latency pairs must be at least 1 but got 0.")):
        LatencySettings(pairs=0)
