"""LC on models: shorthands, the augmented Lagrangian by its equations, and files as small as claimed."""

from __future__ import annotations

import re
from dataclasses import asdict, replace

import numpy as np
import pytest
import torch
from torch import Tensor, nn

import autocompress as ac
from autocompress.checkpoint.weights import save_weights
from autocompress.errors import DivergedError, SettingsError, TrialError
from autocompress.graph.costs import count_params
from autocompress.methods.lc import (
    Assignment,
    Codebook,
    Config,
    Lc,
    LowRank,
    PruneL0,
    RankSelection,
    Scheme,
    Ternary,
)
from autocompress.methods.lc.compression import Compression, stored_bytes
from autocompress.methods.lc.scheme import Sum, View
from autocompress.surgery import materialize
from autocompress.surgery.edits import Factorize, StoreEncoded
from autocompress.training.loop import Trainer
from autocompress.trial import CompressorHooks
from autocompress.weights.decoders import weight_code


class Network(nn.Module):
    """Convolutions, batch norm and two linear layers."""

    def __init__(self) -> None:
        super().__init__()
        self.conv1, self.norm = nn.Conv2d(3, 16, 3, padding=1), nn.BatchNorm2d(16)
        self.conv2 = nn.Conv2d(16, 16, 3, stride=2, padding=1, bias=False)
        self.fc1, self.fc2 = nn.Linear(256, 40), nn.Linear(40, 5)

    def forward(self, x: Tensor) -> Tensor:
        x = torch.relu(self.conv2(torch.relu(self.norm(self.conv1(x)))))
        return self.fc2(torch.relu(self.fc1(x.flatten(1))))


@pytest.fixture
def task(residual_task: ac.Task) -> ac.Task:
    return replace(residual_task, model=Network)


def compressed(task: ac.Task, lc: Lc, epochs: int = 2):  # type: ignore[no-untyped-def]
    torch.manual_seed(0)
    state = lc.attach(task.model(), task)
    Trainer(task, epochs).fit(state.model, epochs, CompressorHooks(lc, state))
    plan = lc.plan(state)
    released = lc.release(state)
    return released, materialize(released, plan, task.example()), plan


def names(lc: Lc, task: ac.Task) -> list[tuple[str, ...]]:
    state = lc.attach(task.model(), task)
    return [tuple(layer.name for layer in one.layers) for one in state.compressions]


@pytest.mark.parametrize(("schemes", "expected"), [
    ({"fc1": Codebook(4)}, [("fc1",)]),
    ({"fc*": Codebook(4)}, [("fc1",), ("fc2",)]),
    ({("fc*",): Codebook(4)}, [("fc1", "fc2")]),
    ({"Conv2d": Codebook(4), ("Linear",): PruneL0(0.1)}, [("conv1",), ("conv2",), ("fc1", "fc2")]),
    ({"conv1": Codebook(2), "*": Codebook(4)}, [("conv1",), ("conv2",), ("fc1",), ("fc2",)]),
    ({("1/2",): Codebook(4), "2/2": Codebook(2)}, [("conv1", "conv2"), ("fc1",), ("fc2",)]),
    ({"1/9": Codebook(4), "2/9": Codebook(2)}, [("conv1",)]),
    ({("*",): Codebook(4)}, [("conv1", "conv2", "fc1", "fc2")]),
])  # fmt: skip
def test_layers_are_named_by_name_pattern_or_class(
    task: ac.Task, schemes: dict[str | tuple[str, ...], Scheme], expected: list[tuple[str, ...]]
) -> None:
    assert names(Lc(schemes=schemes), task) == expected


def test_names_that_match_nothing_are_told_with_those_that_would(task: ac.Task) -> None:
    message = "schemes must name layers among conv1, conv2, fc1, fc2 but got fc9."
    with pytest.raises(TrialError, match=re.escape(message)):
        Lc(schemes={"fc9": Codebook(2)}).attach(task.model(), task)


def test_sgd_does_not_diverge_however_fast_mu_grows(task: ac.Task) -> None:
    task = task.with_recipe(optimizer="sgd", lr=0.05, weight_decay=0.0)
    lc = Lc(schemes={"*": Codebook(4)}, mu0=0.1, growth=4.0, steps=20)
    torch.manual_seed(0)
    state = lc.attach(task.model(), task)
    trainer = Trainer(task, 4, lr_scale=2.0)
    trainer.fit(state.model, 4, CompressorHooks(lc, state))
    assert state.mu > 1e6
    assert all(state.mu_of(one) == 0.5 / 0.05 for one in state.compressions)
    assert all(value < 0.2 for name, value in trainer.history[-1].items() if name.startswith("distance/"))


@pytest.mark.parametrize(
    ("steps", "spacing", "optimiser_steps", "expected"),
    [(40, 16, 400, 25), (40, 16, 64, 8), (40, 1, 64, 40), (10, 16, 400, 10), (30, 16, 3, 3), (3, 16, 30, 3)],
)
def test_c_steps_are_few_beside_optimiser_steps(
    task: ac.Task,
    monkeypatch: pytest.MonkeyPatch,
    steps: int,
    spacing: int,
    optimiser_steps: int,
    expected: int,
) -> None:
    lc = Lc(schemes={("*",): Codebook(4)}, steps=steps, spacing=spacing, growth=1.1, mu0=1.0)
    state = lc.attach(task.model(), task)
    solved: list[int] = []
    monkeypatch.setattr(Compression, "solve", lambda self, x, mu, augmented: solved.append(taken))
    for taken in range(1, optimiser_steps + 1):
        lc.after_step(state, taken / optimiser_steps)
    assert len(solved) == expected
    assert solved[-1] == optimiser_steps  # what is stored is solved for at the very end
    assert min(np.diff([0, *solved])) >= min(spacing, optimiser_steps // max(8, expected))
    assert 1.1 ** (steps / 2 - 1) <= state.mu <= 1.1 ** (steps - 1) * 1.001  # μ rises all the same


@pytest.mark.parametrize("scheme", [
    Codebook(2), Codebook(16), Ternary(), PruneL0(0.05), Codebook(4) + PruneL0(0.02),
    LowRank(2) + Codebook(2) + PruneL0(0.02),
])  # fmt: skip
def test_each_c_step_visits_a_weight_a_few_times_only(
    task: ac.Task, monkeypatch: pytest.MonkeyPatch, scheme: Scheme
) -> None:
    """In numbers: each part of a scheme is solved for once, from the last solution, and its clusters move
    by a few steps, so that work is in proportion to the optimiser steps whatever the machine."""
    task = task.with_recipe(lr=1e-2)
    lc = Lc(schemes={"*": scheme}, steps=20, spacing=1)
    torch.manual_seed(0)
    state = lc.attach(task.model(), task)
    parts = len(scheme.parts) if isinstance(scheme, Sum) else 1
    visits = {"solve": 0, "histogram": 0}
    for cls in {type(part) for part in (scheme.parts if isinstance(scheme, Sum) else (scheme,))}:
        original = cls.solve

        def counted(self, x, mu, view, previous=None, original=original):  # type: ignore[no-untyped-def]
            assert previous is not None
            visits["solve"] += len(x)
            return original(self, x, mu, view, previous)

        monkeypatch.setattr(cls, "solve", counted)

    def histogram(*args: object) -> None:
        raise AssertionError("a later C step must start from the last levels")

    monkeypatch.setattr("autocompress.methods.lc.kmeans._histogram", histogram)
    Trainer(task, 10).fit(state.model, 10, CompressorHooks(lc, state))
    weights = sum(len(one.dense) for one in state.compressions)
    assert visits["solve"] == 20 * parts * weights


def test_logging_an_epoch_packs_nothing(task: ac.Task, monkeypatch: pytest.MonkeyPatch) -> None:
    lc = Lc(schemes={"conv1": Codebook(4), "*": PruneL0(0.1)})
    state = lc.attach(task.model(), task)

    def build(*args: object) -> None:
        raise AssertionError("a weight was packed to count its bytes")

    monkeypatch.setattr("autocompress.weights.decoders.weight_code", build)
    log = lc.after_epoch(state, 0.5)
    n = 3 * 16 * 9
    assert log["ratio/conv1"] == pytest.approx((n * 2 / 8 + 4 * 4) / (4 * n))


@pytest.mark.parametrize("scheme", [
    Codebook(2), Codebook(200), Ternary(), PruneL0(0.0), PruneL0(0.005), PruneL0(0.03), PruneL0(0.4),
    PruneL0(1.0), LowRank(3), Codebook(4) + PruneL0(0.02),
])  # fmt: skip
def test_counted_bytes_are_those_of_the_stored_tensors(scheme: Scheme) -> None:
    x = torch.randn(60 * 50, generator=torch.Generator().manual_seed(0))
    encoding = scheme.solve(x, 1.0, View(((60, 50),)))
    tensors = weight_code(encoding, (60, 50)).state_dict().values()
    stored = sum(t.numel() * t.element_size() for t in tensors)
    assert stored_bytes(encoding) == pytest.approx(stored, rel=0.02, abs=24)


def test_weights_that_are_not_finite_end_the_trial_by_name(task: ac.Task) -> None:
    lc = Lc(schemes={("fc1", "fc2"): Codebook(2)}, steps=3)
    state = lc.attach(task.model(), task)
    with torch.no_grad():
        state.model.fc2.weight[0, 0] = torch.nan
    with pytest.raises(DivergedError, match="the weights of fc1, fc2 became NaN or infinite"):
        lc.after_step(state, 1 / 3)


def test_steps_follow_the_augmented_lagrangian(task: ac.Task) -> None:
    lc = Lc(schemes={"fc1": Codebook(2)}, mu0=0.5, growth=2.0, steps=3)
    model = task.model()
    state = lc.attach(model, task)
    one = state.compressions[0]
    w = model.fc1.weight
    direct = Codebook(2).solve(w.detach().reshape(-1), 1.0, one.view).dense()
    assert torch.allclose(one.dense, direct)
    multipliers, mu = torch.zeros_like(direct), 0.5
    for done in (1, 2):
        with torch.no_grad():
            w.add_(0.05 * torch.randn_like(w))
        x = w.detach().reshape(-1)
        target = one.dense + multipliers / mu
        assert lc.penalty(state).item() == pytest.approx(
            float(mu / 2 * (x - target).square().sum()), rel=1e-5
        )
        lc.after_step(state, done / 3)
        expected = Codebook(2).solve(x - multipliers / mu, mu, one.view).dense()
        assert torch.allclose(one.dense, expected, atol=1e-6)
        multipliers = multipliers - mu * (x - expected)
        assert torch.allclose(one.multipliers, multipliers, atol=1e-6)
        mu = 0.5 * 2**done
        assert state.mu == mu


@pytest.mark.parametrize("exponent", [0.0, 1.0, 2.0])
def test_mu_follows_the_size_of_the_weights(task: ac.Task, exponent: float) -> None:
    lc = Lc(schemes={"conv2": RankSelection(), "*": Codebook(2)}, mu0=0.5, mu_exponent=exponent)
    model = task.model()
    with torch.no_grad():
        model.fc1.weight.zero_()
    layers = (model.conv2, model.conv1, model.fc1, model.fc2)
    weights = [layer.weight.detach().numpy().astype(np.float64).reshape(-1) for layer in layers]
    size = np.sqrt(np.square(np.concatenate(weights)).mean())
    mus = [0.5 * (np.sqrt(np.square(w).mean()) / size) ** exponent for w in weights]
    mus[0] = mus[2] = 0.5  # α means the same everywhere; zeros have no size to go by
    state = lc.attach(model, task)
    assert [state.mu_of(one) for one in state.compressions] == pytest.approx(mus)
    expected = 0.0
    for mu, one, layer in zip(mus, state.compressions, layers, strict=True):
        expected += (
            mu / 2 * float((layer.weight.detach() - one.dense.reshape(layer.weight.shape)).square().sum())
        )
    assert lc.penalty(state).item() == pytest.approx(expected, rel=1e-5)


def test_a_rising_mu_brings_weights_to_what_they_are_stored_as(task: ac.Task) -> None:
    task = task.with_recipe(lr=1e-2)
    distances = []
    for growth in (1.0, 2.0):
        lc = Lc(schemes={("*",): Codebook(2)}, mu0=1e-3, growth=growth, steps=20)
        torch.manual_seed(0)
        state = lc.attach(task.model(), task)
        Trainer(task, 20).fit(state.model, 20, CompressorHooks(lc, state))
        distances.append(lc.after_epoch(state, 1.0)["distance/conv1"])
    assert distances[1] < 0.3 * distances[0]


SCHEMES: dict[str, Scheme] = {
    "codebook": Codebook(4),
    "ternary": Ternary(),
    "prune": PruneL0(0.05),
    "sum": Codebook(2) + PruneL0(0.02),
    "sum with low rank": LowRank(1) + PruneL0(0.02),
}


@pytest.mark.parametrize("name", SCHEMES)
def test_the_stored_file_is_as_small_as_claimed(task: ac.Task, name: str, tmp_path) -> None:  # type: ignore[no-untyped-def]
    released, done, plan = compressed(task, Lc(schemes={"*": SCHEMES[name]}))
    assert done.proof < 1e-5
    assert {type(edit) for edit in plan} == {StoreEncoded}
    save_weights(task.model(), tmp_path / "dense.safetensors")
    save_weights(done.model, tmp_path / "small.safetensors")
    dense, small = ((tmp_path / f"{n}.safetensors").stat().st_size for n in ("dense", "small"))
    weights = sum(p.numel() for n, p in released.named_parameters() if p.dim() > 1)
    rest = sum(t.numel() for t in released.state_dict().values()) - weights
    bits = {"codebook": 2, "ternary": 2, "prune": 0.05 * 40, "sum": 1 + 0.02 * 40, "sum with low rank": 4}
    # Names, headers and levels take a little; everything else is the codes, values and other tensors.
    assert small <= weights * bits[name] / 8 * 1.1 + 4 * rest + 4000
    assert small < 0.5 * dense


def test_low_rank_becomes_two_layers_and_a_rank_that_saves_nothing_stays_dense(task: ac.Task) -> None:
    schemes = {"fc1": LowRank(3), "conv2": RankSelection(alpha=0.0)}
    _, done, plan = compressed(task, Lc(schemes=schemes))
    assert plan == (Factorize("fc1", 0, 1, 3),)
    assert done.proof < 1e-4
    assert [tuple(layer.weight.shape) for layer in done.model.fc1] == [(3, 256), (40, 3)]


def test_rank_selection_lowers_ranks_as_alpha_rises(task: ac.Task) -> None:
    ranks = []
    for alpha in (1e-5, 1e-2):
        _, _, plan = compressed(task, Lc(schemes={"fc1": RankSelection(alpha=alpha)}, mu0=1.0, growth=1.0))
        ranks.append(next((edit.rank for edit in plan if isinstance(edit, Factorize)), 40))
    assert ranks[1] < ranks[0]


def test_a_config_comes_back_from_json(task: ac.Task) -> None:
    config = Config(schemes={"a": Codebook(3) + PruneL0(0.1), ("b", "c"): Ternary()})
    assert Config(**asdict(config)) == config
    assert config.schemes == (
        Assignment(("a",), Codebook(3) + PruneL0(0.1)),
        Assignment(("b", "c"), Ternary(), joint=True),
    )


@pytest.mark.parametrize(("options", "message"), [
    ({"mu0": 0.0}, "mu0 must be greater than 0 but got 0.0."),
    ({"growth": 0.5}, "growth must be at least 1 but got 0.5."),
    ({"mu_exponent": -1.0}, "mu_exponent must be at least 0 but got -1.0."),
    ({"spacing": 0}, "spacing must be at least 1 but got 0."),
    ({"steps": 0}, "steps must be at least 1 but got 0."),
    ({"schemes": ()}, "schemes must name at least one layer but is empty."),
    ({"schemes": {}}, "schemes must name at least one layer but is empty."),
    ({"schemes": Ternary()}, "schemes must map layers to schemes, as "),
    ({"schemes": {"fc1": 4}}, "schemes must map layers to schemes such as Codebook(k=4) but 'fc1' has 4."),
])  # fmt: skip
def test_config_refuses_values_out_of_range(options: dict[str, object], message: str) -> None:
    with pytest.raises(SettingsError, match=re.escape(message)):
        Config(**options)  # type: ignore[arg-type]


def test_encodings_must_be_carried_by_the_model(task: ac.Task) -> None:
    with pytest.raises(TrialError, match="that carries its encoding but got 'fc1'"):
        materialize(task.model(), (StoreEncoded("fc1", "codebook"),), task.example())


@pytest.mark.parametrize("scheme", [Codebook(4), PruneL0(0.02), LowRank(2) + PruneL0(0.01)])
def test_models_in_double_precision_are_stored_in_it(task: ac.Task, scheme: Scheme) -> None:
    model = task.model().double()
    x = task.example().double()
    lc = Lc(schemes={"*": scheme})
    state = lc.attach(model, replace(task, train=[(x, torch.zeros(len(x), dtype=torch.long))]))
    done = materialize(lc.release(state), lc.plan(state), x)
    assert done.proof < 1e-9
    assert done.model(x).dtype == torch.float64


def test_factors_and_codes_in_one_plan_leave_nothing_behind(task: ac.Task) -> None:
    _, done, plan = compressed(task, Lc(schemes={"fc1": LowRank(3), "conv2": Codebook(2)}))
    assert {type(edit) for edit in plan} == {Factorize, StoreEncoded}
    assert not any("_autocompress_encoding" in vars(layer) for layer in done.model.modules())


def test_parameters_are_what_the_stored_form_stands_for(task: ac.Task) -> None:
    whole = count_params(task.model())
    _, done, _ = compressed(task, Lc(schemes={"*": Codebook(4)}))
    assert count_params(done.model) == whole
    _, done, _ = compressed(task, Lc(schemes={"fc1": PruneL0(0.1)}))
    assert count_params(done.model) == whole - 40 * 256 + round(0.1 * 40 * 256)
