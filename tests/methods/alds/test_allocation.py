"""Spectra against NumPy, and allocations against every other allocation."""

from __future__ import annotations

import itertools
import math
from collections import OrderedDict
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils.data import DataLoader, TensorDataset

import autocompress as ac
from autocompress.methods.alds import decomposition, spectra
from autocompress.methods.alds.allocation import LayerOptions, Option, allocate
from autocompress.methods.alds.config import Config
from autocompress.methods.alds.patches import MOST_PATCHES, layer_inputs, patch_moments
from autocompress.methods.alds.spectra import _DENSE, MEASURES, Measure, Spectrum, project, spectrum
from autocompress.sharing import sharing
from autocompress.weights.folding import Folding


def cut(matrices: np.ndarray, rank: int) -> np.ndarray:
    u, s, vt = np.linalg.svd(matrices, full_matrices=False)
    return (u[:, :, :rank] * s[:, None, :rank]) @ vt[:, :rank]


def reference(matrices: np.ndarray, groups: int, rank: int, measure: str) -> float:
    """The error by its definition, from the reconstructed weight."""
    tail = matrices - cut(matrices, rank)
    wide = [np.concatenate(list(part), 1) for part in np.split(matrices, groups)]
    whole = max(np.linalg.norm(part, 2) for part in wide)
    if measure == "slices":
        return max(np.linalg.norm(part, 2) for part in tail) / whole
    if measure == "operator":
        parts = [np.concatenate(list(part), 1) for part in np.split(tail, groups)]
        return max(np.linalg.norm(part, 2) for part in parts) / whole
    return float(np.linalg.norm(tail) / np.linalg.norm(matrices))


@pytest.mark.parametrize("measure", ["slices", "operator", "frobenius"])
@pytest.mark.parametrize(("slices", "groups", "rows", "columns"), [
    (1, 1, 6, 10), (2, 1, 6, 10), (4, 1, 12, 3), (2, 3, 5, 4), (3, 1, _DENSE + 20, _DENSE + 40),
])  # fmt: skip
def test_errors_equal_numpys_on_the_reconstructed_weight(
    measure: Measure, slices: int, groups: int, rows: int, columns: int
) -> None:
    rng = np.random.default_rng(0)
    matrices = rng.normal(size=(slices * groups, rows, columns))
    spectra = Spectrum(torch.from_numpy(matrices), groups)
    for rank in {1, 2, min(rows, columns) // 2, min(rows, columns) - 1}:
        assert spectra.error(rank, measure) == pytest.approx(
            reference(matrices, groups, rank, measure), rel=1e-5
        )
        assert np.allclose(project(torch.from_numpy(matrices), rank).numpy(), cut(matrices, rank), atol=1e-8)
    assert spectra.error(min(rows, columns), measure) == 0.0


@pytest.mark.parametrize("measure", MEASURES)
def test_least_rank_is_the_first_within_the_error(measure: Measure) -> None:
    torch.manual_seed(0)
    moments = None
    if measure == "data":
        x = torch.randn(3, 50, 9, dtype=torch.float64)
        moments = x.mT @ x / 50
    spectra = Spectrum(torch.randn(3, 8, 9), 1, moments)
    for epsilon in np.linspace(0, 1, 23):
        within = [rank for rank in range(1, 9) if spectra.error(rank, measure) <= epsilon]
        assert spectra.least_rank(float(epsilon), measure, 8) == min(within, default=None)
        capped = [rank for rank in within if rank <= 3]
        assert spectra.least_rank(float(epsilon), measure, 3) == min(capped, default=None)


@pytest.mark.parametrize("layer", [
    nn.Linear(6, 5), nn.Conv2d(6, 5, 3, stride=2, padding=1), nn.Conv2d(6, 6, 3, groups=2, dilation=2),
    nn.Conv1d(6, 5, 5, padding="same"),
], ids=str)  # fmt: skip
def test_data_error_is_that_of_the_outputs(layer: nn.Module) -> None:
    torch.manual_seed(0)
    shape = {2: (64, 6), 3: (16, 6, 12), 4: (8, 6, 9, 9)}[layer.weight.dim()]
    x = torch.randn(shape) * torch.linspace(0.1, 3, 6).view(1, 6, *[1] * (len(shape) - 2))
    folding = Folding(tuple(layer.weight.shape), 0, getattr(layer, "groups", 1))
    model = nn.Sequential(layer)
    inputs = layer_inputs(model, ["0"], x)["0"]
    moments = patch_moments(layer, inputs, folding)
    matrices = folding.fold(layer.weight.detach())
    spectra = spectrum(layer.weight, folding, "data", moments)
    for rank in (1, 2):
        weight = folding.unfold(project(matrices, rank, moments))
        with torch.no_grad():
            bias = torch.zeros_like(layer.bias)
            whole = torch.func.functional_call(layer, {"weight": layer.weight, "bias": bias}, (x,))
            small = torch.func.functional_call(layer, {"weight": weight, "bias": bias}, (x,))
            plain = folding.unfold(project(matrices, rank))
            naive = torch.func.functional_call(layer, {"weight": plain, "bias": bias}, (x,))
        assert spectra.error(rank, "data") == pytest.approx(
            float((whole - small).norm() / whole.norm()), rel=1e-3
        )
        # No matrix of that rank loses less of these outputs; the plain SVD knows nothing of them.
        assert (whole - small).norm() < (whole - naive).norm()


class Largest(TorchDispatchMode):
    """The most numbers of a tensor that was made."""

    most = 0

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        made = func(*args, **(kwargs or {}))
        if isinstance(made, Tensor):
            self.most = max(self.most, made.numel())
        return made


def test_memory_of_moments_hangs_on_what_is_sampled_not_on_how_large_images_are() -> None:
    layer, x = nn.Conv2d(4, 2, 5, padding=2), torch.randn(16, 4, 96, 96)
    with Largest() as largest:
        patch_moments(layer, x, Folding(tuple(layer.weight.shape)))
    patches = x.numel() * 25
    assert largest.most <= max(16 * 4 * 100 * 100, MOST_PATCHES * 4 * 25) < patches / 15


def test_moments_beyond_a_bound_are_computed_again(monkeypatch: pytest.MonkeyPatch) -> None:
    torch.manual_seed(0)
    inputs, labels = torch.randn(40, 8), torch.randint(0, 3, (40,))
    loader = DataLoader(TensorDataset(inputs, labels), batch_size=20)
    task = ac.Task(model=lambda: nn.Linear(8, 3), train=loader, val=loader)
    model = nn.Sequential(nn.Linear(8, 8), nn.ReLU(), nn.Linear(8, 3))
    monkeypatch.setattr(decomposition, "_MOST_BYTES", 8 * 8 * 8)
    bounded = decomposition.Decomposer(model, task, Config(keep=0.5, measure="data"))
    choices = bounded.allocate(0.5).choices
    assert sum(moments.nbytes for moments in bounded._moments.values()) <= 8 * 8 * 8
    monkeypatch.undo()
    free = decomposition.Decomposer(model, task, Config(keep=0.5, measure="data"))
    assert free.allocate(0.5).choices == choices
    assert len(free._moments) > len(bounded._moments)


def small_layers(seed: int) -> list[LayerOptions]:
    torch.manual_seed(seed)
    layers = []
    for name, shape in (("a", (4, 6)), ("b", (3, 4, 2, 2)), ("c", (5, 4))):
        weight = torch.randn(shape) @ torch.diag(torch.linspace(0.2, 2, shape[-1]))
        options = []
        for scheme in (0, 3) if len(shape) == 4 else (0,):
            for slices in (1, 2):
                folding = Folding(shape, scheme, 1, slices)
                kernel = math.prod(folding.column_kernel), math.prod(folding.row_kernel)
                unit = shape[1] * kernel[0] + shape[0] * slices * kernel[1]
                options.append(
                    Option(scheme, slices, spectrum(weight, folding, "operator"), unit, folding.full_rank)
                )
        layers.append(LayerOptions(name, math.prod(shape), tuple(options)))
    return layers


@pytest.mark.parametrize("measure", ["slices", "operator", "frobenius"])
@pytest.mark.parametrize("seed", range(4))
def test_no_allocation_is_better_than_ours(measure: Measure, seed: int) -> None:
    layers = small_layers(seed)
    every = []
    for layer in layers:
        ways = [(0.0, layer.dense)]
        for option in layer.options:
            for rank in range(1, option.most + 1):
                ways.append((option.spectrum.error(rank, measure), rank * option.unit_cost))
        every.append(ways)
    dense = sum(layer.dense for layer in layers)
    combinations = [
        (max(error for error, _ in ways), sum(cost for _, cost in ways)) for ways in itertools.product(*every)
    ]
    for share in (0.4, 0.5, 0.62, 0.8, 0.99, 1.0):
        allocation = allocate(layers, measure, share * dense)
        best = min((error for error, cost in combinations if cost <= share * dense), default=None)
        if best is None:
            assert allocation is None
        else:
            assert allocation is not None
            assert allocation.cost <= share * dense
            assert allocation.error == pytest.approx(best, abs=1e-7)


def test_layers_stay_dense_where_that_is_cheaper() -> None:
    layers = small_layers(0)
    allocation = allocate(layers, "operator", sum(layer.dense for layer in layers))
    assert allocation is not None
    assert allocation.error == 0.0
    dense = {layer.name: layer.dense for layer in layers}
    assert all(choice.cost < dense[name] for name, choice in allocation.choices.items())


def test_a_weight_of_zeros_has_no_error() -> None:
    spectra = Spectrum(torch.zeros(2, _DENSE + 10, _DENSE + 10))
    assert spectra.error(1, "operator") == 0.0
    assert spectra.least_rank(0.0, "slices", 5) == 1


@pytest.mark.parametrize("measure", MEASURES)
def test_spectra_of_a_reference_are_computed_once_a_run(
    measure: Measure, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    weight, folding = torch.randn(12, 8, 3, 3), Folding((12, 8, 3, 3), 0, slices=2)
    moments = torch.eye(36, dtype=torch.float64).repeat(2, 1, 1) if measure == "data" else None
    with sharing(tmp_path):
        mine = spectrum(weight, folding, measure, moments)
        # As another worker process would start.
        monkeypatch.setattr(spectra, "_cache", OrderedDict())
        monkeypatch.setattr(Spectrum, "__post_init__", lambda *_: pytest.fail("computed again"))
        theirs = spectrum(weight, folding, measure, moments)
    assert [theirs.error(r, measure) for r in range(13)] == [mine.error(r, measure) for r in range(13)]
