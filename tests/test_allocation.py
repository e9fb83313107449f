"""Which share of its units each group keeps: against every choice there is."""

from __future__ import annotations

import importlib
import itertools
import math
from dataclasses import replace

import numpy as np
import optuna
import pytest
import torch
from torch import Tensor, nn

import autocompress as ac
from autocompress import plugins
from autocompress.graph import analyse
from autocompress.graph.costs import profile
from autocompress.surgery import keep_units
from autocompress.task import CostTerm, GroupProfile, ModelProfile

allocation = importlib.import_module(f"{plugins.pipeline().__package__}.allocation").allocation


def curve(rng: np.random.Generator, width: int, scale: float = 1.0) -> tuple[float, ...]:
    """Losses at up to 8 widths, falling to 0."""
    falling = np.sort(rng.lognormal(0, 2, min(width, 8) - 1))[::-1] * scale
    return (*falling.tolist(), 0.0)


def scored(seed: int, widths: tuple[int, ...], terms: tuple[tuple[int, ...], ...]) -> ModelProfile:
    """A profile of random sensitivities and costs."""
    rng = np.random.default_rng(seed)
    groups = tuple(GroupProfile(f"g{i}", width, 1, 1, curve(rng, width)) for i, width in enumerate(widths))
    costs = tuple(CostTerm(term, *rng.integers(1, 1000, 2).tolist()) for term in terms)
    return ModelProfile(
        sum(int(c.params) for c in costs), sum(int(c.macs) for c in costs), groups, cost_terms=costs
    )


def choices(group: GroupProfile) -> list[int]:
    """Sixteenths of the width, rounded up, or each, from the narrowest that was tried on."""
    levels = min(group.width, 16)
    widths = [math.ceil(group.width * level / levels) for level in range(1, levels + 1)]
    return [width for width in widths if width >= group.width_at(0)]


def cost_of(model: ModelProfile, units: dict[str, int], cost: str) -> float:
    shares = [units[group.name] / group.width for group in model.groups]
    amounts = (getattr(term, cost) * math.prod(shares[g] for g in term.groups) for term in model.cost_terms)
    return sum(amounts) / sum(getattr(term, cost) for term in model.cost_terms)


def loss_of(model: ModelProfile, units: dict[str, int]) -> float:
    lost = 0.0
    for group in model.groups:
        tried = [group.width_at(level) for level in range(len(group.losses))]
        lost += float(np.interp(units[group.name], tried, group.losses))
    return lost


@pytest.mark.parametrize("seed", range(4))
@pytest.mark.parametrize("cost", ["macs", "params"])
def test_no_choice_within_the_budget_loses_less(seed: int, cost: str) -> None:
    terms = ((), (0,), (0, 1), (1, 2), (2, 2), (0, 2), (1,))
    model = scored(seed, (5, 8, 20), terms)
    every = [
        {group.name: width for group, width in zip(model.groups, widths, strict=True)}
        for widths in itertools.product(*(choices(group) for group in model.groups))
    ]
    for keep in (0.1, 0.35, 0.6, 0.9):
        least = min((loss_of(model, u) for u in every if cost_of(model, u, cost) <= keep), default=None)
        chosen = allocation(model, keep, cost)
        assert (chosen is None) == (least is None)
        if chosen is None:
            continue
        assert cost_of(model, chosen, cost) <= keep * (1 + 1e-6)
        assert loss_of(model, chosen) <= least * 1.0101 + 1e-6


def test_what_cannot_be_kept_so_small_or_was_not_probed_has_no_allocation() -> None:
    model = scored(0, (4, 4), ((), (0, 1)))
    assert allocation(model, 0.5 * model.cost_terms[0].macs / model.macs, "macs") is None
    unprobed = ModelProfile(1, 1, (GroupProfile("a", 4, 1, 1),), cost_terms=model.cost_terms[:1])
    assert allocation(unprobed, 0.5, "macs") is None


Wide = tuple[nn.Module, Tensor, ModelProfile]


@pytest.fixture(scope="module")
def wide() -> Wide:
    """A small CNN, and a profile of it with random sensitivities."""
    torch.manual_seed(0)
    layers = [nn.Conv2d(3, 24, 3), nn.ReLU(), nn.Conv2d(24, 32, 3), nn.ReLU(), nn.Conv2d(32, 16, 3)]
    model = nn.Sequential(*layers, nn.ReLU(), nn.Flatten(), nn.Linear(16 * 4, 5)).eval()
    example = torch.randn(2, 3, 8, 8)
    known = profile(model, example, analyse(model, example))
    groups = tuple(
        replace(group, losses=curve(np.random.default_rng(position), group.width, 10.0**position))
        for position, group in enumerate(known.groups)
    )
    return model, example, replace(known, groups=groups)


@pytest.mark.parametrize("cost", ["macs", "params"])
def test_a_model_cut_by_an_allocation_has_the_share_of_the_cost(cost: str, wide: Wide) -> None:
    model, example, known = wide
    units = allocation(known, 0.4, cost)
    assert len({units[group.name] / group.width for group in known.groups}) > 1
    keep = {name: list(range(count)) for name, count in units.items()}
    cut = keep_units(model, analyse(model, example), keep, example).model
    left = profile(cut, example, analyse(cut, example))
    assert getattr(left, cost) / getattr(known, cost) == pytest.approx(cost_of(known, units, cost))
    assert 0.37 < getattr(left, cost) / getattr(known, cost) <= 0.4


def test_the_space_of_alcn_starts_with_the_units_that_were_allocated(wide: Wide) -> None:
    model, example, known = wide
    space = plugins.search_space("alcn")
    # Held at a share, all would move together from there.
    params = {**space.move(known, 0.4), "alcn.by_sensitivity": True, "alcn.held": False}
    config = space.suggest(optuna.trial.FixedTrial(params), known)
    batch = (example, torch.zeros(2, dtype=torch.int64))
    session = ac.Alcn(config).start(model, ac.Task(model=lambda: model, train=[batch]))
    kept = {name: len(units) for name, units in session.keep().items()}
    assert kept == allocation(known, 0.4, "macs")


def test_a_move_of_alcn_can_be_suggested_whole_where_losses_are_known(wide: Wide) -> None:
    known, space = wide[2], plugins.search_space("alcn")
    params = space.move(known, 0.4)
    study = optuna.create_study(sampler=optuna.samplers.RandomSampler(seed=0))
    study.enqueue_trial(dict(params))
    trial = study.ask()
    config = space.suggest(trial, known)
    assert {name: trial.params[name] for name in params} == params
    assert config.ratios == {}
    assert config.initial_ratio == pytest.approx(0.4**0.5)
