"""int8 files are a quarter of the size and compute nearly the same."""

from __future__ import annotations

import copy
import math
from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np
import onnx
import onnxruntime
import pytest
import torch
from torch import Tensor, nn

from autocompress.checkpoint import export_onnx, export_program, load_program, quantize, reload
from autocompress.checkpoint.quantize import Control, Quantized, quantize_onnx
from autocompress.checkpoint.reload import reload_faults
from autocompress.checkpoint.store import Writer, open_checkpoint
from autocompress.errors import TrialError
from autocompress.methods.lc.entropy import entropy_codebook
from autocompress.methods.lc.kmeans import kmeans
from autocompress.task.limits import settle
from autocompress.weights.encoded import encode_weight
from autocompress.weights.encodings import Encoding, Pruned, Rounded, Summed
from autocompress.weights.encodings import Quantized as Coded


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


@pytest.mark.parametrize("four_bits", [False, True])
def test_two_products_of_what_computes_in_int8_fit_in_16_bits(
    four_bits: bool, network: nn.Module, tmp_path: Path
) -> None:
    # CPUs without VNNI add them there, and would cut off what does not fit.
    images, path = torch.randn(64, 3, 8, 8), tmp_path / "model.onnx"
    export_onnx(network, images[:2], path)
    how = quantize_onnx(path, [images], four_bits=four_bits)
    model = onnx.load(path)
    makers = {node.output[0]: node for node in model.graph.node}
    names = [makers[node.input[1]].input[0] for node in model.graph.node if node.name in how.int8]
    model.graph.output.extend(onnx.ValueInfoProto(name=name) for name in names)
    session = onnxruntime.InferenceSession(model.SerializeToString(), providers=["CPUExecutionProvider"])
    weights = session.run(names, {model.graph.input[0].name: images[:1].numpy()})
    assert len(weights) == 3
    for codes in weights:
        assert codes.dtype == np.int8
        greatest = np.abs(codes.astype(int)).max()
        assert greatest > 32
        assert 2 * 255 * greatest <= 32767


@pytest.mark.parametrize(("artifact", "share"), [("onnx-int8", 0.35), ("onnx-int4", 0.2)])
def test_the_quantised_file_is_what_counts(
    artifact: str, share: float, network: nn.Module, tmp_path: Path
) -> None:
    images = torch.randn(16, 3, 8, 8)
    writer = Writer(tmp_path / "made")
    checkpoint = writer.write(network, images[:2], artifact, [images])
    file = checkpoint.artifact_file(artifact)
    assert file == checkpoint.path / "model.onnx"
    assert file.stat().st_size < share * checkpoint.artifact_file("pt2").stat().st_size
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


def differing(expected: list[Tensor], given: list[Tensor]) -> float:
    """The share of rows whose class is another one."""
    pairs = zip(expected, given, strict=True)
    return float(torch.cat([a.argmax(1) != b.argmax(1) for a, b in pairs]).float().mean())


def timed(monkeypatch: pytest.MonkeyPatch, int8: float) -> None:
    """The float file and that with int8 weights alone take a second, others as much as is said."""

    def seconds(contents: Sequence[bytes], feed: object) -> list[float]:
        return [1.0, *[int8] * (len(contents) - 2), 1.0]

    monkeypatch.setattr(quantize, "seconds_of", seconds)


class Swishing(nn.Module):
    """Two layers with an operator between them that ONNX Runtime has no integers for."""

    def __init__(self) -> None:
        super().__init__()
        self.enter, self.head = nn.Conv2d(3, 64, 3), nn.Linear(64, 40)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(nn.functional.hardswish(self.enter(x)).mean((2, 3)))


def controlled(model: nn.Module, path: Path, images: Tensor, control: Control) -> Quantized:
    export_onnx(model, images[:2], path)
    return quantize_onnx(path, [images], control=control)


def test_what_int8_makes_slower_has_int8_weights_alone(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    torch.manual_seed(0)
    model, images, path = Swishing().eval(), torch.randn(64, 3, 8, 8), tmp_path / "model.onnx"
    timed(monkeypatch, 1.2)
    how = controlled(model, path, images, Control([images], differing))
    assert (how.int8, len(how.weights), how.floats) == ((), 2, ())
    assert how.speed == 1.0
    assert float_weights(path) == {64, 40}  # a scale for each output
    with torch.no_grad():
        expected = model(images)
    assert (load_program(path)(images) - expected).abs().max() < 0.02 * expected.abs().max()
    assert reload_faults([path], images[:3]) == {}


def test_layers_whose_int8_is_faster_compute_in_it(
    network: nn.Module, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    images = torch.randn(64, 3, 8, 8)
    timed(monkeypatch, 0.5)
    how = controlled(network, tmp_path / "model.onnx", images, Control([images], lambda a, b: 0.0))
    assert (len(how.int8), how.weights, how.calibration) == (3, (), "MinMax")


def test_without_timing_all_is_quantised(network: nn.Module, tmp_path: Path) -> None:
    images = torch.randn(64, 3, 8, 8)
    how = controlled(
        network, tmp_path / "model.onnx", images, Control([images], lambda a, b: 0.0, timed=False)
    )
    assert (len(how.int8), how.speed) == (3, None)


class Outlying(nn.Module):
    """A layer whose activations have few values that are a thousand times the others'."""

    def __init__(self) -> None:
        super().__init__()
        self.enter, self.middle, self.head = nn.Linear(32, 64), nn.Linear(64, 64), nn.Linear(64, 20)
        with torch.no_grad():
            self.enter.weight[0] *= 3000
            self.middle.weight[:, 0] = 0

    def forward(self, x: Tensor) -> Tensor:
        return self.head(torch.relu(self.middle(torch.relu(self.enter(x)))))


def test_layers_that_hurt_go_back_until_the_bound_holds(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    torch.manual_seed(0)
    model, x, path = Outlying().eval(), torch.randn(256, 32), tmp_path / "model.onnx"
    timed(monkeypatch, 0.5)
    free = controlled(model, path, x[:128], Control([x[128:]], differing, bound=1.0))
    assert len(free.int8) == 3
    assert free.difference is not None
    assert free.difference > 0.1
    held = controlled(model, path, x[:128], Control([x[128:]], differing, bound=0.05))
    assert held.difference is not None
    assert held.difference <= 0.05
    assert 0 < len(held.int8) < 3
    assert set(held.int8) | set(held.weights) == set(free.int8)
    with torch.no_grad():
        assert differing([model(x[128:])], [load_program(path)(x[128:])]) == held.difference


def test_weights_that_cannot_be_int8_end_as_floats(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    model, x, path = Words().eval(), torch.randn(16, 6, 8), tmp_path / "model.onnx"
    timed(monkeypatch, 2.0)
    how = controlled(model, path, x, Control([x], lambda a, b: 0.5))
    assert how.difference == 0.5
    assert how.int8 == ()


def tenth(weights: Tensor) -> Encoding:
    """All but the greatest tenth are zero."""
    return Pruned(torch.where(weights.abs() > weights.abs().quantile(0.9), weights, 0.0))


def ternary(weights: Tensor) -> Encoding:
    codes = (weights > 0.03).long() - (weights < -0.03).long() + 1
    return Coded(torch.tensor([-0.05, 0.0, 0.05]), codes, "scale")


@pytest.mark.parametrize(
    "encode",
    [
        lambda w: Coded(*kmeans(w, 4)),
        lambda w: Coded(*kmeans(w, 200)),
        lambda w: Coded(
            torch.tensor([-0.05, 0.0, 0.05]), (w > 0.03).long() - (w < -0.03).long() + 1, "scale"
        ),
        Rounded,
        tenth,
        lambda w: Summed(
            (Coded(*kmeans(w, 2)), Pruned(torch.where(w.abs() > w.abs().quantile(0.9), w, 0.0)))
        ),
        lambda w: Coded(*entropy_codebook(w, 9, 1.5), "nonzero"),
    ],
    ids=["codebook", "many levels", "ternary", "half", "pruned", "sum", "entropy"],
)
def test_layers_that_are_stored_as_codes_become_int8(
    encode: Callable[[Tensor], Encoding], network: nn.Module, tmp_path: Path
) -> None:
    model, path = copy.deepcopy(network), tmp_path / "model.onnx"
    for name in ("0", "2", "5"):
        weight = model.get_submodule(name).weight.detach()
        encode_weight(model, encode(weight.reshape(-1)), f"{name}.weight")
    images = torch.randn(32, 3, 8, 8)
    export_onnx(model, images[:2], path)
    quantize_onnx(path, [images])
    with torch.no_grad():
        expected = model(images)
    # All weights of one level are rounded the same way, so that errors add up.
    assert (load_program(path)(images) - expected).abs().mean() < 0.15 * expected.abs().mean()


@pytest.mark.parametrize("bias", [True, False])
def test_grouped_transposed_convolutions_are_in_floats_where_they_have_a_bias(
    bias: bool, tmp_path: Path
) -> None:
    torch.manual_seed(0)
    layers = [nn.ConvTranspose2d(16, 32, 3, groups=2, bias=bias), nn.ReLU(), nn.Conv2d(32, 16, 3)]
    model, images, path = nn.Sequential(*layers).eval(), torch.randn(16, 16, 6, 6), tmp_path / "model.onnx"
    export_onnx(model, images[:2], path)
    how = quantize_onnx(path, [images])
    with torch.no_grad():
        expected = model(images)
    assert (load_program(path)(images) - expected).abs().mean() < 0.05 * expected.abs().mean()
    assert (len(how.int8), len(how.weights)) == ((1, 1) if bias else (2, 0))


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
