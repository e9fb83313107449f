"""More levels where the model is sensitive, under one budget of bits."""

from __future__ import annotations

import copy
import itertools
import math

import numpy as np
import pytest
import torch
from torch import Tensor, nn

import autocompress as ac
from autocompress.methods.base import Finished
from autocompress.methods.lc import Lc, Scheme
from autocompress.methods.lc.allocation import allocated, least_loss
from autocompress.methods.lc.compression import DECODING_BYTES, stored_bytes
from autocompress.methods.shared.divergence import output_loss
from autocompress.surgery import Encode
from autocompress.task import Limits


class Lopsided(nn.Module):
    """Three layers, of which the second hardly counts."""

    def __init__(self) -> None:
        super().__init__()
        self.first = nn.Linear(16, 64)
        self.second = nn.Linear(64, 64)
        self.last = nn.Linear(64, 4)

    def forward(self, x: Tensor) -> Tensor:
        x = torch.relu(self.first(x))
        return self.last(x + 0.01 * self.second(x))


@pytest.fixture
def task() -> ac.Task:
    torch.manual_seed(0)
    x, y = torch.randn(128, 16), torch.randint(0, 4, (128,))
    batches = torch.utils.data.DataLoader(torch.utils.data.TensorDataset(x, y), batch_size=32, shuffle=True)
    return ac.Task(model=Lopsided, train=batches, val=batches, recipe=ac.Recipe(epochs=1))


def test_no_other_choice_within_the_budget_loses_less() -> None:
    rng = np.random.default_rng(0)
    for _ in range(20):
        losses = np.sort(rng.random((4, 5)))[:, ::-1]
        sizes = np.sort(rng.random((4, 5)))
        budget = float(sizes[:, 0].sum() + rng.random() * (sizes[:, -1] - sizes[:, 0]).sum())
        rows = np.arange(4)
        within = [c for c in itertools.product(range(5), repeat=4) if sizes[rows, c].sum() <= budget]
        chosen = least_loss(losses, sizes, budget)
        assert tuple(chosen) in within
        assert losses[rows, chosen].sum() == pytest.approx(min(losses[rows, c].sum() for c in within))


def compressed(task: ac.Task, model: nn.Module, schemes: dict[str, Scheme]) -> Finished:
    return ac.Lc(schemes=schemes).start(model, task).finish()


def codes(done: Finished) -> dict[str, int]:
    return {edit.layer: edit.code["k"] for edit in done.edits if isinstance(edit, Encode)}


def levels_of(task: ac.Task, bits: float, model: nn.Module) -> dict[str, int]:
    return codes(compressed(task, model, {"*": ac.MixedPrecision(bits=bits)}))


def test_layers_that_hardly_count_have_fewer_levels_and_all_stay_within_the_bits(task: ac.Task) -> None:
    levels = levels_of(task, 3.0, Lopsided())
    assert levels["second"] < min(levels["first"], levels["last"])
    weights = {"first": 1024, "second": 4096, "last": 256}
    taken = sum(weights[name] * np.log2(k) + 32 * k for name, k in levels.items())
    assert taken <= 3 * sum(weights.values()) + 32 * 3 * 8


@torch.no_grad()
def test_it_loses_less_than_equal_codebooks_of_as_many_bits(task: ac.Task) -> None:
    torch.manual_seed(1)
    model = Lopsided().eval()
    inputs = next(iter(task.train))[0]
    expected = model(inputs)
    mixed, equal = (
        output_loss(expected, compressed(task, copy.deepcopy(model), {"*": scheme}).model(inputs), True)
        for scheme in (ac.MixedPrecision(bits=3.0), ac.Codebook(k=8))
    )
    assert mixed < 0.5 * equal


def test_choosing_leaves_the_model_and_the_order_of_the_data_as_they_are(task: ac.Task) -> None:
    from autocompress.graph import analyse
    from autocompress.graph.costs import layer_macs
    from autocompress.graph.weights import weights_of

    model = Lopsided()
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    layers = weights_of(model, analyse(model, task.example()), layer_macs(model, task.example()))
    state = torch.random.get_rng_state()
    allocated([((layer,), ac.MixedPrecision(bits=2.0)) for layer in layers], model, task, Limits())
    assert model.training
    assert torch.equal(state, torch.random.get_rng_state())
    assert all(torch.equal(tensor, before[name]) for name, tensor in model.state_dict().items())


def test_what_no_scheme_shares_bits_with_has_as_many_as_are_asked_for(task: ac.Task) -> None:
    schemes = {"second": ac.MixedPrecision(bits=3.0), "first": ac.Codebook(k=5)}
    assert codes(compressed(task, Lopsided(), schemes)) == {"second": 8, "first": 5}


def test_a_model_whose_outputs_are_not_finite_gets_codebooks_as_well(task: ac.Task) -> None:
    model = Lopsided()
    nn.init.constant_(model.last.bias, math.inf)
    assert set(levels_of(task, 3.0, model)) == {"first", "second", "last"}


def test_a_weight_whose_codes_save_less_than_decoding_takes_stays_dense(task: ac.Task) -> None:
    class Narrow(Lopsided):
        def __init__(self) -> None:
            super().__init__()
            self.last = nn.Linear(64, 1)

    done = compressed(task, Narrow(), {"*": ac.Codebook(k=16)})
    # 64 weights are 256 bytes; as codes 32, and 64 of levels.
    assert set(codes(done)) == {"first", "second"}
    assert done.model.last.weight.unique().numel() <= 16


@pytest.mark.parametrize("bits", [0.5, 9.0])
def test_bits_out_of_range_are_refused(bits: float) -> None:
    with pytest.raises(ac.UsageError, match=rf"bits must be in \[1, 8\] but got {bits}"):
        ac.MixedPrecision(bits=bits)


def test_a_budget_gives_layers_that_hardly_count_fewer_bits_and_is_kept(task: ac.Task) -> None:
    training = Lc(schemes={"*": ac.Budget(bits=2.0)}).start(Lopsided(), task)
    bits = {constraint.layers[0].layer: constraint.scheme.bits for constraint in training.compressions}
    assert bits["second"] < min(bits["first"], bits["last"])
    taken = sum(stored_bytes(constraint.encoding) + DECODING_BYTES for constraint in training.compressions)
    assert 0.8 * 2.0 * 5376 < 8 * taken <= 2.0 * 5376


def test_a_budget_stores_products_where_weights_are_some(task: ac.Task) -> None:
    torch.manual_seed(0)
    model = Lopsided()
    with torch.no_grad():
        model.second.weight.copy_(30 * torch.randn(64, 1) @ torch.randn(1, 64))
    training = Lc(schemes={"*": ac.Budget(bits=2.5)}).start(model, task)
    kinds = {constraint.layers[0].layer: constraint.scheme.kind for constraint in training.compressions}
    assert kinds["second"] == "low_rank"
    assert kinds["first"] == "entropy"


def test_a_budget_that_decoding_alone_exceeds_takes_the_least(task: ac.Task) -> None:
    training = Lc(schemes={"*": ac.Budget(bits=0.01)}).start(Lopsided(), task)
    assert all(constraint.scheme.bits < 0.2 for constraint in training.compressions)


@pytest.mark.parametrize("bits", [0.0, 9.0])
def test_budgets_out_of_range_are_refused(bits: float) -> None:
    with pytest.raises(ac.UsageError, match=rf"bits must be in \(0, 8\] but got {bits}"):
        ac.Budget(bits=bits)
