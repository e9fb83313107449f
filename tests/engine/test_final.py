"""What a finished search reports of its front: latency measured last, files that load elsewhere."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

import autocompress as ac
from autocompress.engine import final
from autocompress.metrics.latency import Latency


def test_the_front_is_measured_and_scored_again_at_the_end(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    programs = []

    def fixed(program: Path, reference: Path, *_: object) -> Latency:
        programs.append((program.name, reference.parent.name))
        return Latency(ratio=0.5, spread=0.01, milliseconds=1.0)

    monkeypatch.setattr(final, "measure_latency", fixed)
    options = {"objectives": ["acc_comp", "latency", "bytes"], "trials": 2, "epochs": 2, "workers": 1}
    result = ac.search("digits", **options, artifact="onnx-int8", tau=0.8, out=tmp_path / "run")
    compressed = [p for p in result.front if p.trial != 0]
    assert compressed
    assert set(programs) == {("model.onnx", "reference")}
    for point in compressed:
        assert point.metrics["latency"] == pytest.approx(0.5 * result.reference.metrics["latency"])
        assert point.metrics["latency_spread"] == 0.01
        saved = 1 - point.metrics["params"] / result.reference.metrics["params"]
        for values in (point.metrics, point.test_metrics):
            assert values["acc_comp"] == pytest.approx(0.8 * values["accuracy"] + 0.2 * saved)
        manifest = json.loads((point.path / "manifest.json").read_text())
        assert manifest["artifact"] == "onnx-int8"
        assert point.metrics["bytes"] == (point.path / "model.onnx").stat().st_size
    assert result.reference.checkpoint().manifest["artifact"] == "onnx"
    with pytest.raises(ac.UsageError, match="format must be onnx where int8 was measured"):
        compressed[0].export(tmp_path / "float.pt2")
    exported = compressed[0].export(tmp_path / "int8.onnx")
    assert exported.stat().st_size == compressed[0].metrics["bytes"]
    again = ac.load_run(tmp_path / "run")
    assert [p.metrics for p in again.front] == [p.metrics for p in result.front]


def test_files_of_the_front_are_loaded_in_a_fresh_process(
    finished: ac.SearchResult, monkeypatch: pytest.MonkeyPatch
) -> None:
    seen: list[Path] = []
    monkeypatch.setattr(final, "check_reload", lambda programs, inputs: seen.extend(programs))

    class Fake:
        class task:
            @staticmethod
            def example(count: int) -> None:
                return None

    final.check_front(Fake(), finished)  # type: ignore[arg-type]
    points = {p.path for p in [finished.reference, *finished.front]}
    assert {path.parent for path in seen} == points
    assert {path.name for path in seen} == {"model.pt2"}
