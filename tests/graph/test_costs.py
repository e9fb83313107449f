"""Counts against sums by hand."""

from __future__ import annotations

import copy

from torch import Tensor, nn

from autocompress.graph import analyse
from autocompress.graph.bridging import bridge
from autocompress.graph.costs import count_params, layer_macs, profile


def test_macs_equal_the_sum_by_hand(residual: nn.Module, images: Tensor) -> None:
    pixels = 64
    expected = pixels * (3 * 8 * 9 + 8 * 8 * 9 + 8 * 9 + 8 * 6) + 14 * 16 * 5
    counts = layer_macs(residual, images)
    assert counts[""] == expected
    assert counts["branch"] == pixels * 8 * 8 * 9


def test_macs_of_a_copied_graph_module_are_those_of_its_layers(residual: nn.Module, images: Tensor) -> None:
    bridged = copy.deepcopy(bridge(residual, analyse(residual, images), []))
    assert layer_macs(bridged, images) == layer_macs(residual, images)


def test_params_count_shared_ones_once() -> None:
    layer = nn.Linear(4, 4, bias=False)
    assert count_params(nn.Sequential(layer, layer)) == 16


def test_profile_gives_each_group_the_cost_of_its_layers(residual: nn.Module, images: Tensor) -> None:
    found = profile(residual, images, analyse(residual, images))
    side = next(group for group in found.groups if group.name == "side")
    head_share = 6 * 16 / (14 * 16)
    assert side.macs == round(64 * 8 * 6 + head_share * 14 * 16 * 5)
    assert found.params == count_params(residual)
