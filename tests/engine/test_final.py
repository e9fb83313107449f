"""What a finished search reports of its front: latency measured last, files that load elsewhere."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

import autocompress as ac
from autocompress.engine import final
from autocompress.measure.latency import Latency
from autocompress.report import TrialEnd

pytestmark = pytest.mark.usefixtures("shared_ray")


def test_the_front_is_measured_and_scored_again_at_the_end(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    programs = []

    def fixed(
        program: Path, reference: Path, example: object, settings: object, reference_ms: float, limit: float
    ) -> Latency:
        programs.append((program.name, reference.parent.name))
        return Latency(ratio=0.5, spread=0.01, milliseconds=0.5 * reference_ms)

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


class Damaging(ac.Progress):
    """Overwrites a file of the last trial that came to be on the front, when the trials are over."""

    def __init__(self, run: Path, trials: int) -> None:
        self.run, self.left, self.damaged, self.notes = run, trials, 0, []

    def trial_end(self, end: TrialEnd) -> None:
        self.left -= 1
        if end.remark == "on the front":
            self.damaged = end.number
        if self.left == 0:
            (self.run / "trials" / f"{self.damaged:04d}" / "model.pt2").write_bytes(b"nothing")

    def note(self, text: str) -> None:
        self.notes.append(text)


def test_a_point_whose_file_is_damaged_leaves_the_front_and_the_rest_is_reported(tmp_path: Path) -> None:
    options = {"trials": 3, "epochs": 2, "workers": 1, "methods": ["alcn"], "constraints": []}
    damaging = Damaging(tmp_path / "run", 3)
    result = ac.search("digits", **options, progress=damaging, out=tmp_path / "run")
    assert damaging.damaged
    assert damaging.damaged not in {p.trial for p in [*result.front, *result.contenders]}
    assert all(p.test_metrics for p in [result.reference, *result.front])
    said = f"trial {damaging.damaged} left the front: checkpoint file"
    assert any(note.startswith(said) for note in damaging.notes)
    assert f"Trial {damaging.damaged} left the front" in (tmp_path / "run" / "report.html").read_text()
    again = ac.search("digits", **options, progress=ac.Progress(), out=tmp_path / "run")
    assert [p.trial for p in again.front] == [p.trial for p in result.front]


def test_files_of_the_front_are_the_ones_that_were_measured(finished: ac.SearchResult) -> None:
    for point in [finished.reference, *finished.front]:
        assert point.artifact == point.path / "model.pt2"
        assert point.metrics["bytes"] == point.artifact.stat().st_size
        assert 0 < point.metrics["weight_bytes"] < point.metrics["bytes"]
        assert point.trial == 0 or point.metrics["bytes"] < finished.reference.metrics["bytes"]
