"""How strongly units are made and read, against sums written out in NumPy unit by unit."""

from __future__ import annotations

from collections import defaultdict

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from autocompress.graph import Analysis, analyse
from autocompress.methods.shared.gates import GateSite, insert_gates
from autocompress.methods.shared.strength import MakerNorms, ReaderNorms, find_readers, input_rms
from autocompress.methods.shared.unit_index import unit_offsets, units_by_width
from autocompress.methods.shared.units import find_makers, unit_norms
from tests.graph.zoo import MODELS

LIKE = torch.zeros(())


@pytest.fixture(params=["squeeze_excite", "shared", "shuffle", "lstm", "transformer_encoder"])
def model(request: pytest.FixtureRequest) -> nn.Module:
    torch.manual_seed(0)
    return MODELS[request.param]().eval()


def slices(weight: Tensor, dim: int) -> list[np.ndarray]:
    """The numbers at each position of a dimension."""
    return list(np.moveaxis(weight.detach().double().numpy(), dim, 0))


def made(sites: list[GateSite], units: int) -> list[float]:
    scores: list[list[float]] = [[] for _ in range(units)]
    for site in sites:
        squares: dict[int, float] = defaultdict(float)
        for name, (dim, index) in site.gated.items():
            for unit, numbers in zip(
                index.tolist(), slices(site.layer.get_parameter(name), dim), strict=True
            ):
                squares[unit] += float((numbers**2).sum())
        norms = {unit: np.sqrt(square + 1e-12) for unit, square in squares.items()}
        for unit, norm in norms.items():
            if unit < units:
                scores[unit].append(norm / np.mean(list(norms.values())))
    return [float(np.mean(score)) if score else 1.0 for score in scores]


def read(model: nn.Module, analysis: Analysis, rms: list[Tensor | None], units: int) -> list[float]:
    totals = np.zeros(units + 1)
    for reader, measured in zip(find_readers(model, analysis), rms, strict=True):
        sizes = np.ones(len(reader.index)) if measured is None else measured.double().numpy()
        weight = reader.layer.get_parameter(reader.weight)
        squares = [
            size**2 * float((numbers**2).sum())
            for size, numbers in zip(sizes, slices(weight, reader.dim), strict=True)
        ]
        for unit, square in zip(reader.index.tolist(), squares, strict=True):
            totals[unit] += square / np.mean(squares)
    return [float(np.sqrt(total + 1e-12)) for total in totals[:units]]


def test_units_are_made_and_read_as_strongly_as_their_weights_say(model: nn.Module, images: Tensor) -> None:
    analysis = analyse(model, images)
    units = unit_offsets(analysis)[-1]
    assert units
    readers = find_readers(model, analysis)
    rms = input_rms(model, readers, images)
    assert any(measured is not None for measured in rms)
    sites = insert_gates(model, analysis, images)
    maker_norms, reader_norms = MakerNorms(sites, units, LIKE), ReaderNorms(readers, rms, units, LIKE)
    for _ in range(2):
        assert maker_norms().tolist() == pytest.approx(made(sites, units), rel=1e-4)
        assert reader_norms().tolist() == pytest.approx(read(model, analysis, rms, units), rel=1e-4)
        # The weights of now count, not those that there were.
        with torch.no_grad():
            for parameter in model.parameters():
                parameter.add_(torch.randn_like(parameter))
    assert not maker_norms().requires_grad


def test_without_layers_all_units_are_alike() -> None:
    assert MakerNorms([], 3, LIKE)().tolist() == [1.0, 1.0, 1.0]
    assert ReaderNorms([], [], 3, LIKE)().tolist() == pytest.approx([1e-6] * 3)


def test_rows_that_make_a_unit_are_summed_and_what_has_no_gradient_counts_as_zero(
    model: nn.Module, images: Tensor
) -> None:
    analysis = analyse(model, images)
    makers, units = find_makers(model, analysis), unit_offsets(analysis)[-1]
    missing = makers[0].tensor
    norms = unit_norms(makers, lambda n: None if n == missing else model.get_parameter(n), units)
    squares = np.zeros(units + 1)
    for maker in makers:
        if maker.tensor != missing:
            for unit, row in zip(
                maker.units.tolist(), slices(model.get_parameter(maker.tensor), maker.dim), strict=True
            ):
                squares[unit] += (row**2).sum()
    assert np.allclose(norms, np.sqrt(squares[:units]), rtol=1e-4)
    assert not unit_norms(makers, lambda n: None, units).any()


def test_groups_of_one_width_come_together() -> None:
    by_width = units_by_width([3, 1, 3], torch.device("cpu"))
    assert [(groups.tolist(), units.tolist()) for groups, units in by_width] == [
        ([1], [[3]]),
        ([0, 2], [[0, 1, 2], [4, 5, 6]]),
    ]
    assert units_by_width([], torch.device("cpu")) == []
