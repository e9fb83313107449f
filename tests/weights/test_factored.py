"""Folding is a rearrangement, and two factors compute what the dense layer with their weight does."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from torch import nn

from autocompress.checkpoint import export_onnx, export_program, load_program
from autocompress.weights.factored import (
    factorize_layer,
    folding_of,
    layer_kind,
    layer_weight,
    outputs_first,
    recompose,
)
from autocompress.weights.folding import Folding, schemes_of

LAYERS: dict[str, tuple[nn.Module, tuple[int, ...]]] = {
    "linear": (nn.Linear(12, 7), (12,)),
    "linear without bias": (nn.Linear(12, 7, bias=False), (12,)),
    "linear on tokens": (nn.Linear(12, 7), (5, 12)),
    "conv1d": (nn.Conv1d(8, 6, 3, stride=2, padding=2), (8, 11)),
    "conv2d": (nn.Conv2d(8, 6, 3, padding=1), (8, 9, 7)),
    "conv2d, unequal everything": (
        nn.Conv2d(8, 6, (3, 5), stride=(2, 1), padding=(0, 3), dilation=(1, 2)),
        (8, 9, 13),
    ),
    "conv2d, same": (nn.Conv2d(8, 6, (3, 5), padding="same"), (8, 9, 7)),
    "conv2d, valid": (nn.Conv2d(8, 6, 3, padding="valid"), (8, 9, 7)),
    "conv2d, reflect": (nn.Conv2d(8, 6, 3, padding=1, padding_mode="reflect"), (8, 9, 7)),
    "conv2d, circular": (nn.Conv2d(8, 6, 3, padding=(1, 2), padding_mode="circular"), (8, 9, 7)),
    "conv2d, grouped": (nn.Conv2d(8, 6, 3, groups=2), (8, 9, 7)),
    "conv2d, depthwise": (nn.Conv2d(8, 16, 3, groups=8), (8, 9, 7)),
    "conv2d, 1 x 1": (nn.Conv2d(8, 6, 1, stride=2, bias=False), (8, 9, 7)),
    "conv3d": (nn.Conv3d(4, 6, 3, stride=(1, 2, 1), padding=1), (4, 5, 6, 7)),
    "transposed 1d": (nn.ConvTranspose1d(8, 6, 4, stride=2, padding=1), (8, 7)),
    "transposed 2d": (
        nn.ConvTranspose2d(
            8, 12, (3, 4), stride=(2, 3), padding=(0, 1), output_padding=(1, 2), groups=2, bias=False
        ),
        (8, 4, 5),
    ),
    "transposed 3d": (nn.ConvTranspose3d(4, 6, 2, dilation=(1, 2, 1)), (4, 3, 4, 3)),
    "embedding": (nn.Embedding(12, 7, padding_idx=3), (5,)),
}
CASES = [
    pytest.param(layer, shape, scheme, slices, id=f"{name}, scheme {scheme}, {slices} slices")
    for name, (layer, shape) in LAYERS.items()
    for scheme in schemes_of(tuple(layer_weight(layer).shape))
    for slices in (1, 2, 4)
    if layer_weight(layer).shape[1] % slices == 0 and (name != "embedding" or slices == 1)
]


def inputs(layer: nn.Module, shape: tuple[int, ...]) -> torch.Tensor:
    return torch.randint(12, (3, *shape)) if isinstance(layer, nn.Embedding) else torch.randn(3, *shape)


@pytest.mark.parametrize(("shape", "schemes"), [
    ((4, 3), (0,)), ((4, 3, 1, 1), (0,)), ((4, 3, 3), (0, 1)), ((4, 3, 3, 3), (0, 1, 2, 3)),
    ((4, 3, 1, 3), (0, 2)), ((4, 3, 3, 3, 3), tuple(range(8))),
])  # fmt: skip
def test_schemes_are_those_that_differ(shape: tuple[int, ...], schemes: tuple[int, ...]) -> None:
    assert schemes_of(shape) == schemes


def test_foldings_are_those_of_the_paper() -> None:
    weight = np.random.default_rng(0).normal(size=(5, 4, 2, 3))
    expected = {
        0: weight.reshape(5, 24),
        1: weight.transpose(0, 2, 1, 3).reshape(10, 12),
        2: weight.transpose(0, 3, 1, 2).reshape(15, 8),
        3: weight.transpose(0, 2, 3, 1).reshape(30, 4),
    }
    for scheme, matrix in expected.items():
        folding = Folding((5, 4, 2, 3), scheme)
        assert np.array_equal(folding.fold(torch.from_numpy(weight))[0].numpy(), matrix)
    sliced = Folding((5, 4, 2, 3), 0, slices=2).fold(torch.from_numpy(weight)).numpy()
    assert np.array_equal(np.concatenate(list(sliced), 1), weight.reshape(5, 24))


@pytest.mark.parametrize(("layer", "shape", "scheme", "slices"), CASES)
def test_factors_equal_the_dense_layer_with_the_reconstructed_weight(
    layer: nn.Module, shape: tuple[int, ...], scheme: int, slices: int
) -> None:
    torch.manual_seed(0)
    folding = folding_of(layer, scheme, slices)
    kind, weight = layer_kind(layer), layer_weight(layer)
    assert kind is not None
    assert torch.equal(folding.unfold(folding.fold(weight)), weight)
    x = inputs(layer, shape)
    rank = max(1, folding.full_rank // 2)
    pair = factorize_layer(layer, scheme, slices, rank)
    u, s, vt = np.linalg.svd(folding.fold(weight).detach().numpy(), full_matrices=False)
    cut = torch.from_numpy((u[:, :, :rank] * s[:, None, :rank]) @ vt[:, :rank])
    reconstructed = folding.unfold(cut)
    assert torch.allclose(recompose(pair, folding), reconstructed, atol=1e-5)
    with torch.no_grad():
        kept = outputs_first(kind, reconstructed, folding.groups)
        assert torch.allclose(pair.weight, kept, atol=1e-5)
        dense = torch.func.functional_call(layer, {"weight": kept}, (x,))
        assert torch.allclose(pair(x), dense, atol=1e-5)
    numbers = sum(p.numel() for p in pair.parameters())
    channels = weight.shape[1] * folding.groups
    unit = channels * np.prod(folding.column_kernel) + weight.shape[0] * slices * np.prod(folding.row_kernel)
    assert numbers == rank * unit + (0 if getattr(layer, "bias", None) is None else weight.shape[0])


def test_layers_that_keep_inputs_first_say_so() -> None:
    assert layer_weight(nn.Embedding(12, 7)).shape == (7, 12)
    transposed = nn.ConvTranspose1d(8, 6, 4, groups=2)
    weight = layer_weight(transposed)
    assert weight.shape == (6, 4, 4)
    # The second output of the second group reads that group's four channels.
    assert torch.equal(weight[4], transposed.weight[4:, 1])
    assert layer_kind(nn.EmbeddingBag(12, 7)) is layer_kind(nn.LSTM(3, 4)) is None


def test_gpt2s_linear_layer_is_one_with_its_inputs_first() -> None:
    layer = pytest.importorskip("transformers.pytorch_utils").Conv1D(7, 12)
    x = torch.randn(3, 5, 12)
    pair = factorize_layer(layer, 0, 2, 3)
    with torch.no_grad():
        layer.weight.copy_(pair.weight)
        assert torch.allclose(pair(x), layer(x), atol=1e-5)
    assert torch.equal(layer_weight(layer), layer.weight.mT)
    assert (pair.nf, pair.nx) == (7, 12)


@pytest.mark.parametrize("name", ["linear on tokens", "conv1d", "conv2d, grouped", "conv3d", "transposed 2d"])
def test_factors_train_and_export(name: str, tmp_path: Path) -> None:
    layer, shape = LAYERS[name]
    torch.manual_seed(0)
    x = torch.randn(3, *shape)
    pair = factorize_layer(layer, schemes_of(tuple(layer_weight(layer).shape))[-1], 2, 1)
    before = [p.detach().clone() for p in pair.parameters()]
    pair(x).square().mean().backward()
    torch.optim.SGD(pair.parameters(), 0.1).step()
    assert all(not torch.equal(a, b) for a, b in zip(before, pair.parameters(), strict=True))
    export_program(pair, x, tmp_path / "model.pt2")
    export_onnx(pair, x, tmp_path / "model.onnx")
    for file in ("model.pt2", "model.onnx"):
        with torch.no_grad():
            assert torch.allclose(load_program(tmp_path / file)(x[:1]), pair(x[:1]), atol=1e-5)


def test_factors_of_a_frozen_layer_are_frozen() -> None:
    frozen, free = nn.Linear(6, 6).requires_grad_(False), nn.Linear(6, 6)
    assert [p.requires_grad for p in factorize_layer(frozen, 0, 1, 2).parameters()] == [False] * 3
    assert [p.requires_grad for p in factorize_layer(free, 0, 1, 2).parameters()] == [True] * 3


@pytest.mark.parametrize("layer", [nn.Linear(6, 6), nn.Conv2d(6, 6, 3)], ids=["linear", "conv2d"])
def test_a_bias_is_frozen_or_not_by_itself(layer: nn.Module) -> None:
    layer.bias.requires_grad_(False)
    assert [p.requires_grad for p in factorize_layer(layer, 0, 1, 2).parameters()] == [True, True, False]
    layer.requires_grad_(False).bias.requires_grad_(True)
    assert [p.requires_grad for p in factorize_layer(layer, 0, 1, 2).parameters()] == [False, False, True]


@pytest.mark.parametrize("columns", [0, 3])
def test_factors_of_what_is_zero_can_still_be_trained(columns: int) -> None:
    torch.manual_seed(0)
    layer = nn.Linear(6, 5)
    with torch.no_grad():
        # All of it, as torchvision's ViT starts its head; or a rank below the one asked for.
        layer.weight[:, columns:] = 0
        layer.weight[:, :columns] = layer.weight[:, :1].expand(-1, columns)
    x = torch.randn(8, 6)
    pair = factorize_layer(layer, 0, 1, 4)
    assert torch.allclose(pair(x), layer(x), atol=1e-6)
    (pair(x) - 1).square().sum().backward()
    moved = pair[1].weight.grad
    assert moved is not None
    # Each of the four directions gets a gradient that is not lost in rounding.
    assert moved.norm(dim=0).min() > 1e-3
