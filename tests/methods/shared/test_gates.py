"""Gates that are wide open change nothing; gates that are shut compute what the removal does."""

from __future__ import annotations

import copy

import pytest
import torch
from torch import Tensor, nn

from autocompress.graph import Analysis, analyse, compact
from autocompress.graph.exporting import plain_attention
from autocompress.graph.proof import random_keep, relative_difference
from autocompress.methods.shared.gates import fold_gates, insert_gates, remove_gates, set_gates, unit_offsets
from tests.graph.zoo import MODELS


@pytest.fixture(params=MODELS)
def gated(request: pytest.FixtureRequest, images: Tensor) -> tuple[nn.Module, nn.Module, Analysis]:
    torch.manual_seed(0)
    model = MODELS[request.param]().eval()
    return model, copy.deepcopy(model), analyse(model, images)


def hard_gates(analysis: Analysis, keep: dict[str, list[int]]) -> Tensor:
    offsets = unit_offsets(analysis)
    survival = torch.ones(offsets[-1] + 1)
    for group, offset in zip(analysis.groups, offsets, strict=False):
        if group.name in keep:
            survival[offset : offset + group.width] = 0
            survival[[offset + unit for unit in keep[group.name]]] = 1
    return survival


def test_shut_gates_compute_what_the_compact_model_does(
    gated: tuple[nn.Module, nn.Module, Analysis], images: Tensor
) -> None:
    model, subject, analysis = gated
    keep = random_keep(analysis, [group.name for group in analysis.groups], seed=1)
    smaller, _ = compact(model, analysis, keep, images)
    sites = insert_gates(subject, analysis, images)
    set_gates(sites, hard_gates(analysis, keep))
    with torch.no_grad(), plain_attention():
        assert relative_difference(smaller(images), subject(images)) < 1e-5


def test_removed_gates_leave_the_model_as_it_was(
    gated: tuple[nn.Module, nn.Module, Analysis], images: Tensor
) -> None:
    model, subject, analysis = gated
    sites = insert_gates(subject, analysis, images)
    remove_gates(sites)
    assert [type(m) for m in subject.modules()] == [type(m) for m in model.modules()]
    assert all(torch.equal(a, b) for a, b in zip(subject.parameters(), model.parameters(), strict=True))


def test_folded_gates_scale_each_parameter_once(images: Tensor) -> None:
    torch.manual_seed(0)
    model = MODELS["shared"]().eval()
    analysis = analyse(model, images)
    sites = insert_gates(model, analysis, images)
    before = model.twin.weight.detach().clone()
    set_gates(sites, torch.full((13,), 0.5))
    fold_gates(sites)
    assert model.twin.weight is model.middle.weight
    assert torch.allclose(model.twin.weight, before * 0.5)


class LearnedState(nn.Module):
    """A recurrent layer that begins with states it has learnt."""

    def __init__(self) -> None:
        super().__init__()
        self.rnn, self.head = nn.LSTM(24, 10, 2), nn.Linear(10, 5)
        self.start = nn.Parameter(torch.randn(2, 2, 1, 10))

    def forward(self, x: Tensor) -> Tensor:
        h, c = self.start.expand(-1, -1, x.shape[0], -1).contiguous()
        return self.head(self.rnn(x.flatten(2).reshape(-1, 8, 24).transpose(0, 1), (h, c))[0][-1])


class Gru(nn.Module):
    """A layer and a cell."""

    def __init__(self) -> None:
        super().__init__()
        self.rnn, self.cell = nn.GRU(24, 10, bidirectional=True, batch_first=True), nn.GRUCell(20, 8)
        self.head = nn.Linear(8, 5)

    def forward(self, x: Tensor) -> Tensor:
        outputs, state = self.rnn(x.flatten(2).reshape(-1, 8, 24))[0], None
        for step in range(3):
            state = self.cell(outputs[:, step], state)
        return self.head(state)


@pytest.mark.parametrize("kind", [LearnedState, Gru])
@pytest.mark.parametrize("training", [False, True])
def test_shut_hidden_units_feed_neither_readers_nor_the_recurrence(
    kind: type[nn.Module], training: bool, images: Tensor
) -> None:
    torch.manual_seed(0)
    model = kind().eval()
    analysis = analyse(model, images)
    keep = random_keep(analysis, [group.name for group in analysis.groups], seed=1)
    smaller, _ = compact(model, analysis, keep, images)
    assert sum(p.numel() for p in smaller.parameters()) < sum(p.numel() for p in model.parameters())
    subject = copy.deepcopy(model)
    sites = insert_gates(subject, analysis, images)
    set_gates(sites, hard_gates(analysis, keep))
    expected = smaller.train(training)(images).detach()
    assert relative_difference(expected, subject.train(training)(images).detach()) < 1e-5
    # The gates are in the graph of gradients, as the list of a recurrent layer's weights is.
    subject(images).sum().backward()
    assert all(p.grad is not None for p in subject.parameters())
    fold_gates(sites)
    assert relative_difference(expected, subject(images).detach()) < 1e-5
