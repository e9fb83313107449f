"""Ratios are held at a share of the model's cost, whichever way training moves them."""

from __future__ import annotations

import math

import pytest
import torch

import autocompress as ac
from autocompress.graph.costs import layer_macs
from autocompress.methods.alcn import session
from autocompress.methods.alcn.budget import Budget
from autocompress.methods.alcn.survival import Gates
from autocompress.task import CostTerm

# A chain of two groups: what makes the first, what lies between, what reads the second, and the rest.
TERMS = [CostTerm((0,), 10, 100), CostTerm((0, 1), 50, 400), CostTerm((1,), 20, 60), CostTerm((), 5, 40)]
MACS = [term.macs for term in TERMS]


def share_left(gates: Gates) -> float:
    shrinking, ratio = [term for term in TERMS if term.groups], gates.ratio.tolist()
    left = sum(term.macs * math.prod(ratio[group] for group in term.groups) for term in shrinking)
    return left / sum(term.macs for term in shrinking)


@pytest.mark.parametrize("share", [0.1, 0.5, 0.9])
def test_ratios_that_training_moves_come_back_to_the_share(share: float) -> None:
    gates = Gates([16, 16], torch.tensor([0.4, 0.6]), 0.05)
    budget = Budget(TERMS, MACS, share, gates)
    assert share_left(gates) == pytest.approx(share, rel=1e-4)
    generator = torch.Generator().manual_seed(0)
    for _ in range(20):
        with torch.no_grad():
            gates.ratio_logit.add_(0.3 * torch.randn(2, generator=generator))
        apart = gates.ratio_logit.detach().diff().item()
        budget.hold()
        assert share_left(gates) == pytest.approx(share, rel=0.02)
        assert gates.ratio_logit.detach().diff().item() == pytest.approx(apart, abs=1e-4)


def test_a_group_that_is_made_and_read_by_itself_counts_twice() -> None:
    gates = Gates([16], torch.tensor([0.5]), 0.0)
    Budget([CostTerm((0, 0), 1, 1)], [1], 0.25, gates)
    assert gates.ratio.detach().item() == pytest.approx(0.5, abs=1e-5)


def test_groups_do_not_pay_for_what_none_of_them_shrinks() -> None:
    few, many = ([CostTerm((0,), 1, 100), CostTerm((), 1, rest)] for rest in (0, 10_000))
    for terms in (few, many):
        gates = Gates([16], torch.tensor([0.9]), 0.05)
        Budget(terms, [term.macs for term in terms], 0.5, gates)
        assert gates.ratio.detach().item() == pytest.approx(0.5, abs=1e-5)


def test_a_model_whose_groups_have_no_such_cost_is_not_held(
    residual_task: ac.Task, monkeypatch: pytest.MonkeyPatch
) -> None:
    method, model = ac.Alcn(budget=0.5, cost="macs"), residual_task.model
    assert method.start(model(), residual_task).budget is not None
    monkeypatch.setattr(session, "cost_terms", lambda *args: ())
    assert method.start(model(), residual_task).budget is None


def test_what_no_ratio_reaches_leaves_the_least() -> None:
    gates = Gates([16, 16], torch.tensor([0.4, 0.6]), 0.05)
    Budget(TERMS, MACS, 0.01, gates)
    assert gates.ratio.tolist() == pytest.approx([0.05, 0.05], abs=1e-4)


def test_a_trained_model_has_the_share_of_macs_that_its_budget_says(residual_task: ac.Task) -> None:
    torch.manual_seed(0)
    model = residual_task.model()
    example = residual_task.example()
    before = layer_macs(model, example)[""]
    alcn = ac.Alcn(budget=0.5, cost="macs", gate_lr_scale=100.0)
    done = ac.compress(model, residual_task, alcn)
    # Widths are whole numbers, rounded up.
    assert 0.5 <= layer_macs(done.model, example)[""] / before < 0.7


def test_shares_out_of_range_are_refused() -> None:
    with pytest.raises(ac.UsageError, match=r"budget must be in \(0, 1\) but got 1.5"):
        ac.Alcn(budget=1.5)
