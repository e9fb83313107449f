"""LC on models: shorthands, the augmented Lagrangian by its equations, and files as small as claimed."""

from __future__ import annotations

import copy
import re
from dataclasses import asdict, replace

import numpy as np
import pytest
import torch
from torch import Tensor, nn

import autocompress as ac
from autocompress.checkpoint.weights import save_weights
from autocompress.errors import CheckpointError, DivergedError, SettingsError, TrialError
from autocompress.graph.costs import count_params
from autocompress.methods.base import Finished
from autocompress.methods.lc import (
    Assignment,
    Binary,
    Codebook,
    Config,
    Lc,
    LowRank,
    PruneL0,
    RankSelection,
    ScaledBinary,
    Scheme,
    Ternary,
)
from autocompress.methods.lc.compression import Compression, stored_bytes
from autocompress.methods.lc.scheme import Sum, View, parts_of
from autocompress.surgery import Encode, Factorize, check_equal
from autocompress.task.limits import settle
from autocompress.training.loop import Trainer
from autocompress.weights.decoders import weight_code
from autocompress.weights.folding import Folding
from tests.methods.rebuilding import rebuilt
from tests.methods.users import USERS


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


def compressed(task: ac.Task, lc: Lc, epochs: int = 2) -> tuple[Finished, float]:
    """What a session ends with, and how far the compact model is from the trained one."""
    torch.manual_seed(0)
    session = lc.start(task.model(), task)
    Trainer(task, epochs).fit(session.model, epochs, session)
    finished = session.finish()
    return finished, check_equal(finished.model, finished.expected, task.example(), "LC")


def names(lc: Lc, task: ac.Task) -> list[tuple[str, ...]]:
    session = lc.start(task.model(), task)
    return [tuple(layer.name for layer in one.layers) for one in session.compressions]


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


GATES = [f"rnn.weight_{of}_l0{end}" for end in ("", "_reverse") for of in ("ih", "hh")]


@pytest.mark.parametrize(("schemes", "expected"), [
    ({"rnn.*": Codebook(4)}, [(name,) for name in GATES]),
    ({("rnn",): Codebook(4), "score": Codebook(2)}, [tuple(GATES), ("embed",)]),
    ({("GRU", "Recurrent"): PruneL0(0.1), "embed.weight": Codebook(2), "enter": Codebook(2)},
     [(*GATES, "table", "matrix"), ("embed",), ("enter",)]),
])  # fmt: skip
def test_parameters_are_named_as_layers_are_and_shared_ones_by_any_of_their_names(
    schemes: dict[str | tuple[str, ...], Scheme], expected: list[tuple[str, ...]]
) -> None:
    assert names(Lc(schemes=schemes), USERS["recurrent"].task()) == expected


@pytest.mark.parametrize("scheme", [LowRank(2), Codebook(2) + LowRank(1)])
def test_weights_that_two_layers_cannot_stand_for_are_stored_as_products(scheme: Scheme) -> None:
    task = USERS["recurrent"].task()
    finished, difference = compressed(task, Lc(schemes={"rnn": scheme, "table": LowRank(2)}))
    assert difference < 1e-5
    assert [f"{edit.layer}.{edit.parameter}" for edit in finished.edits] == [*GATES, ".table"]
    # What is a product trains as weights do, and may be compressed on.
    assert [edit.of_weights for edit in finished.edits] == [not isinstance(scheme, Sum)] * 4 + [True]
    again, x = rebuilt(finished, task.model(), task.example()), task.example()
    with torch.no_grad():
        assert torch.equal(again.eval()(x), finished.model.eval()(x))


class Upsampling(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.up, self.head = nn.ConvTranspose2d(3, 12, (2, 3), (2, 1)), nn.Linear(12, 5)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.up(x).mean((2, 3)))


@pytest.mark.parametrize("scheme", range(4))
def test_a_low_rank_of_a_transposed_convolution_is_that_of_two(task: ac.Task, scheme: int) -> None:
    # Inputs are the rows of a weight as it is kept, so that factors change places.
    weight = Upsampling().up.weight
    finished, difference = compressed(replace(task, model=Upsampling), Lc(schemes={"up": LowRank(2, scheme)}))
    assert difference < 1e-5
    (edit,) = finished.edits
    assert edit == Factorize("up", 3 - scheme, 1, 2)
    matrix = Folding(tuple(weight.shape), scheme).fold(finished.model.up.weight)[0]
    assert torch.linalg.matrix_rank(matrix.detach(), rtol=1e-5) == 2


def test_names_that_match_nothing_are_told_with_those_that_would(task: ac.Task) -> None:
    message = "schemes must name layers among conv1, conv2, fc1, fc2 but got fc9."
    with pytest.raises(TrialError, match=re.escape(message)):
        Lc(schemes={"fc9": Codebook(2)}).start(task.model(), task)


def test_sgd_does_not_diverge_however_fast_mu_grows(task: ac.Task) -> None:
    task = task.with_recipe(optimizer="sgd", lr=0.05, weight_decay=0.0)
    lc = Lc(schemes={"*": Codebook(4)}, mu0=0.1, growth=4.0, steps=20)
    torch.manual_seed(0)
    session = lc.start(task.model(), task)
    trainer = Trainer(task, 4, lr_scale=2.0)
    trainer.fit(session.model, 4, session)
    assert session.mu > 1e6
    assert all(session.mu_of(one) == 0.5 / 0.05 for one in session.compressions)
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
    session = lc.start(task.model(), task)
    solved: list[int] = []
    monkeypatch.setattr(Compression, "solve", lambda self, x, mu, augmented: solved.append(taken))
    for taken in range(1, optimiser_steps + 1):
        session.after_step(taken / optimiser_steps)
    assert len(solved) == expected
    assert solved[-1] == optimiser_steps  # what is stored is solved for at the very end
    assert min(np.diff([0, *solved])) >= min(spacing, optimiser_steps // max(8, expected))
    assert 1.1 ** (steps / 2 - 1) <= session.mu <= 1.1 ** (steps - 1) * 1.001  # μ rises all the same


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
    session = lc.start(task.model(), task)
    parts = parts_of(scheme)
    visits = {"C step": 0, "part": 0}
    solve = Compression.solve

    def c_step(self, x, mu, augmented):  # type: ignore[no-untyped-def]
        visits["C step"] += len(x)
        solve(self, x, mu, augmented)

    monkeypatch.setattr(Compression, "solve", c_step)
    for cls in {type(part) for part in parts}:
        original = cls.solve

        def counted(self, x, mu, view, previous=None, original=original):  # type: ignore[no-untyped-def]
            assert previous is not None
            visits["part"] += len(x)
            return original(self, x, mu, view, previous)

        monkeypatch.setattr(cls, "solve", counted)

    def histogram(*args: object) -> None:
        raise AssertionError("a later C step must start from the last levels")

    monkeypatch.setattr("autocompress.methods.lc.kmeans._histogram", histogram)
    Trainer(task, 10).fit(session.model, 10, session)
    weights = sum(len(one.dense) for one in session.compressions)
    assert 8 * weights <= visits["C step"] <= 20 * weights
    assert visits["part"] == len(parts) * visits["C step"]


def test_sums_are_solved_for_as_rarely_as_they_have_parts(
    task: ac.Task, monkeypatch: pytest.MonkeyPatch
) -> None:
    """So that a C step for each part takes no more of a training than one of a scheme alone."""
    solved: list[Scheme] = []
    monkeypatch.setattr(Compression, "solve", lambda self, x, mu, augmented: solved.append(self.scheme))
    counts = []
    for scheme in (PruneL0(0.1), Codebook(4) + PruneL0(0.1), Codebook(4) + PruneL0(0.1) + LowRank(1)):
        session = Lc(schemes={"fc1": scheme, "*": Ternary()}, steps=40).start(task.model(), task)
        solved.clear()
        for taken in range(1, 961):
            session.after_step(taken / 960)
        counts.append(solved.count(scheme))
    assert counts == [40, 30, 20]  # every 24 optimiser steps, which an L step has, every 32 and 48


def test_logging_an_epoch_packs_nothing(task: ac.Task, monkeypatch: pytest.MonkeyPatch) -> None:
    lc = Lc(schemes={"conv1": Codebook(4), "*": PruneL0(0.1)})
    session = lc.start(task.model(), task)

    def build(*args: object) -> None:
        raise AssertionError("a weight was packed to count its bytes")

    monkeypatch.setattr("autocompress.weights.decoders.weight_code", build)
    log = session.after_epoch(0.5)
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
    session = lc.start(task.model(), task)
    with torch.no_grad():
        session.model.fc2.weight[0, 0] = torch.nan
    with pytest.raises(DivergedError, match="the weights of fc1, fc2 became NaN or infinite"):
        session.after_step(1 / 3)


def test_steps_follow_the_augmented_lagrangian(task: ac.Task) -> None:
    lc = Lc(schemes={"fc1": Codebook(2)}, mu0=0.5, growth=2.0, steps=3)
    model = task.model()
    session = lc.start(model, task)
    one = session.compressions[0]
    w = model.fc1.weight
    direct = Codebook(2).solve(w.detach().reshape(-1), 1.0, one.view).dense()
    assert torch.allclose(one.dense, direct)
    multipliers, mu = torch.zeros_like(direct), 0.5
    for done in (1, 2):
        with torch.no_grad():
            w.add_(0.05 * torch.randn_like(w))
        x = w.detach().reshape(-1)
        target = one.dense + multipliers / mu
        assert session.penalty().item() == pytest.approx(
            float(mu / 2 * (x - target).square().sum()), rel=1e-5
        )
        session.after_step(done / 3)
        expected = Codebook(2).solve(x - multipliers / mu, mu, one.view).dense()
        assert torch.allclose(one.dense, expected, atol=1e-6)
        multipliers = multipliers - mu * (x - expected)
        assert torch.allclose(one.multipliers, multipliers, atol=1e-6)
        mu = 0.5 * 2**done
        assert session.mu == mu


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
    session = lc.start(model, task)
    assert [session.mu_of(one) for one in session.compressions] == pytest.approx(mus)
    expected = 0.0
    for mu, one, layer in zip(mus, session.compressions, layers, strict=True):
        expected += (
            mu / 2 * float((layer.weight.detach() - one.dense.reshape(layer.weight.shape)).square().sum())
        )
    assert session.penalty().item() == pytest.approx(expected, rel=1e-5)


def test_a_rising_mu_brings_weights_to_what_they_are_stored_as(task: ac.Task) -> None:
    task = task.with_recipe(lr=1e-2)
    distances = []
    for growth in (1.0, 2.0):
        lc = Lc(schemes={("*",): Codebook(2)}, mu0=1e-3, growth=growth, steps=20)
        torch.manual_seed(0)
        session = lc.start(task.model(), task)
        Trainer(task, 20).fit(session.model, 20, session)
        distances.append(session.after_epoch(1.0)["distance/conv1"])
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
    finished, difference = compressed(task, Lc(schemes={"*": SCHEMES[name]}))
    assert difference < 1e-5
    assert {type(edit) for edit in finished.edits} == {Encode}
    save_weights(task.model(), tmp_path / "dense.safetensors")
    save_weights(finished.model, tmp_path / "small.safetensors")
    dense, small = ((tmp_path / f"{n}.safetensors").stat().st_size for n in ("dense", "small"))
    weights = sum(p.numel() for n, p in finished.expected.named_parameters() if p.dim() > 1)
    rest = sum(t.numel() for t in finished.expected.state_dict().values()) - weights
    bits = {"codebook": 2, "ternary": 2, "prune": 0.05 * 40, "sum": 1 + 0.02 * 40, "sum with low rank": 4}
    # Names, headers and levels take a little; everything else is the codes, values and other tensors.
    assert small <= weights * bits[name] / 8 * 1.1 + 4 * rest + 4000
    assert small < 0.5 * dense


def test_low_rank_becomes_two_layers_and_a_rank_that_saves_nothing_stays_dense(task: ac.Task) -> None:
    schemes = {"fc1": LowRank(3), "conv2": RankSelection(alpha=0.0)}
    finished, difference = compressed(task, Lc(schemes=schemes))
    assert finished.edits == (Factorize("fc1", 0, 1, 3),)
    assert difference < 1e-4
    assert [tuple(layer.weight.shape) for layer in finished.model.fc1] == [(3, 256), (40, 3)]


def test_rank_selection_lowers_ranks_as_alpha_rises(task: ac.Task) -> None:
    ranks = []
    for alpha in (1e-5, 1e-2):
        lc = Lc(schemes={"fc1": RankSelection(alpha=alpha)}, mu0=1.0, growth=1.0)
        edits = compressed(task, lc)[0].edits
        ranks.append(next((edit.rank for edit in edits if isinstance(edit, Factorize)), 40))
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


@pytest.mark.parametrize("layer", ["nowhere", "", "fc1.bias"])
def test_only_a_layer_with_a_weight_can_be_encoded(task: ac.Task, layer: str) -> None:
    with pytest.raises(CheckpointError, match=f"layer must be one that has a weight but got '{layer}'"):
        Encode(layer, {"kind": "codes", "k": 2, "tied": "free"}).apply(task.model(), task.example())


@pytest.mark.parametrize("scheme", [Codebook(4), PruneL0(0.02), LowRank(2) + PruneL0(0.01)])
def test_models_in_double_precision_are_stored_in_it(task: ac.Task, scheme: Scheme) -> None:
    x = task.example().double()
    double = replace(task, train=[(x, torch.zeros(len(x), dtype=torch.long))])
    finished = Lc(schemes={"*": scheme}).start(task.model().double(), double).finish()
    assert check_equal(finished.model, finished.expected, x, "LC") < 1e-9
    assert finished.model(x).dtype == torch.float64
    again = rebuilt(finished, task.model().double(), x)
    with torch.no_grad():
        assert torch.equal(again.eval()(x), finished.model.eval()(x))


MIXED: dict[str | tuple[str, ...], Scheme] = {
    "fc1": LowRank(3), "conv2": Codebook(2), "conv1": Ternary() + PruneL0(0.05), "fc2": PruneL0(0.2),
}  # fmt: skip


def test_factors_and_codes_leave_the_trained_model_as_it_was(task: ac.Task) -> None:
    finished, _ = compressed(task, Lc(schemes=MIXED))
    assert {type(edit) for edit in finished.edits} == {Factorize, Encode}
    plain = Network()
    assert finished.expected.state_dict().keys() == plain.state_dict().keys()
    layers = zip(finished.expected.modules(), plain.modules(), strict=True)
    assert all(type(trained) is type(own) for trained, own in layers)


@pytest.mark.parametrize(
    "schemes",
    [MIXED, {"*": Codebook(2) + (LowRank(1) + PruneL0(0.02))}, {"*": Binary()}, {"*": ScaledBinary()}],
    ids=["mixed", "sum of three", "fixed", "scale"],
)
def test_edits_and_tensors_rebuild_the_finished_model_exactly(
    task: ac.Task, schemes: dict[str | tuple[str, ...], Scheme]
) -> None:
    finished, _ = compressed(task, Lc(schemes=schemes))
    again, x = rebuilt(finished, task.model(), task.example()), task.example()
    for model in (again, finished.model):
        model.eval()
    with torch.no_grad():
        assert torch.equal(again(x), finished.model(x))
    trained = {name: p.requires_grad for name, p in finished.model.named_parameters()}
    assert trained == {name: p.requires_grad for name, p in again.named_parameters()}
    assert all(trained.values())


def test_frozen_parameters_stay_as_they_are(task: ac.Task) -> None:
    model = task.model()
    frozen = ("fc1.weight", "conv1.bias")
    for name in frozen:
        model.get_parameter(name).requires_grad_(False)
    fresh = copy.deepcopy(model)
    session = Lc(schemes={"*": Codebook(4)}).start(model, task)
    Trainer(task, 1).fit(session.model, 1, session)
    finished = session.finish()
    assert {edit.layer for edit in finished.edits} == {"conv1", "conv2", "fc2"}
    for left in (finished.model, rebuilt(finished, fresh, task.example())):
        assert tuple(n for n, p in left.named_parameters() if not p.requires_grad) == frozen[::-1]
        assert all(torch.equal(left.get_parameter(name), fresh.get_parameter(name)) for name in frozen)


def test_a_scheme_for_a_layer_that_stays_is_refused_with_the_reason(task: ac.Task) -> None:
    limited = replace(task, limits=settle(task.model(), exclude=["fc1"]))
    with pytest.raises(TrialError, match=r"schemes must name layers .* but got 'fc1': excluded by 'fc1'\."):
        Lc(schemes={"fc1": Codebook(4)}).start(task.model(), limited)


@pytest.mark.parametrize("scheme", [LowRank(2), RankSelection(alpha=1.0)])
def test_products_have_the_least_rank(task: ac.Task, scheme: Scheme) -> None:
    """Of a half of the rank of 40 × 256; by itself it would be two, or as good as none."""
    limited = replace(task, limits=settle(task.model(), at_least={"fc1": 0.5}))
    session = Lc(schemes={"fc1": scheme}).start(task.model(), limited)
    assert session.compressions[0].encoding.rank == 20


def test_parameters_are_what_the_stored_form_stands_for(task: ac.Task) -> None:
    whole = count_params(task.model())
    finished, _ = compressed(task, Lc(schemes={"*": Codebook(4)}))
    assert count_params(finished.model) == whole
    finished, _ = compressed(task, Lc(schemes={"fc1": PruneL0(0.1)}))
    assert count_params(finished.model) == whole - 40 * 256 + round(0.1 * 40 * 256)
