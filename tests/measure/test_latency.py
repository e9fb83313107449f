"""Latency is a ratio that tells a large model from a small one."""

from __future__ import annotations

import json
import re
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from torch import nn

from autocompress.checkpoint import export_program
from autocompress.errors import SettingsError, TrialError
from autocompress.measure import latency_child
from autocompress.measure.latency import Latency, LatencySettings, measure_latency


def saved(width: int, path: Path) -> Path:
    model = nn.Sequential(nn.Linear(64, width), nn.ReLU(), nn.Linear(width, 64)).eval()
    export_program(model, torch.randn(2, 64), path)
    return path


def test_larger_models_have_a_larger_ratio(tmp_path: Path) -> None:
    small, large = saved(256, tmp_path / "small.pt2"), saved(4096, tmp_path / "large.pt2")
    settings = LatencySettings(batch_size=64, pairs=10)
    found = measure_latency(large, small, torch.randn(2, 64), settings)
    assert found.ratio > 1
    assert found.milliseconds > 0
    assert found.spread >= 0


@pytest.mark.parametrize("busy", [False, True])
def test_the_ratio_is_that_of_undisturbed_calls(
    busy: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """On a clock that moves only with the calls, 2 ms and 6 ms; on a busy machine some take much longer."""
    clock = SimpleNamespace(now=0.0, calls=0)
    monkeypatch.setattr(latency_child, "time", SimpleNamespace(process_time=lambda: clock.now))
    monkeypatch.setattr(torch, "get_num_threads", lambda: 1)
    monkeypatch.setattr(torch, "set_num_threads", lambda threads: None)

    def program(path: str, *_: object) -> Callable[[], None]:
        def call() -> None:
            clock.calls += 1
            clock.now += {"reference": 0.002, "own": 0.006}[path] + 0.05 * (busy and clock.calls % 5 == 0)

        return call

    monkeypatch.setattr(latency_child, "_loader", program)
    torch.save(torch.zeros(1), tmp_path / "inputs.pt")
    job = {"programs": ["reference", "own"], "inputs": str(tmp_path / "inputs.pt"), "threads": 1}
    job |= {"pairs": 12, "least_seconds": 0.02}
    monkeypatch.setattr("sys.argv", ["latency_child", json.dumps(job)])
    latency_child.main()
    found = Latency(**json.loads(capsys.readouterr().out))
    assert found.ratio == pytest.approx(3)
    assert found.milliseconds == pytest.approx(6)
    assert found.spread == pytest.approx(0, abs=1e-9)


def test_a_failed_measurement_says_why(tmp_path: Path) -> None:
    (tmp_path / "model.pt2").write_bytes(b"nothing")
    with pytest.raises(TrialError, match="latency could not be measured"):
        measure_latency(tmp_path / "model.pt2", None, torch.randn(2, 64), LatencySettings())


def test_settings_out_of_range_are_refused() -> None:
    with pytest.raises(SettingsError, match=re.escape("latency pairs must be at least 1 but got 0.")):
        LatencySettings(pairs=0)
