"""Latency is a ratio that tells a large model from a small one."""

from __future__ import annotations

import json
import re
import time
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from torch import nn

from autocompress.checkpoint import export_onnx, export_program
from autocompress.errors import SettingsError, TrialError
from autocompress.measure import artifact_child
from autocompress.measure.latency import Latency, LatencySettings, measure_latency, own_latency


def saved(width: int, path: Path) -> Path:
    model = nn.Sequential(nn.Linear(64, width), nn.ReLU(), nn.Linear(width, 64)).eval()
    export_program(model, torch.randn(2, 64), path)
    return path


def test_larger_models_have_a_larger_ratio(tmp_path: Path) -> None:
    small, large = saved(256, tmp_path / "small.pt2"), saved(4096, tmp_path / "large.pt2")
    settings = LatencySettings(batch_size=64, pairs=10)
    measured = measure_latency(large, small, torch.randn(2, 64), settings)
    assert measured.ratio > 1
    assert measured.milliseconds > 0
    assert measured.spread >= 0


@pytest.mark.parametrize("busy", [False, True])
def test_the_ratio_is_that_of_undisturbed_calls(
    busy: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """On a clock that moves only with the calls, 2 ms and 6 ms; on a busy machine some take much longer."""
    clock = SimpleNamespace(now=0.0, calls=0)
    monkeypatch.setattr(artifact_child, "time", SimpleNamespace(process_time=lambda: clock.now))
    monkeypatch.setattr(torch, "get_num_threads", lambda: 1)
    monkeypatch.setattr(torch, "set_num_threads", lambda threads: None)

    def program(path: str, *_: object) -> Callable[[], None]:
        def call() -> None:
            clock.calls += 1
            clock.now += {"reference": 0.002, "own": 0.006}[path] + 0.05 * (busy and clock.calls % 5 == 0)

        return call

    monkeypatch.setattr(artifact_child, "_loader", program)
    torch.save(torch.zeros(1), tmp_path / "inputs.pt")
    job = {"programs": ["reference", "own"], "inputs": str(tmp_path / "inputs.pt"), "threads": 1}
    job["kind"] = "latency"
    job |= {"pairs": 12, "least_seconds": 0.02}
    monkeypatch.setattr("sys.argv", ["artifact_child", json.dumps(job)])
    artifact_child.main()
    measured = Latency(**json.loads(capsys.readouterr().out))
    assert measured.ratio == pytest.approx(3)
    assert measured.milliseconds == pytest.approx(6)
    assert measured.spread == pytest.approx(0, abs=1e-9)


def test_a_failed_measurement_says_why(tmp_path: Path) -> None:
    (tmp_path / "model.pt2").write_bytes(b"nothing")
    with pytest.raises(TrialError, match="latency could not be measured"):
        measure_latency(tmp_path / "model.pt2", None, torch.randn(2, 64), LatencySettings())


def test_settings_out_of_range_are_refused() -> None:
    with pytest.raises(SettingsError, match=re.escape("latency pairs must be at least 1 but got 0.")):
        LatencySettings(pairs=0)


def test_an_onnx_file_is_timed_by_the_settings_that_are_fastest(tmp_path: Path) -> None:
    model, file = nn.Sequential(nn.Linear(64, 64), nn.ReLU()).eval(), tmp_path / "model.onnx"
    export_onnx(model, torch.randn(2, 64), file)
    measured = measure_latency(file, None, torch.randn(2, 64), LatencySettings(pairs=2, least_ms=1))
    assert measured.session["threads"] == 1
    level = {"graph_optimization_level": measured.session["graph_optimization_level"]}
    assert level in artifact_child.SETTINGS[".onnx"]


def test_settings_other_than_the_default_must_be_faster_by_more_than_noise(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    seconds = {(2, "all"): 1.0, (2, "extended"): 0.97, (2, "basic"): 0.9, (1, "all"): 0.5, (1, "basic"): 0.49}
    monkeypatch.setattr(
        artifact_child,
        "_loader",
        lambda path, inputs, threads, graph_optimization_level: (
            threads,
            graph_optimization_level,
        ),
    )
    monkeypatch.setattr(artifact_child, "_loops", lambda call, least: 1)
    monkeypatch.setattr(artifact_child, "_best_of", lambda call, loops: seconds.get(call, 1.0))
    call, chosen = artifact_child._fastest("model.onnx", None, 2, 0.1)
    assert (call, chosen) == ((1, "all"), {"threads": 1, "graph_optimization_level": "all"})


def test_a_function_of_ones_own_measures_in_milliseconds(tmp_path: Path) -> None:
    calls: list[object] = []

    def by(path: Path) -> float:
        calls.append(path)
        return 2.5

    def by_settings(path: Path, threads: int, batch_size: int) -> float:
        return batch_size + threads / 10

    file, example = tmp_path / "model.pt2", torch.zeros(1, 3)
    settings = LatencySettings(batch_size=8, threads=2, by=by)
    assert measure_latency(file, tmp_path / "reference.pt2", example, settings, 5.0) == Latency(0.5, 0.0, 2.5)
    assert measure_latency(file, None, example, settings).milliseconds == 2.5
    assert calls == [file, file]
    assert own_latency(by_settings, file, settings) == 8.2
    assert own_latency(lambda path, **options: options["threads"], file, settings) == 2


def fails(path: Path) -> float:
    raise ConnectionError("the board is away\nfor lunch")


@pytest.mark.parametrize(
    ("by", "message"),
    [
        (fails, "but failed on 'model.pt2': ConnectionError: the board is away$"),
        (time.time, "but failed on 'model.pt2': TypeError: time.time.. takes no arguments"),
        (lambda path: None, "a number greater than 0, but returned None for 'model.pt2'"),
        (lambda path: -1.0, "but returned -1.0"),
        (lambda path: float("nan"), "but returned nan"),
    ],
)
def test_a_function_that_does_not_measure_is_named_in_one_line(
    by: Callable[..., float], message: str, tmp_path: Path
) -> None:
    with pytest.raises(TrialError, match=f"^latency_by must return the milliseconds of a call.*{message}"):
        own_latency(by, tmp_path / "model.pt2", LatencySettings())
