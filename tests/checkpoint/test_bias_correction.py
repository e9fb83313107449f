"""Biases of int8 layers give back what rounding moves the mean of their outputs by."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import onnx
import pytest
import torch
from onnx import numpy_helper
from torch import Tensor, nn

from autocompress.checkpoint import export_onnx, load_program
from autocompress.checkpoint.bias_correction import Feed, with_corrected_biases
from autocompress.checkpoint.quantize import Control, Quantized, quantize_onnx


class Unlike(nn.Module):
    """A depthwise convolution on channels whose ranges differ by up to 64, which are rounded alike."""

    def __init__(self) -> None:
        super().__init__()
        self.enter = nn.Conv2d(3, 64, 3)
        self.depthwise = nn.Conv2d(64, 64, 3, groups=64)
        self.mix, self.head = nn.Conv2d(64, 64, 1), nn.Linear(64, 20)
        with torch.no_grad():
            scales = torch.logspace(0, -6, 64, base=2)
            self.enter.weight *= scales[:, None, None, None]
            self.enter.bias *= scales
            self.depthwise.weight /= scales[:, None, None, None]

    def forward(self, x: Tensor) -> Tensor:
        x = torch.relu(self.depthwise(torch.relu(self.enter(x))))
        return self.head(torch.relu(self.mix(x)).mean((2, 3)))


def squared(expected: list[Tensor], given: list[Tensor]) -> float:
    """The squared error over how much is expected to vary."""
    return float((expected[0] - given[0]).square().mean() / expected[0].var())


def made(model: nn.Module, path: Path, x: Tensor, control: Control | None = None) -> Quantized:
    export_onnx(model, x[:2], path)
    return quantize_onnx(path, [x], control=control)


@pytest.fixture
def model() -> nn.Module:
    torch.manual_seed(0)
    return Unlike().eval()


def mean_shift(model: nn.Module, path: Path, x: Tensor) -> Tensor:
    """By how much the mean of each output differs from the model's."""
    with torch.no_grad():
        return (model(x) - load_program(path)(x)).mean(0).abs()


def test_the_mean_of_each_output_is_the_float_one(model: nn.Module, tmp_path: Path) -> None:
    x = torch.randn(256, 3, 10, 10)
    float_file, path = tmp_path / "float.onnx", tmp_path / "model.onnx"
    export_onnx(model, x[:2], float_file)
    made(model, path, x)
    before = mean_shift(model, path, x)

    def batches() -> Iterator[Feed]:
        (given,) = onnx.load(path).graph.input
        yield from ({given.name: part.numpy()} for part in x.split(64))

    plain = onnx.load(path)
    corrected = with_corrected_biases(onnx.load(path), onnx.load(float_file), batches)
    path.write_bytes(corrected.SerializeToString())
    assert mean_shift(model, path, x).max() < 0.2 * before.max()
    changed = [
        before.name
        for before, after in zip(plain.graph.initializer, corrected.graph.initializer, strict=True)
        if before.SerializeToString() != after.SerializeToString()
    ]
    # One bias each, still in integers of 32 bits.
    assert len(changed) == 4
    types = {t.name: t.data_type for t in corrected.graph.initializer}
    assert {types[name] for name in changed} == {onnx.TensorProto.INT32}


def test_biases_move_by_what_rounding_moved_the_layer(model: nn.Module, tmp_path: Path) -> None:
    x = torch.randn(64, 3, 10, 10)
    layer = nn.Conv2d(3, 64, 3).eval()
    float_file, path = tmp_path / "float.onnx", tmp_path / "model.onnx"
    export_onnx(layer, x[:2], float_file)
    how = made(layer, path, x)
    quantized = onnx.load(path)
    (given,), (output,) = quantized.graph.input, how.int8
    constants = {t.name: torch.tensor(numpy_helper.to_array(t)) for t in quantized.graph.initializer}
    node = next(n for n in quantized.graph.node if n.name == output)
    decoded = {n.output[0]: n for n in quantized.graph.node}
    bias, bias_scale = (constants[name] for name in decoded[node.input[2]].input[:2])
    codes, scales = (constants[name] for name in decoded[node.input[1]].input[:2])
    step, zero = (constants[name] for name in decoded[node.input[0]].input[1:3])
    rounded = ((x / step).round() + zero).clamp(0, 255) - zero
    in_steps = torch.nn.functional.conv2d(
        rounded * step, codes * scales[:, None, None, None], bias * bias_scale
    )
    with torch.no_grad():
        expected = (layer(x) - in_steps).mean((0, 2, 3)) / bias_scale
    with_corrected_biases(quantized, onnx.load(float_file), lambda: iter([{given.name: x.numpy()}]))
    corrected = {t.name: torch.tensor(numpy_helper.to_array(t)) for t in quantized.graph.initializer}
    moved = corrected[decoded[node.input[2]].input[0]] - bias
    assert (moved - expected).abs().max() <= 1
    assert moved.abs().max() > 2


class Rounding(nn.Module):
    """Weights that are all rounded up, by a seventh, but for the greatest, and positive inputs."""

    def __init__(self) -> None:
        super().__init__()
        self.enter, self.head = nn.Linear(32, 64), nn.Linear(64, 20)
        with torch.no_grad():
            self.enter.bias += 3
            self.head.weight[:] = 3.51 / 64
            self.head.weight[:, ::16] = torch.rand(20, 4)
            self.head.weight[:, 0] = 1

    def forward(self, x: Tensor) -> Tensor:
        return self.head(torch.relu(self.enter(x)))


def test_biases_are_corrected_before_layers_go_back(tmp_path: Path) -> None:
    torch.manual_seed(0)
    model, x, path = Rounding().eval(), torch.randn(256, 32), tmp_path / "model.onnx"
    free = made(model, path, x, Control([x], squared, bound=100.0, timed=False))
    assert free.difference is not None
    assert not free.corrected_biases
    held = made(model, path, x, Control([x], squared, bound=0.1 * free.difference, timed=False))
    assert held.corrected_biases
    assert held.int8 == free.int8
    assert held.difference is not None
    assert held.difference <= 0.1 * free.difference
    with torch.no_grad():
        assert squared([model(x)], [load_program(path)(x)]) == pytest.approx(held.difference, rel=1e-3)


def test_what_has_no_bias_stays_as_it_is(tmp_path: Path) -> None:
    x = torch.randn(64, 12)
    model = nn.Sequential(nn.Linear(12, 96, bias=False), nn.ReLU(), nn.Linear(96, 16, bias=False)).eval()
    float_file, path = tmp_path / "float.onnx", tmp_path / "model.onnx"
    export_onnx(model, x[:2], float_file)
    made(model, path, x)
    plain = onnx.load(path)
    (given,) = plain.graph.input
    corrected = with_corrected_biases(
        onnx.load(path), onnx.load(float_file), lambda: iter([{given.name: x.numpy()}])
    )
    assert corrected == plain
