"""Second factors fitted to outputs, against least squares in NumPy on patches that PyTorch unfolds."""

from __future__ import annotations

import copy

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from autocompress.methods.alds.patches import MOST_PATCHES, output_rows, sampled
from autocompress.methods.alds.refit import dense_outputs, fit_outputs, refit
from autocompress.weights.factored import factorize_layer


def patches(layer: nn.Module, x: Tensor) -> Tensor:
    """`(positions, c · taps)` by PyTorch's own unfold."""
    if isinstance(layer, nn.Linear):
        return x
    unfolded = F.unfold(x, layer.kernel_size, layer.dilation, layer.padding, layer.stride)
    return unfolded.transpose(1, 2).flatten(0, 1)


@pytest.mark.parametrize("layer", [
    nn.Linear(6, 4), nn.Linear(6, 4, bias=False), nn.Conv2d(3, 4, 3, stride=2, padding=1),
    nn.Conv2d(4, 6, (3, 1), padding=(1, 0), groups=2, bias=False),
], ids=str)  # fmt: skip
def test_a_fitted_layer_solves_the_damped_least_squares(layer: nn.Module) -> None:
    torch.manual_seed(0)
    x = torch.randn(50, 6) if isinstance(layer, nn.Linear) else torch.randn(7, layer.in_channels, 8, 8)
    with torch.no_grad():
        wanted = torch.tanh(3 * layer(x)) + 0.5
    rows, targets = patches(layer, x).double(), output_rows(layer, wanted)
    before, bias = layer.weight.detach().double(), layer.bias
    groups = getattr(layer, "groups", 1)
    expected = []
    for a, w, y in zip(rows.chunk(groups, 1), before.chunk(groups), targets.chunk(groups, 1), strict=True):
        w = w.flatten(1)
        if bias is not None:
            a = torch.cat([a, torch.ones(len(a), 1)], 1)
            w = torch.cat([w, bias.detach().double()[:, None]], 1)
        damping = 1e-3 * (a.square().sum(0).mean() if groups == 1 else _mean_square(rows, groups))
        # min ‖y − a w‖² + damping ‖w − w₀‖², as one system of more rows.
        tall = np.concatenate([a.numpy(), np.sqrt(float(damping)) * np.eye(a.shape[1])])
        right = np.concatenate([y.numpy(), np.sqrt(float(damping)) * w.T.numpy()])
        expected.append(np.linalg.lstsq(tall, right, rcond=None)[0].T)
    solution = np.concatenate(expected)
    fit_outputs(layer, x, output_rows(layer, wanted))
    columns = before[0].numel()
    np.testing.assert_allclose(layer.weight.detach().flatten(1), solution[:, :columns], atol=1e-5)
    if bias is not None:
        np.testing.assert_allclose(layer.bias.detach(), solution[:, columns], atol=1e-5)


def _mean_square(rows: Tensor, groups: int) -> Tensor:
    return torch.stack([a.square().sum(0).mean() for a in rows.chunk(groups, 1)]).mean()


def test_refitted_factors_bring_the_models_outputs_nearer_to_the_dense_ones() -> None:
    torch.manual_seed(0)
    model = nn.Sequential(
        nn.Conv2d(3, 16, 3, padding=1), nn.ReLU(), nn.Conv2d(16, 16, 3, padding=1, bias=False), nn.ReLU(),
        nn.Flatten(), nn.Linear(16 * 64, 10),
    )  # fmt: skip
    x, unseen = torch.randn(64, 3, 8, 8) + 0.5, torch.randn(64, 3, 8, 8) + 0.5
    names = ["0", "2", "5"]
    wanted = dense_outputs(model, names, x)
    factored = copy.deepcopy(model)
    for name, rank in zip(names, (3, 4, 4), strict=True):
        factored.set_submodule(
            name, factorize_layer(model.get_submodule(name), 3 if name == "2" else 0, 1, rank)
        )
    fitted = copy.deepcopy(factored)
    refit(fitted, wanted, x)
    with torch.no_grad():
        errors = [(m(unseen) - model(unseen)).norm() / model(unseen).norm() for m in (factored, fitted)]
    assert errors[1] < 0.9 * errors[0]
    assert fitted.training


def test_positions_are_the_same_each_time_and_spread_over_all() -> None:
    assert sampled(100).tolist() == list(range(100))
    places = sampled(10 * MOST_PATCHES)
    assert len(places) == len(places.unique()) == MOST_PATCHES
    assert torch.equal(places, sampled(10 * MOST_PATCHES))
    # Not every n-th one, which would be some columns of an image alone.
    assert len(torch.unique(places % 32)) == 32
