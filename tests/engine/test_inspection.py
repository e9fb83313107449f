"""What `ac.inspect` says of a model without a task."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn

import autocompress as ac
from autocompress.errors import SettingsError, UsageError


class Recurrent(nn.Module):
    """An LSTM between an embedding and a head."""

    def __init__(self, hidden: int = 16, projected: int = 0) -> None:
        super().__init__()
        self.embedding = nn.Embedding(50, 8)
        self.lstm = nn.LSTM(8, hidden, batch_first=True, proj_size=projected)
        self.hidden, self.head = nn.Linear(16, 12), nn.Linear(12, 4)

    def forward(self, tokens: Tensor) -> Tensor:
        return self.head(self.hidden(self.lstm(self.embedding(tokens))[0][:, -1]).relu())


TOKENS = torch.randint(0, 50, (2, 6), generator=torch.Generator().manual_seed(0))
WEIGHTS = 50 * 8 + 4 * 16 * (8 + 16) + 16 * 12 + 12 * 4
VECTORS = 2 * 4 * 16 + 12 + 4


def test_every_parameter_is_reached_or_there_is_a_reason() -> None:
    seen = ac.inspect(Recurrent(), TOKENS)
    assert [group.name for group in seen.groups] == ["embedding", "lstm", "hidden"]
    assert seen.reach.keys() == {"alcn", "depth", "autoplastic", "alds", "lc"}
    total = WEIGHTS + VECTORS
    assert seen.reach["lc"].params == pytest.approx(WEIGHTS / total)
    assert sum(seen.reach["lc"].why_not.values()) == pytest.approx(VECTORS / total)
    # All but the bias of what makes the outputs.
    assert seen.reach["alcn"].params == seen.reach["alcn"].bytes == pytest.approx(1 - 4 / total)


def test_bytes_are_those_of_buffers_and_of_each_type_too() -> None:
    model = nn.Sequential(nn.Linear(6, 8, bias=False), nn.BatchNorm1d(8), nn.ReLU(), nn.Linear(8, 4))
    seen = ac.inspect(model, torch.randn(2, 6))
    total = 4 * (6 * 8 + 4 * 8 + 8 * 4 + 4)
    assert seen.reach["alcn"].bytes == pytest.approx(1 - 4 * 4 / total)
    assert seen.reach["lc"].bytes == pytest.approx(4 * (6 * 8 + 8 * 4) / total)
    # Cut points are behind the first layer and before the last.
    assert seen.reach["depth"].params == 1 - sum(seen.reach["depth"].why_not.values()) < 1


@pytest.mark.filterwarnings("ignore:LSTM with projections is not supported with oneDNN")
def test_what_no_group_runs_through_is_left_alone_for_a_reason() -> None:
    model = Recurrent(hidden=24, projected=16)
    seen = ac.inspect(model, TOKENS)
    assert [group.name for group in seen.groups] == ["hidden"]
    total = sum(parameter.numel() for parameter in model.parameters())
    # Of the group: what makes its units, and what reads them.
    assert seen.reach["alcn"].params == pytest.approx((16 * 12 + 12 + 12 * 4) / total)
    lstm = sum(parameter.numel() for parameter in model.lstm.parameters())
    reason = "a recurrent layer with projections (proj_size) or packed sequences is not analysed"
    assert seen.reach["alcn"].why_not[reason] == pytest.approx((lstm + 50 * 8) / total)


def test_what_is_excluded_is_a_reason() -> None:
    seen = ac.inspect(Recurrent(), TOKENS, exclude=["lstm", "hidden"])
    assert seen.groups == ()
    assert seen.reach["alcn"].params == 0.0
    excluded = (4 * 16 * (8 + 16) + 16 * 12) / (WEIGHTS + VECTORS)
    assert seen.reach["lc"].why_not["it is excluded or frozen"] == pytest.approx(excluded)
    with pytest.raises(SettingsError, match="exclude must name layers of the model but 'lsmt' names none"):
        ac.inspect(Recurrent(), TOKENS, exclude=["lsmt"])


def test_several_inputs_are_passed_as_arguments() -> None:
    class Pair(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.a, self.b, self.head = nn.Linear(3, 8), nn.Linear(5, 8), nn.Linear(8, 2)

        def forward(self, x: Tensor, y: Tensor) -> Tensor:
            return self.head((self.a(x) + self.b(y)).relu())

    inputs = torch.randn(2, 3), torch.randn(2, 5)
    (group,) = ac.inspect(Pair(), inputs).groups
    assert set(group.layers) == {"a", "b", "head"}
    (named,) = ac.inspect(Pair(), {"y": inputs[1], "x": inputs[0]}).groups
    assert set(named.layers) == {"a", "b", "head"}


def test_the_model_stays_as_it_is_and_what_cannot_be_analysed_is_one_line() -> None:
    model = nn.Sequential(nn.Linear(3, 4), nn.Dropout(0.5), nn.Linear(4, 2))
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    ac.inspect(model, torch.randn(1, 3))
    assert model.training
    assert all(torch.equal(tensor, before[name]) for name, tensor in model.state_dict().items())

    class Noisy(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.layer = nn.Linear(3, 2)

        def forward(self, x: Tensor) -> Tensor:
            return self.layer(x) + torch.randn(2)

    with pytest.raises(UsageError) as caught:
        ac.inspect(Noisy(), torch.randn(2, 3))
    assert "\n" not in str(caught.value)
