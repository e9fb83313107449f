"""Hidden units of recurrent layers are cut from all of their layers, directions and gates."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor, nn

from autocompress.graph import analyse, compact

WORDS = torch.randint(20, (3, 7), generator=torch.Generator().manual_seed(0))
KEEP = {"table": [0, 2, 7], "rnn": [1, 2, 5, 11]}


class Classifier(nn.Module):
    """Words to one of five."""

    def __init__(self, kind: type[nn.RNNBase], **options: Any) -> None:
        super().__init__()
        self.table, self.rnn = nn.Embedding(20, 8), kind(8, 12, batch_first=True, **options)
        self.head = nn.Linear(12 * (1 + self.rnn.bidirectional), 5)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.rnn(self.table(x))[0][:, -1])


@pytest.mark.parametrize(
    ("kind", "options"),
    [
        (nn.LSTM, {"bias": False}),
        (nn.GRU, {"num_layers": 2, "bidirectional": True}),
        (nn.RNN, {"nonlinearity": "relu", "num_layers": 2}),
    ],
)
def test_hidden_units_are_cut_from_all_that_they_run_through(kind: Any, options: dict[str, Any]) -> None:
    model = Classifier(kind, **options).eval()
    analysis = analyse(model, WORDS)
    assert {group.name: group.width for group in analysis.groups} == {"table": 8, "rnn": 12}
    smaller, difference = compact(model, analysis, KEEP, WORDS)
    assert difference < 1e-5
    assert type(smaller.rnn) is kind
    assert (smaller.rnn.input_size, smaller.rnn.hidden_size) == (3, 4)
    # A layer of these sizes takes the weights as they are.
    kind(3, 4, batch_first=True, **options).load_state_dict(smaller.rnn.state_dict())
    assert smaller.train()(WORDS).requires_grad


class OwnState(Classifier):
    """Zeros of its own as the initial state; of a size that it knows, or that its code fixes."""

    def __init__(self, fixed: bool) -> None:
        super().__init__(nn.LSTM)
        self.fixed, self.hidden_size = fixed, 12

    def forward(self, x: Tensor) -> Tensor:
        size = 12 if self.fixed else self.hidden_size
        zeros = torch.zeros(1, x.size(0), size).to(x.device)
        return self.head(self.rnn(self.table(x), (zeros, zeros))[1][0][-1])


@pytest.mark.parametrize("fixed", [False, True])
def test_zeros_that_a_model_begins_with_follow_the_hidden_units(fixed: bool) -> None:
    model = OwnState(fixed).eval()
    smaller, difference = compact(model, analyse(model, WORDS), KEEP, WORDS)
    assert difference < 1e-5
    assert (type(smaller) is OwnState) is not fixed
    assert smaller(WORDS[:1]).shape == (1, 5)
    assert fixed or smaller.hidden_size == 4


class Starting(Classifier):
    """Begins with what another layer makes, or with ones."""

    def __init__(self, ones: bool) -> None:
        super().__init__(nn.GRU)
        self.ones, self.start = ones, nn.Linear(8, 12)

    def forward(self, x: Tensor) -> Tensor:
        words = self.table(x)
        start = torch.ones(x.size(0), 12) if self.ones else torch.tanh(self.start(words.mean(1)))
        return self.head(self.rnn(words, start[None])[0][:, -1])


def test_initial_states_that_are_computed_are_coupled_and_fixed_ones_leave_the_layer_alone() -> None:
    computed = Starting(ones=False).eval()
    analysis = analyse(computed, WORDS)
    assert set(analysis.group("start").layers) == {"start", "rnn", "head"}
    keep = {"table": KEEP["table"], "start": KEEP["rnn"]}
    assert compact(computed, analysis, keep, WORDS)[1] < 1e-5
    fixed = analyse(Starting(ones=True).eval(), WORDS)
    assert [group.name for group in fixed.groups] == ["table"]
    assert fixed.frozen["rnn"] == "its initial state is an input of the model, or no zeros"


def test_projections_leave_a_layer_alone_with_the_reason() -> None:
    class Projected(Classifier):
        def __init__(self) -> None:
            super().__init__(nn.LSTM)
            self.rnn = nn.LSTM(8, 16, proj_size=12, batch_first=True)

    frozen = analyse(Projected().eval(), WORDS).frozen
    assert frozen["rnn"] == (
        "a recurrent layer with projections (proj_size) or packed sequences is not analysed"
    )


class Cells(nn.Module):
    """Two cells, step by step."""

    def __init__(self) -> None:
        super().__init__()
        self.table, self.head = nn.Embedding(20, 8), nn.Linear(6, 5)
        self.first, self.second = nn.LSTMCell(8, 12), nn.GRUCell(12, 6)

    def forward(self, x: Tensor) -> Tensor:
        words, first, second = self.table(x), None, None
        for step in range(words.shape[1]):
            first = self.first(words[:, step], first)
            second = self.second(first[0], second)
        return self.head(second)


def test_cells_are_cut_as_layers_are() -> None:
    model = Cells().eval()
    analysis = analyse(model, WORDS)
    assert {group.name: group.width for group in analysis.groups} == {"table": 8, "first": 12, "second": 6}
    keep = {"table": [1, 2], "first": [0, 4, 8], "second": [5]}
    smaller, difference = compact(model, analysis, keep, WORDS)
    assert difference < 1e-5
    assert (smaller.first.hidden_size, smaller.second.input_size, smaller.second.hidden_size) == (3, 3, 1)
