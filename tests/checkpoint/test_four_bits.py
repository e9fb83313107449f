"""Weights of 4 bits: what they are nearest to, that a file decodes them exactly, and which stay at 8."""

from __future__ import annotations

import math
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import onnx
import pytest
import torch
from onnx import numpy_helper
from torch import Tensor, nn

import autocompress as ac
from autocompress.checkpoint import export_onnx, load_program
from autocompress.checkpoint.four_bits import BLOCK, Blocks, FourBits, in_blocks
from autocompress.checkpoint.onnx_options import OnnxOptions, adapt_onnx
from autocompress.checkpoint.program import weight_bytes
from autocompress.checkpoint.quantize import Control, Quantized, quantize_onnx
from autocompress.checkpoint.reload import reload_faults
from autocompress.errors import SettingsError
from autocompress.task.inputs import to_json

# A tensor's shape, its dimension of outputs, and the order of dimensions in which outputs come first.
LAYOUTS = {
    "convolution": ((6, 8, 3, 3), 0, (0, 1, 2, 3)),
    "matrix product": ((70, 12), 1, (1, 0)),
    "linear layer": ((5, 37), 0, (0, 1)),
    "transposed convolution": ((33, 4, 2, 2), 1, (1, 2, 3, 0)),
}


def decoded(blocks: Blocks, shape: tuple[int, ...]) -> np.ndarray:
    products = (blocks.codes.astype(int) * blocks.multipliers).reshape(blocks.padded)
    return products[:, : blocks.inputs].reshape(shape)


@pytest.mark.parametrize(("shape", "dimension", "order"), LAYOUTS.values(), ids=LAYOUTS.keys())
def test_an_output_whose_weights_are_multiples_of_its_own_is_kept_exactly(
    shape: tuple[int, ...], dimension: int, order: tuple[int, ...]
) -> None:
    random = np.random.default_rng(0)
    outputs_first = tuple(shape[place] for place in order)
    multiplier = random.integers(1, 19, (outputs_first[0], *[1] * (len(shape) - 1)))
    values = (random.integers(-7, 8, outputs_first) * multiplier).transpose(np.argsort(order))
    blocks = in_blocks(values.astype(np.int8), dimension)
    assert np.array_equal(decoded(blocks, shape), values)
    assert blocks.codes.shape[1] <= BLOCK


def test_multipliers_are_nearer_than_the_greatest_weight_would_have_them() -> None:
    values = np.clip(np.random.default_rng(0).normal(0, 40, (16, 320)), -127, 127).astype(np.int8)
    error = np.square(decoded(in_blocks(values, 0), values.shape) - values.astype(float)).mean()
    by_block = values.reshape(16, 10, 32).astype(float)
    scale = np.abs(by_block).max(axis=2, keepdims=True) / 7
    naive = np.square(np.rint(by_block / scale) * scale - by_block).mean()
    assert error < naive


@pytest.fixture
def network() -> nn.Module:
    """With 37 channels, which blocks do not divide."""
    torch.manual_seed(0)
    return nn.Sequential(
        *(nn.Conv2d(3, 40, 3), nn.ReLU(), nn.Conv2d(40, 37, 3), nn.ReLU()),
        *(nn.ConvTranspose2d(37, 16, 2), nn.Flatten(), nn.Linear(400, 64)),
    ).eval()


def test_a_file_decodes_exactly_what_is_nearest_in_any_process(network: nn.Module, tmp_path: Path) -> None:
    images, path = torch.randn(16, 3, 8, 8), tmp_path / "model.onnx"
    export_onnx(network, images[:2], path)
    quantize_onnx(path, [images])
    initializers = onnx.load(path).graph.initializer
    names = [t.name for t in initializers if t.data_type == onnx.TensorProto.INT8 and len(t.dims) > 1]
    weights = {name: (name, 1 if name.startswith("4.weight") else 0) for name in names}
    int8, smaller = FourBits(path.read_bytes(), weights), tmp_path / "smaller.onnx"
    assert (len(names), len(int8.nodes)) == (4, 3)  # the first layer has 1,080 weights
    smaller.write_bytes(int8.stored(int8.nodes))
    nearest = onnx.load(path)
    for tensor in [tensor for tensor in nearest.graph.initializer if tensor.name in int8.nodes]:
        values = numpy_helper.to_array(tensor)
        products = decoded(in_blocks(values, weights[tensor.name][1]), values.shape)
        tensor.CopyFrom(numpy_helper.from_array(products.astype(np.int8), tensor.name))
    onnx.save(nearest, tmp_path / "nearest.onnx")
    assert torch.equal(load_program(smaller)(images), load_program(tmp_path / "nearest.onnx")(images))
    count = sum(math.prod(tensor.dims) for tensor in nearest.graph.initializer if tensor.name in int8.nodes)
    saved = path.stat().st_size - smaller.stat().st_size
    assert 3.75 / 8 * count - 800 * 3 < saved < 3.75 / 8 * count
    onnx.checker.check_model(onnx.load(smaller))
    assert reload_faults([smaller], images[:3]) == {}


def moved(expected: Sequence[Tensor], given: Sequence[Tensor]) -> float:
    return float((torch.cat([*expected]) - torch.cat([*given])).abs().max().detach())


def test_layers_that_hurt_in_4_bits_stay_at_8(tmp_path: Path) -> None:
    torch.manual_seed(0)
    model = nn.Sequential(
        nn.Linear(64, 64), nn.ReLU(), nn.Linear(64, 64), nn.ReLU(), nn.Linear(64, 32)
    ).eval()
    with torch.no_grad():  # of one size each, which 4 bits keep; the last layer's are of many
        for layer in (model[0], model[2]):
            layer.weight.copy_(layer.weight.sign() / 8)
    x, path = torch.randn(256, 64), tmp_path / "model.onnx"
    export_onnx(model, x[:2], path)
    floats = path.read_bytes()

    def quantized(bound: float) -> Quantized:
        path.write_bytes(floats)
        control = Control([x[128:]], moved, bound, timed=False)
        how = quantize_onnx(path, [x[:128]], control=control, four_bits=True)
        given = load_program(path)(x[128:])
        assert moved([model(x[128:])], [given]) == pytest.approx(how.difference, abs=1e-5)
        return how

    free = quantized(math.inf)
    assert (len(free.four_bits), len(free.int8)) == (3, 3)
    assert free.difference is not None
    held = quantized(0.6 * free.difference)
    assert held.int8 == free.int8
    assert {*free.four_bits} - {*held.four_bits} == {free.int8[-1]}
    assert quantized(0.0).four_bits == ()


def test_a_model_without_a_layer_to_store_in_4_bits_is_refused(tmp_path: Path) -> None:
    batches = [(torch.randn(8, 8), torch.arange(8) % 2)]
    task = ac.Task(model=lambda: nn.Linear(8, 2), train=batches, val=batches)
    with pytest.raises(SettingsError, match=r"onnx-int4 must be of a model with a layer of at least 2,048"):
        ac.search(task, artifact="onnx-int4", out=tmp_path / "run")
    assert not (tmp_path / "run" / "reference").exists()


def test_two_codes_of_4_bits_take_a_byte(network: nn.Module, tmp_path: Path) -> None:
    images, path = torch.randn(4, 3, 8, 8), tmp_path / "model.onnx"
    export_onnx(network, images[:2], path)
    assert quantize_onnx(path, [images], four_bits=True).four_bits
    bits = {"INT4": 4, "INT8": 8, "UINT8": 8, "INT32": 32, "FLOAT": 32, "INT64": 64}
    tensors = onnx.load(path).graph.initializer
    kinds = [onnx.TensorProto.DataType.Name(tensor.data_type) for tensor in tensors]
    assert "INT4" in kinds
    sizes = [-(-math.prod(t.dims) * bits[kind] // 8) for t, kind in zip(tensors, kinds, strict=True)]
    assert weight_bytes(path) == sum(sizes) < path.stat().st_size


def test_an_opset_that_has_no_4_bits_is_refused(network: nn.Module, tmp_path: Path) -> None:
    images, path = torch.randn(4, 3, 8, 8), tmp_path / "model.onnx"
    export_onnx(network, images[:2], path)
    quantize_onnx(path, [images], four_bits=True)
    with pytest.raises(SettingsError, match=r"opset must be at least 21 for weights of 4 bits but got 17\."):
        adapt_onnx(path, OnnxOptions(opset=17), to_json(images))
    adapt_onnx(path, OnnxOptions(opset=22, output_names=("classes",)), to_json(images))
