"""OpenVINO's files compute what their models do, in processes that have not this package too."""

from __future__ import annotations

import sys
from collections.abc import Sequence
from pathlib import Path

import pytest
import torch
from torch import Tensor, nn

import autocompress as ac
from autocompress.checkpoint import export_openvino, load_program, reload
from autocompress.checkpoint.openvino_int8 import quantize_openvino
from autocompress.checkpoint.program import files_of, weight_bytes
from autocompress.checkpoint.quantize import Control
from autocompress.checkpoint.quantize import Quantized as HowQuantized
from autocompress.checkpoint.store import Writer
from autocompress.errors import CheckpointError, SettingsError, TrialError
from autocompress.measure.artifact import peak_memory
from autocompress.measure.latency import LatencySettings, measure_latency
from autocompress.methods.lc.kmeans import kmeans
from autocompress.result import ParetoModel
from autocompress.task.inputs import tensors, to_json
from autocompress.task.limits import settle
from autocompress.trial import Measuring, train_reference
from autocompress.weights.encoded import encode_weight
from autocompress.weights.encodings import Pruned, Quantized
from autocompress.weights.packing import codes_per_byte


class Several(nn.Module):
    """Two inputs, one of them integers, and a dict of outputs."""

    def __init__(self) -> None:
        super().__init__()
        self.table = nn.Embedding(10, 4)

    def forward(self, x: Tensor, ids: Tensor) -> dict[str, object]:
        embedded = self.table(ids)
        return {"sum": x + embedded, "both": (embedded.mean(1), x.mean(1))}


def test_a_file_computes_what_its_model_does_for_any_batch_size(
    residual: nn.Module, images: Tensor, tmp_path: Path
) -> None:
    path = tmp_path / "model.xml"
    export_openvino(residual, images[:2], path)
    program = load_program(path)
    for rows in (images, images[:1]):
        assert torch.allclose(program(rows), residual(rows), atol=1e-5)
    assert reload.reload_faults([path], images) == {}
    assert {file.name for file in tmp_path.iterdir()} == {file.name for file in files_of(path)}


def test_outputs_are_in_the_containers_that_the_model_returns(tmp_path: Path) -> None:
    model = Several().eval()
    inputs = torch.randn(3, 4), torch.tensor([1, 5, 9])
    export_openvino(model, inputs, tmp_path / "model.xml")
    answer = load_program(tmp_path / "model.xml")(inputs)
    expected = model(*inputs)
    assert answer.keys() == expected.keys()
    assert isinstance(answer["both"], tuple)
    assert all(torch.allclose(*pair) for pair in zip(tensors(answer), tensors(expected), strict=True))


def test_codes_stay_codes(tmp_path: Path) -> None:
    model = nn.Sequential(nn.Linear(64, 256), nn.ReLU(), nn.Linear(256, 4)).eval()
    codes = torch.randint(0, 4, (64 * 256,), generator=torch.Generator().manual_seed(0))
    encode_weight(model, Quantized(torch.tensor([-0.1, 0.0, 0.1, 0.2]), codes), "0.weight")
    path, rows = tmp_path / "model.xml", torch.randn(3, 64)
    export_openvino(model, rows, path)
    dense = 4 * (256 + 4 * 256 + 4)
    assert weight_bytes(path) < 2000 + dense + len(codes) // codes_per_byte(4)
    assert torch.allclose(load_program(path)(rows), model(rows), atol=1e-5)


def test_time_and_memory_are_measured_by_openvino(tmp_path: Path) -> None:
    """16 MiB of weights."""
    model = nn.Sequential(nn.Linear(64, 2048), nn.ReLU(), nn.Linear(2048, 2048)).eval()
    path, rows = tmp_path / "model.xml", torch.randn(2, 64)
    export_openvino(model, rows, path)
    timed = measure_latency(path, None, rows, LatencySettings(pairs=1, least_ms=1))
    assert timed.milliseconds > 0
    assert timed.session.keys() == {"threads", "static_shapes"}
    assert 16 << 20 < peak_memory(path, rows) < 160 << 20


def test_a_damaged_file_is_named(tmp_path: Path) -> None:
    (tmp_path / "model.xml").write_text("<net>")
    with pytest.raises(CheckpointError, match=r"model\.xml' cannot be loaded"):
        load_program(tmp_path / "model.xml")


def test_an_operator_that_openvino_does_not_know_is_named(tmp_path: Path) -> None:
    class Determinant(nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            return torch.linalg.det(x)

    with pytest.raises(TrialError, match=r"could not be written for OpenVINO: .*Det"):
        export_openvino(Determinant().eval(), torch.randn(2, 3, 3), tmp_path / "model.xml")


@pytest.mark.parametrize(("missing", "artifact"), [("openvino", "openvino"), ("nncf", "openvino-int8")])
def test_without_a_package_of_the_extra_a_line_says_what_to_install(
    missing: str, artifact: str, residual_task: ac.Task, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, missing, None)
    with pytest.raises(SettingsError, match=r"pip install 'autocompress\[openvino\]'"):
        ac.search(residual_task, artifact=artifact, out=tmp_path / "run")
    assert not (tmp_path / "run" / "reference").exists()


def test_a_checkpoint_deploys_and_exports_what_openvino_runs(residual_task: ac.Task, tmp_path: Path) -> None:
    task = residual_task.with_recipe(epochs=1)
    checkpoint = train_reference(task, tmp_path / "0000", Measuring(("accuracy", "bytes"), "openvino"))
    metrics = checkpoint.manifest["metrics"]
    point = ParetoModel(0, checkpoint.path, metrics, {}, {}, {})
    assert point.artifact.name == "model.xml"
    sizes = [file.stat().st_size for file in files_of(point.artifact)]
    assert (metrics["bytes"], metrics["weight_bytes"]) == (sum(sizes), sizes[1])
    written = point.export(tmp_path / "out" / "mine.xml")
    for stored, copied in zip(files_of(point.artifact), files_of(written), strict=True):
        assert stored.read_bytes() == copied.read_bytes()
    with pytest.raises(SettingsError, match=r"path must end in \.xml"):
        point.export(tmp_path / "mine.bin", "openvino")


def test_other_checkpoints_are_exported_for_openvino(
    residual: nn.Module, images: Tensor, tmp_path: Path
) -> None:
    writer = Writer(tmp_path / "0001")
    writer.write(residual, images, "pt2")
    writer.commit({"artifact": "pt2", "input": to_json(images)})
    point = ParetoModel(1, tmp_path / "0001", {}, {}, {}, {})
    program = load_program(point.export(tmp_path / "model.xml"))
    assert torch.allclose(program(images), residual(images), atol=1e-5)


class Branching(nn.Module):
    """A convolution, one that is transposed, and two linear layers; a dict of outputs."""

    def __init__(self) -> None:
        super().__init__()
        self.enter, self.up = nn.Conv2d(3, 32, 3), nn.ConvTranspose2d(32, 48, 3)
        self.mix, self.head = nn.Linear(48, 64), nn.Linear(64, 10)

    def forward(self, x: Tensor) -> dict[str, object]:
        wide = torch.relu(self.up(torch.relu(self.enter(x)))).flatten(2).transpose(1, 2)
        mixed = torch.relu(self.mix(wide)).mean(1)
        return {"scores": self.head(mixed), "features": (mixed,)}


def moved(expected: Sequence[dict[str, Tensor]], given: Sequence[dict[str, Tensor]]) -> float:
    """The squared error of scores relative to how much they vary."""
    before, after = (torch.cat([outputs["scores"] for outputs in side]) for side in (expected, given))
    return float((before - after).square().mean() / before.var())


def test_an_int8_file_is_smaller_and_as_exact_as_was_asked(tmp_path: Path) -> None:
    torch.manual_seed(0)
    model, path, images = Branching().eval(), tmp_path / "model.xml", torch.randn(48, 3, 8, 8)
    export_openvino(model, images[:2], path)
    floats = {file: file.read_bytes() for file in files_of(path)}
    with torch.no_grad():
        expected = model(images[32:])

    def quantized(bound: float) -> HowQuantized:
        for file, content in floats.items():
            file.write_bytes(content)
        how = quantize_openvino(path, [images[:16], images[16:32]], (), Control([images[32:]], moved, bound))
        assert moved([expected], [load_program(path)(images[32:])]) == pytest.approx(how.difference, rel=1e-3)
        return how

    free = quantized(1.0)
    assert (len(free.int8), free.floats, free.calibration) == (4, (), "NNCF")
    weights = sum(parameter.numel() for parameter in model.parameters() if parameter.dim() > 1)
    assert len(floats[path.with_suffix(".bin")]) - weight_bytes(path) > 2.5 * weights
    assert {file.name for file in tmp_path.iterdir()} == {"model.xml", "model.bin"}
    answer = load_program(path)(images[:3])
    assert isinstance(answer["features"], tuple)
    assert reload.reload_faults([path], images[:3]) == {}
    assert free.difference is not None
    held = quantized(free.difference / 4)
    assert held.difference is not None
    assert held.difference <= free.difference / 4
    assert {*held.int8} | {*held.floats} == {*free.int8}
    assert held.floats


def test_excluded_layers_stay_floats_in_an_int8_file(tmp_path: Path) -> None:
    images = torch.randn(16, 3, 8, 8)
    limits = settle(model := Branching().eval(), ["up", "head"])
    writer = Writer(tmp_path / "0001")
    made = writer.write(model, images[:2], "openvino-int8", [images], limits=limits)
    assert made.artifact_file("openvino-int8").name == "model.xml"
    assert writer.quantized is not None
    assert (len(writer.quantized.int8), len(writer.quantized.floats)) == (2, 2)
    writer.commit({"artifact": "openvino-int8", "input": to_json(images)})
    point = ParetoModel(1, tmp_path / "0001", {}, {}, {}, {})
    written = point.export(tmp_path / "mine.xml")
    assert written.with_suffix(".bin").read_bytes() == point.artifact.with_suffix(".bin").read_bytes()
    with pytest.raises(SettingsError, match="format must be openvino where int8 was measured"):
        point.export(tmp_path / "mine.onnx")


def test_layers_that_are_stored_as_codes_become_int8(tmp_path: Path) -> None:
    torch.manual_seed(0)
    model = nn.Sequential(
        nn.Linear(64, 256), nn.ReLU(), nn.Linear(256, 40), nn.ReLU(), nn.Linear(40, 8)
    ).eval()
    for name, encode in (("0", lambda w: Quantized(*kmeans(w, 4))), ("2", tenth)):
        encode_weight(model, encode(model.get_submodule(name).weight.detach().reshape(-1)), f"{name}.weight")
    path, rows = tmp_path / "model.xml", torch.randn(32, 64)
    export_openvino(model, rows[:2], path)
    how = quantize_openvino(path, [rows])
    assert (len(how.int8), how.floats) == (3, ())
    weights = 64 * 256 + 256 * 40 + 40 * 8
    assert weight_bytes(path) < weights + 3000  # scales, biases and ranges of activations
    with torch.no_grad():
        expected = model(rows)
    assert (load_program(path)(rows) - expected).abs().mean() < 0.05 * expected.abs().mean()


def tenth(weights: Tensor) -> Pruned:
    """All but the greatest tenth are zero."""
    return Pruned(torch.where(weights.abs() > weights.abs().quantile(0.9), weights, 0.0))


def test_what_nncf_cannot_quantise_says_so(residual: nn.Module, images: Tensor, tmp_path: Path) -> None:
    path = tmp_path / "model.xml"
    export_openvino(residual, images[:2], path)
    with pytest.raises(TrialError, match="could not be quantised to int8"):
        quantize_openvino(path, [torch.randn(2, 5)])
