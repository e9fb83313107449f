"""Packed weights decode to what was encoded, take the bytes they claim, train and export."""

from __future__ import annotations

import copy
import json
import math
import pickle
import re
import tracemalloc
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import nn

from autocompress.checkpoint import export_onnx, export_program, load_program
from autocompress.checkpoint.weights import save_weights
from autocompress.errors import CheckpointError
from autocompress.weights.decoders import Codes, Sparse, SparseCodes, WeightCode, weight_code
from autocompress.weights.encoded import encode_weight
from autocompress.weights.encodings import Encoding, Factored, Pruned, Quantized, Rounded, Summed, moved
from autocompress.weights.folding import Folding
from autocompress.weights.packing import codes_per_byte, digits, pack


@pytest.mark.parametrize("k", [1, 2, 3, 4, 5, 7, 16, 17, 255, 256])
@pytest.mark.parametrize("count", [1, 7, 8, 9, 1001])
def test_codes_are_digits_of_bytes_in_base_k(k: int, count: int) -> None:
    codes = torch.from_numpy(np.random.default_rng(k).integers(0, k, count))
    m = codes_per_byte(k)
    packed = pack(codes, k, m)
    assert packed.dtype == torch.uint8
    assert len(packed) == math.ceil(count / m)
    table = digits(k, m, torch.device("cpu")).reshape(-1, m)
    assert torch.equal(table[packed.long()].reshape(-1)[:count].long(), codes)


def test_packing_takes_little_more_memory_than_what_it_makes() -> None:
    codes = torch.from_numpy(np.random.default_rng(0).integers(0, 5, 3_000_001).astype(np.uint8))
    tracemalloc.start()
    try:
        packed = pack(codes, 5, 3)
        _, most = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    assert most < len(packed) + (1 << 23)  # integers of 8 bytes for all would take 24 MB
    last = digits(5, 3, torch.device("cpu")).reshape(-1, 3)[packed[-1].long()]
    assert last.tolist() == [int(codes[-1]), 0, 0]


@pytest.mark.parametrize(
    ("k", "m"), [(1, 8), (2, 8), (3, 5), (4, 4), (5, 3), (6, 3), (7, 2), (16, 2), (17, 1)]
)
def test_as_many_codes_as_fit_share_a_byte(k: int, m: int) -> None:
    assert codes_per_byte(k) == m


def sparse(share: float, n: int = 5000) -> torch.Tensor:
    generator = torch.Generator().manual_seed(0)
    values = torch.randn(n, generator=generator)
    return values * (torch.rand(n, generator=generator) < share)


@pytest.mark.parametrize("values", [
    sparse(0.0), sparse(0.001), sparse(0.05), sparse(0.5), sparse(1.0), torch.ones(1), torch.zeros(1),
    torch.cat([torch.zeros(256), torch.ones(1), torch.zeros(1000), -torch.ones(1)]),
], ids=range(8))  # fmt: skip
def test_sparse_values_are_decoded_exactly(values: torch.Tensor) -> None:
    assert torch.equal(Sparse(Pruned(values), (len(values),))(), values)


def encodings(shape: tuple[int, ...]) -> dict[str, Encoding]:
    generator = torch.Generator().manual_seed(1)
    n = math.prod(shape)
    codes = torch.randint(0, 5, (n,), generator=generator)
    quantized = Quantized(torch.tensor([-2.0, -0.5, 0.0, 0.7, 1.5]), codes)
    pruned = Pruned(torch.randn(n, generator=generator) * (torch.rand(n, generator=generator) < 0.05))
    folding = Folding(shape, 0)
    factors = torch.randn(1, folding.rows, 2, generator=generator), torch.randn(1, 2, folding.columns)
    product = Factored(*factors, folding)
    fixed = Quantized(torch.tensor([-1.0, 1.0]), codes % 2, "fixed")
    scaled = Quantized(torch.tensor([-0.3, 0.0, 0.3]), codes % 3, "scale")
    return {
        "quantized": quantized, "pruned": pruned, "product": product, "fixed": fixed, "scaled": scaled,
        "rounded": Rounded(torch.randn(n, generator=generator).half().float()),
        "sum": Summed((quantized, pruned, product)),
    }  # fmt: skip


@pytest.mark.parametrize("kind", sorted(encodings((6, 4))))
@pytest.mark.parametrize("layer", [nn.Linear(40, 30), nn.Conv2d(8, 24, 3)], ids=["linear", "conv2d"])
def test_an_encoded_layer_equals_the_dense_one_as_a_program(
    kind: str, layer: nn.Module, tmp_path: Path
) -> None:
    encoding = encodings(tuple(layer.weight.shape))[kind]
    dense = copy.deepcopy(layer)
    with torch.no_grad():
        dense.weight.copy_(encoding.dense().reshape(layer.weight.shape))
    encoded = copy.deepcopy(layer)
    encode_weight(encoded, encoding)
    x = torch.randn(2, 40) if isinstance(layer, nn.Linear) else torch.randn(2, 8, 5, 5)
    models = {"dense": nn.Sequential(dense), "encoded": nn.Sequential(encoded)}
    size = {}
    for name, model in models.items():
        export_program(model, x, tmp_path / f"{name}.pt2")
        export_onnx(model, x, tmp_path / f"{name}.onnx")
        save_weights(model, tmp_path / f"{name}.safetensors")
        size[name] = (tmp_path / f"{name}.safetensors").stat().st_size
        with torch.no_grad():
            for file in (f"{name}.pt2", f"{name}.onnx"):
                assert torch.allclose(load_program(tmp_path / file)(x[:1]), dense(x[:1]), atol=1e-4)
    assert size["encoded"] < size["dense"]
    assert (tmp_path / "encoded.onnx").stat().st_size < (tmp_path / "dense.onnx").stat().st_size + 20_000


def test_onnx_runtime_looks_up_codes_that_are_too_many_to_be_folded(tmp_path: Path) -> None:
    layer, x = nn.Linear(200, 100), torch.randn(2, 200)
    quantized = encodings((100, 200))["quantized"]
    encode_weight(layer, quantized)
    export_onnx(nn.Sequential(layer), x, tmp_path / "model.onnx")
    with torch.no_grad():
        assert torch.allclose(load_program(tmp_path / "model.onnx")(x), layer(x), atol=1e-4)


def test_training_moves_levels_and_values_but_not_what_is_tied() -> None:
    shape = (6, 8)
    for kind, trains in (
        ("quantized", True),
        ("pruned", True),
        ("scaled", True),
        ("fixed", False),
        ("rounded", False),
    ):
        layer = nn.Linear(8, 6, bias=False)
        encode_weight(layer, encodings(shape)[kind])
        before = layer.weight.detach().clone()
        used = [p for p in layer.parameters() if p.numel()]
        assert bool(used) == trains
        if not trains:
            continue
        layer(torch.randn(5, 8)).square().mean().backward()
        torch.optim.SGD(layer.parameters(), 0.1).step()
        after = layer.weight.detach()
        assert not torch.equal(before, after)
        if kind != "quantized":
            assert torch.equal(before == 0, after == 0)
        assert len(after.unique()) == len(before.unique())


@pytest.mark.parametrize("tied", ["free", "scale"])
def test_levels_move_as_the_nearest_step_of_the_weights_would(tied: str) -> None:
    torch.manual_seed(0)
    levels, codes = torch.tensor([-0.5, 0.0, 0.5]), torch.randint(0, 3, (60,))
    layer = nn.Linear(6, 10)
    encode_weight(layer, Quantized(levels, codes, tied))
    direction = torch.randn(10, 6)
    (layer.train().weight * direction).sum().backward()
    step = direction.flatten().numpy()
    # argmin ‖A θ − step‖², where A θ are the weights that the levels can make.
    table = np.eye(3) if tied == "free" else np.array([[-1.0], [0.0], [1.0]])
    expected = np.linalg.lstsq(table[codes.numpy()], step, rcond=None)[0]
    part = layer.encoded_weight
    gradient = part.levels.grad if tied == "free" else part.scale.grad
    np.testing.assert_allclose(gradient.reshape(-1), expected, rtol=1e-5)
    trained = layer.weight.detach().clone()
    assert torch.equal(trained, layer.eval().weight)


def test_encoded_layers_are_copied_and_pickled() -> None:
    layer = nn.Conv2d(8, 24, 3)
    encode_weight(layer, encodings(tuple(layer.weight.shape))["sum"])
    for copied in (copy.deepcopy(layer), pickle.loads(pickle.dumps(layer))):
        assert isinstance(copied, nn.Conv2d)
        assert torch.equal(copied.weight, layer.weight)
        assert copied.state_dict().keys() == layer.state_dict().keys()


def test_layers_with_as_many_levels_share_the_digits_of_a_byte_wherever_they_are_moved() -> None:
    layers = nn.Sequential(nn.Linear(32, 32), nn.Linear(32, 32))
    for layer in layers:
        encode_weight(layer, encodings((32, 32))["quantized"])
    moved = copy.deepcopy(layers).double()
    assert moved[0].encoded_weight.digits is moved[1].encoded_weight.digits
    assert moved[0].encoded_weight.digits.dtype == torch.uint8
    assert moved[0].weight.dtype == torch.float64


def test_few_codes_have_a_byte_each_and_decode_without_a_table() -> None:
    code = weight_code(Quantized(torch.randn(4), torch.randint(4, (1023,))), (1023,))
    assert code.digits is None
    assert len(code.packed) == 1023
    assert torch.equal(code.packed.long(), code.packed.long().clamp(0, 3))
    # Checkpoints from before that say nothing of it have as many to a byte as fit.
    older = WeightCode.from_spec({"kind": "codes", "k": 4, "tied": "free"}, (1023,))
    assert len(older.packed) == 256
    assert older.digits is not None


def test_halves_stay_halves_and_compute_in_the_precision_of_the_model() -> None:
    layer = nn.Linear(8, 6)
    encode_weight(layer, encodings((6, 8))["rounded"])
    exact = layer.weight.detach().clone()
    for dtype in (torch.float64, torch.float16, torch.float32):
        assert layer.to(dtype).weight.dtype == dtype
        assert layer.encoded_weight.halves.dtype == torch.float16
        assert torch.equal(layer.weight.float(), exact)


def test_training_adds_no_values_to_sparse_weights() -> None:
    values = torch.zeros(20_000)
    values[[3, 300, 9000, 9001, 19_999]] = 1.0
    layer = nn.Linear(200, 100, bias=False)
    encode_weight(layer, Pruned(values))
    layer(torch.randn(5, 200)).square().mean().backward()
    torch.optim.SGD(layer.parameters(), 0.1).step()
    assert int((layer.weight != 0).sum()) == 5


def specified() -> dict[str, Encoding]:
    """Each kind of encoding, and sums of sums, of a weight `(6, 8, 3, 3)`."""
    made = encodings((6, 8, 3, 3))
    made["sum of sums"] = Summed((Summed((made["fixed"], made["product"])), made["scaled"]))
    made["all zeros"] = Pruned(torch.zeros(6 * 8 * 9))
    return made


@pytest.mark.parametrize("kind", sorted(specified()))
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_a_spec_and_the_stored_tensors_are_the_code_again(kind: str, dtype: torch.dtype) -> None:
    shape = (6, 8, 3, 3)
    code = weight_code(moved(specified()[kind], torch.zeros(0, dtype=dtype)), shape)
    again = WeightCode.from_spec(json.loads(json.dumps(code.spec)), shape).to(dtype)
    assert again.spec == code.spec
    assert again.numbers == code.numbers
    again.load_state_dict(code.state_dict())
    assert code().dtype == dtype
    assert code().shape == shape
    for training in (False, True):
        assert torch.equal(again.train(training)(), code.train(training)())
    names = [(name, p.shape, p.dtype) for name, p in code.named_parameters()]
    assert names == [(name, p.shape, p.dtype) for name, p in again.named_parameters()]


@pytest.mark.parametrize("kind", ["scaled", "quantized", "pruned", "product", "sum of sums"])
def test_a_code_made_of_its_spec_trains_like_the_one_it_came_from(kind: str) -> None:
    shape = (6, 8, 3, 3)
    code = weight_code(specified()[kind], shape)
    again = WeightCode.from_spec(code.spec, shape)
    again.load_state_dict(code.state_dict())
    direction = torch.randn(shape)
    for one in (code, again):
        (one.train()() * direction).sum().backward()
    gradients = zip(code.parameters(), again.parameters(), strict=True)
    assert all(torch.equal(a.grad, b.grad) and bool(a.grad.any()) for a, b in gradients)


@pytest.mark.parametrize(
    ("spec", "message"),
    [
        (
            {"kind": "hologram"},
            "kind of a weight's code must be one of codes, half, sparse, sparse_codes, product, verbatim, "
            "sum",
        ),
        ({}, "but got None (a plug-in that is not installed here?)"),
        ({"kind": "codes", "tied": "free"}, "code of kind 'codes' is not readable: it lacks 'k'"),
        ({"kind": "codes", "k": 2}, "it lacks 'tied'"),
        ({"kind": "sparse"}, "code of kind 'sparse' is not readable: it lacks 'values'"),
        ({"kind": "product", "scheme": 0, "groups": 1}, "it lacks 'rank'"),
        ({"kind": "sum"}, "it lacks 'parts'"),
        (
            {"kind": "sum", "parts": [{"kind": "hologram"}]},
            "must be one of codes, half, sparse, sparse_codes, product, verbatim, sum",
        ),
        ({"kind": "codes", "k": "two", "tied": "free"}, "code of kind 'codes' is not readable"),
    ],
)
def test_specs_that_cannot_be_read_are_refused(spec: dict[str, object], message: str) -> None:
    with pytest.raises(CheckpointError, match=re.escape(message)):
        WeightCode.from_spec(spec, (6, 8))


def few(share: float, n: int = 300 * 400, tied: Any = "nonzero") -> Quantized:
    """Codes of which this share is not zero, and a level that nothing has."""
    generator = torch.Generator().manual_seed(2)
    there = torch.rand(n, generator=generator) < share
    codes = torch.where(there, torch.randint(0, 3, (n,), generator=generator), 3)
    return Quantized(torch.tensor([-0.5, 0.2, 0.9, 0.0, 7.0]), codes, tied)


@pytest.mark.parametrize("share", [0.01, 0.03])
def test_codes_that_are_mostly_zero_are_stored_by_their_places(share: float) -> None:
    encoding = few(share)
    code = weight_code(encoding, (300, 400))
    assert isinstance(code, SparseCodes)
    assert torch.equal(code().reshape(-1), encoding.dense())
    again = WeightCode.from_spec(json.loads(json.dumps(code.spec)), (300, 400))
    again.load_state_dict(code.state_dict())
    assert torch.equal(again(), code())
    assert again.numbers == code.numbers
    # More than 255 zeros in a row have a stop among them.
    assert code.numbers >= int((encoding.dense() != 0).sum())


def test_codes_of_which_few_are_zero_have_one_for_each() -> None:
    assert isinstance(weight_code(few(0.9), (300, 400)), Codes)
    assert isinstance(weight_code(few(0.03, tied="free"), (300, 400)), Codes)
    assert isinstance(weight_code(few(0.03, n=24), (6, 4)), Codes)


def test_levels_that_no_number_has_take_no_place_and_more_codes_share_a_byte() -> None:
    codes = torch.arange(5000) % 15
    code = weight_code(Quantized(torch.cat([torch.arange(15.0), torch.ones(5)]), codes, "nonzero"), (50, 100))
    assert isinstance(code, Codes)
    assert len(code.levels) == 15
    assert len(code.packed) == 2500  # 15² ≤ 256 < 20²
    assert torch.equal(code().reshape(-1), codes.float())


@pytest.mark.parametrize("share", [0.03, 0.9])
def test_zeros_stay_zeros_in_training_and_other_levels_do_not(share: float) -> None:
    encoding = few(share)
    code = weight_code(encoding, (300, 400)).train()
    optimizer = torch.optim.SGD(code.parameters(), 0.1)
    (code() - 1).square().mean().backward()
    optimizer.step()
    after = code.eval()().reshape(-1)
    assert torch.equal(after == 0, encoding.dense() == 0)
    assert bool((after != encoding.dense())[encoding.dense() != 0].all())


@pytest.mark.parametrize("export", [export_program, export_onnx])
def test_a_program_decodes_codes_by_their_places(export: Any, tmp_path: Path) -> None:
    layer, x = nn.Linear(400, 300), torch.randn(2, 400)
    encode_weight(layer, few(0.03))
    path = tmp_path / ("model.pt2" if export is export_program else "model.onnx")
    export(nn.Sequential(layer), x, path)
    with torch.no_grad():
        assert torch.allclose(load_program(path)(x), layer(x), atol=1e-5)
