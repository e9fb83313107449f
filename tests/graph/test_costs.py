"""Counts against sums by hand."""

from __future__ import annotations

import copy
import math
from collections.abc import Callable

import pytest
import torch
from torch import Tensor, nn

from autocompress.graph import analyse
from autocompress.graph.bridging import bridge
from autocompress.graph.costs import count_params, layer_macs, profile
from autocompress.surgery import keep_units
from autocompress.weights.encoded import encode_weight
from autocompress.weights.encodings import Encoding, Factored, Pruned, Quantized, Summed
from autocompress.weights.folding import Folding


def test_macs_equal_the_sum_by_hand(residual: nn.Module, images: Tensor) -> None:
    pixels = 64
    expected = pixels * (3 * 8 * 9 + 8 * 8 * 9 + 8 * 9 + 8 * 6) + 14 * 16 * 5
    counts = layer_macs(residual, images)
    assert counts[""] == expected
    assert counts["branch"] == pixels * 8 * 8 * 9


def test_macs_of_a_copied_graph_module_are_those_of_its_layers(residual: nn.Module, images: Tensor) -> None:
    bridged = copy.deepcopy(bridge(residual, analyse(residual, images), []))
    assert layer_macs(bridged, images) == layer_macs(residual, images)


def test_cut_points_lie_behind_all_that_recurrent_layers_multiply() -> None:
    class Recurrent(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.rnn, self.head = nn.LSTM(6, 8), nn.Linear(8, 3)

        def forward(self, x: Tensor) -> Tensor:
            return self.head(torch.relu(self.rnn(x.transpose(0, 1))[0][-1]))

    x, model = torch.randn(2, 5, 6), Recurrent().eval()
    described = profile(model, x, analyse(model, x))
    assert described.macs == 5 * 4 * 8 * (6 + 8) + 8 * 3
    assert max(cut.macs for cut in described.cut_points) == described.macs - 8 * 3


def test_params_count_shared_ones_once() -> None:
    layer = nn.Linear(4, 4, bias=False)
    assert count_params(nn.Sequential(layer, layer)) == 16


def test_profile_gives_each_group_the_cost_of_its_layers(residual: nn.Module, images: Tensor) -> None:
    described = profile(residual, images, analyse(residual, images))
    side = next(group for group in described.groups if group.name == "side")
    head_share = 6 * 16 / (14 * 16)
    assert side.macs == round(64 * 8 * 6 + head_share * 14 * 16 * 5)
    assert described.params == count_params(residual)


def _quantized(shape: tuple[int, ...]) -> Encoding:
    return Quantized(torch.randn(4), torch.arange(torch.Size(shape).numel()) % 4)


def _factored(shape: tuple[int, ...]) -> Encoding:
    folding = Folding(shape)
    return Factored(torch.randn(1, folding.rows, 3), torch.randn(1, 3, folding.columns), folding)


@pytest.mark.parametrize("encoding_of", [
    _quantized,
    lambda shape: Pruned(torch.eye(64).reshape(-1)),
    _factored,
    lambda shape: Summed((_factored(shape), _quantized(shape))),
], ids=["codes", "sparse", "factors", "sum"])  # fmt: skip
def test_decoding_a_weight_counts_as_no_multiplication(encoding_of: Callable[..., Encoding]) -> None:
    model = nn.Sequential(nn.Linear(64, 64), nn.ReLU(), nn.Linear(64, 3))
    encode_weight(model[0], encoding_of((64, 64)))
    counts = layer_macs(model, torch.randn(2, 64))
    assert counts["0"] == 64 * 64
    assert counts[""] == 64 * 64 + 64 * 3
    assert model[0].encoded_weight.numbers <= 4096 + 6 * 64


def test_the_parts_of_a_cost_are_those_of_narrower_models(residual: nn.Module, images: Tensor) -> None:
    analysis = analyse(residual, images)
    known = profile(residual, images, analysis)
    keep = {group.name: list(range(max(1, group.width // 2))) for group in analysis.groups}
    shares = [len(keep[group.name]) / group.width for group in known.groups]
    cut = keep_units(residual, analysis, keep, images).model
    left = profile(cut, images, analyse(cut, images))
    for cost in ("params", "macs"):
        parts = [getattr(term, cost) * math.prod(shares[g] for g in term.groups) for term in known.cost_terms]
        assert sum(getattr(term, cost) for term in known.cost_terms) == pytest.approx(getattr(known, cost))
        assert sum(parts) == pytest.approx(getattr(left, cost))
