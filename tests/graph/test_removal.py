"""Surgery updates the layers' own sizes and keeps shared parameters shared."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from autocompress.graph import analyse, remove_channels


def test_size_attributes_follow_the_tensors(residual: nn.Module, images: Tensor) -> None:
    analysis = analyse(residual, images)
    compact = remove_channels(residual, analysis, {"stem": [1, 4, 6]})
    assert compact.stem.out_channels == 3
    assert compact.norm.num_features == 3
    assert compact.depthwise.groups == compact.depthwise.in_channels == 3
    assert compact.head.in_features == (3 + 6) * 16
    assert residual.stem.out_channels == 8


def test_kept_units_keep_their_own_weights(residual: nn.Module, images: Tensor) -> None:
    analysis = analyse(residual, images)
    compact = remove_channels(residual, analysis, {"stem": [1, 4, 6]})
    assert torch.equal(compact.stem.weight, residual.stem.weight[[1, 4, 6]])
    assert torch.equal(compact.norm.running_var, residual.norm.running_var[[1, 4, 6]])
    assert torch.equal(compact.branch.weight, residual.branch.weight[[1, 4, 6]][:, [1, 4, 6]])


def test_shared_parameters_stay_shared() -> None:
    first, second = nn.Linear(4, 4), nn.Linear(4, 4)
    second.weight = first.weight
    model = nn.Sequential(nn.Linear(4, 4), nn.ReLU(), first, nn.ReLU(), second, nn.ReLU(), nn.Linear(4, 2))
    analysis = analyse(model.eval(), torch.randn(2, 4))
    keep = {group.name: [0, 1] for group in analysis.groups}
    compact = remove_channels(model, analysis, keep)
    assert compact[2].weight is compact[4].weight
    assert compact[2].weight.shape == (2, 2)
