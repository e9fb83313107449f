"""ALDS on models: budgets are met, both ways of training end in exact factors, errors are told early."""

from __future__ import annotations

import re
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import Tensor, nn

import autocompress as ac
from autocompress.errors import CheckpointError, SettingsError, TrialError
from autocompress.graph import analyse
from autocompress.graph.costs import count_params, layer_macs
from autocompress.graph.weights import Obstacle, weights_of
from autocompress.methods.alds import Alds, Config
from autocompress.methods.alds.session import AldsSession
from autocompress.methods.alds.spectra import MEASURES, Measure, digest
from autocompress.sharing import sharing
from autocompress.surgery import Edit, Encode, Factorize, apply, check_equal
from autocompress.training.loop import Trainer
from autocompress.weights.factored import recompose
from tests.methods.rebuilding import rebuilt
from tests.methods.users import USERS


class Convolutions(nn.Module):
    """Wide enough that a low rank is cheaper."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.norm = nn.Conv2d(3, 16, 3, padding=1), nn.BatchNorm2d(16)
        self.second = nn.Conv2d(16, 24, 3, stride=2, padding=1, bias=False)
        self.grouped = nn.Conv2d(24, 24, 3, padding=1, groups=2)
        self.head = nn.Linear(24 * 16, 5)

    def forward(self, x: Tensor) -> Tensor:
        x = torch.relu(self.norm(self.first(x)))
        return self.head(torch.relu(self.grouped(torch.relu(self.second(x)))).flatten(1))


@pytest.fixture
def task(residual_task: ac.Task) -> ac.Task:
    return replace(residual_task, model=Convolutions)


def trained(task: ac.Task, config: Config, epochs: int = 2) -> AldsSession:
    torch.manual_seed(0)
    session = Alds(config).start(task.model(), task)
    Trainer(task, epochs).fit(session.model, epochs, session)
    return session


def compressed(task: ac.Task, config: Config, epochs: int = 2) -> tuple[nn.Module, float, tuple[Edit, ...]]:
    """The compact model, how far it is from the trained one, and its edits."""
    finished = trained(task, config, epochs).finish()
    difference = check_equal(finished.model, finished.expected, task.example(), "ALDS")
    return finished.model, difference, finished.edits  # type: ignore[return-value]


@pytest.mark.parametrize("measure", MEASURES)
@pytest.mark.parametrize("cost", ["macs", "params"])
def test_the_budget_is_met_physically(task: ac.Task, measure: Measure, cost: str) -> None:
    model, difference, edits = compressed(task, Config(keep=0.5, cost=cost, measure=measure))
    x = task.example()
    whole, small = (
        (layer_macs(m, x)[""] if cost == "macs" else count_params(m)) for m in (task.model(), model)
    )
    assert edits
    assert difference < 1e-4
    assert 0.4 < small / whole <= 0.5


@pytest.mark.parametrize(
    "options", [{"lambda_rank": 0.3}, {"cascade": 3}, {"lambda_rank": 0.1, "cascade": 2}]
)
def test_dense_training_ends_in_exact_factors(task: ac.Task, options: dict[str, float]) -> None:
    model, difference, edits = compressed(task, Config(keep=0.5, cost="params", **options), epochs=3)
    assert edits
    assert difference < 1e-4
    assert count_params(model) <= 0.5 * count_params(task.model())
    for edit in edits:
        first = model.get_submodule(edit.layer)[0]
        assert next(first.parameters()).requires_grad


def test_the_penalty_follows_ranks_that_a_part_of_a_cascade_chooses_anew(task: ac.Task) -> None:
    session = Alds(Config(keep=0.4, cost="params", lambda_rank=0.1, cascade=3)).start(task.model(), task)
    before = session.allocation.choices
    with torch.no_grad():
        session.model.second.weight[:, 1:] = 0  # which one slice of its input channels stands for
        session.model.head.weight.normal_()
    session.after_step(0.34)
    after = session.allocation.choices
    assert before != after
    assert session.tails.keys() == after.keys()
    assert torch.isfinite(session.penalty())
    for name, choice in after.items():
        matrices = session.decomposer.matrices(name, choice)
        least = torch.linalg.svdvals(matrices.detach())[..., choice.rank :].sum()
        share = float(session.tails[name].share(matrices).detach())
        assert share == pytest.approx(float(least) / session.tails[name].total, abs=1e-4)


@pytest.mark.parametrize("refit", [True, False])
def test_the_factors_that_come_out_are_those_that_were_trained(task: ac.Task, refit: bool) -> None:
    session = trained(task, Config(keep=0.5, cost="params", refit=refit))
    before = {name: tensor.clone() for name, tensor in session.model.state_dict().items()}
    finished = session.finish()
    after = finished.model.state_dict()
    assert before.keys() == after.keys()
    assert all(torch.equal(before[name], after[name]) for name in before)
    assert any(name.startswith("head.0.") for name in before)


@pytest.mark.parametrize(
    "options", [{}, {"lambda_rank": 0.3}, {"cascade": 3}, {"lambda_rank": 0.1, "cascade": 2}]
)
def test_edits_and_tensors_rebuild_the_finished_model_exactly(
    task: ac.Task, options: dict[str, float]
) -> None:
    finished = trained(task, Config(keep=0.4, cost="params", **options), epochs=3).finish()
    again, x = rebuilt(finished, task.model(), task.example()), task.example()
    with torch.no_grad():
        assert torch.equal(again.eval()(x), finished.model.eval()(x))
    assert all(p.requires_grad for model in (again, finished.model) for p in model.parameters())


@pytest.mark.parametrize("options", [{}, {"lambda_rank": 0.3}])
def test_frozen_layers_stay_as_they_are(task: ac.Task, options: dict[str, float]) -> None:
    def make() -> nn.Module:
        model = Convolutions()
        model.second.weight.requires_grad_(False)
        model.first.bias.requires_grad_(False)
        return model

    finished = trained(replace(task, model=make), Config(keep=0.3, cost="params", **options)).finish()
    assert {edit.layer for edit in finished.edits} == {"grouped", "head"}
    for model in (finished.model, rebuilt(finished, make(), task.example())):
        frozen = {name for name, p in model.named_parameters() if not p.requires_grad}
        assert frozen == {"first.bias", "second.weight"}


def test_models_in_double_precision_are_factorised_in_it(task: ac.Task) -> None:
    batches = [(x.double(), y) for x, y in task.train]
    task = replace(task, model=lambda: Convolutions().double(), train=batches, val=batches, input=None)
    finished = trained(task, Config(keep=0.5, cost="params")).finish()
    again, x = rebuilt(finished, task.model(), task.example()), task.example()
    assert {p.dtype for p in again.parameters()} == {torch.float64}
    with torch.no_grad():
        assert torch.equal(again.eval()(x), finished.model.eval()(x))


def test_the_penalty_is_the_share_of_singular_values_that_are_cut(task: ac.Task) -> None:
    config = Config(keep=0.5, cost="params", schemes="first", max_slices=1, lambda_rank=0.7)
    session = Alds(config).start(task.model(), task)
    shares = []
    for name, choice in session.allocation.choices.items():
        weight = session.model.get_submodule(name).weight.detach()
        groups = getattr(session.model.get_submodule(name), "groups", 1)
        values = [np.linalg.svd(w.flatten(1).numpy(), compute_uv=False) for w in weight.chunk(groups)]
        shares.append(sum(v[choice.rank :].sum() for v in values) / sum(v.sum() for v in values))
    assert session.penalty().item() == pytest.approx(0.7 * np.mean(shares), rel=1e-4)


def test_the_penalty_brings_ranks_down(task: ac.Task) -> None:
    errors = []
    task = task.with_recipe(lr=1e-2)
    for strength in (1e-6, 30.0):
        session = trained(task, Config(keep=0.5, cost="params", lambda_rank=strength), epochs=12)
        session.finish()
        errors.append(session.allocation.error)
    assert errors[1] < 0.8 * errors[0]


def test_epsilon_bounds_every_layers_error(task: ac.Task) -> None:
    model = task.model()
    before = {name: p.detach().clone() for name, p in model.named_parameters()}
    session = Alds(Config(epsilon=0.3, measure="frobenius", refit=False)).start(model, task)
    assert session.allocation.choices
    for name in session.allocation.choices:
        pair = session.model.get_submodule(name)
        old, new = before[f"{name}.weight"], recompose(pair, pair.folding).detach()
        assert 0 < float((old - new).norm() / old.norm()) <= 0.3 + 1e-6


def test_rank_caps_bound_the_ranks_of_their_part_of_the_model(task: ac.Task) -> None:
    session = Alds(Config(keep=0.5, cost="params", rank_caps=(0.25, 1.0))).start(task.model(), task)
    for name, choice in session.allocation.choices.items():
        if name in ("first", "second"):
            assert choice.rank <= max(1, 0.25 * session.decomposer.full_rank(name, choice))


def test_a_budget_that_cannot_be_met_is_told_with_the_least_that_can(task: ac.Task) -> None:
    with pytest.raises(TrialError, match=re.escape("keep must be at least 0.")):
        Alds(Config(keep=0.01)).start(task.model(), task)


class Shared(nn.Module):
    """One weight under two names, one that is read by the model's own code, and one plain layer."""

    def __init__(self) -> None:
        super().__init__()
        self.a, self.b, self.c, self.d = (nn.Linear(24, 24) for _ in range(4))
        self.b.weight = self.a.weight
        self.enter, self.head = nn.Linear(192, 24), nn.Linear(24, 5)

    def forward(self, x: Tensor) -> Tensor:
        x = self.b(self.a(self.enter(x.flatten(1))))
        x = nn.functional.linear(x, self.c.weight) + self.c(x)
        return self.head(self.d(x))


def test_layers_whose_weight_is_used_elsewhere_keep_their_place(residual_task: ac.Task) -> None:
    task = replace(residual_task, model=Shared)
    model = Shared()
    weights = weights_of(model, analyse(model, task.example()), {})
    obstacles = {layer.name: layer.obstacle for layer in weights}
    assert obstacles.get("a", obstacles.get("b")) is Obstacle.SHARED
    assert obstacles["c"] is Obstacle.READ_ELSEWHERE
    assert obstacles["d"] is None
    _, difference, edits = compressed(task, Config(keep=0.6, cost="params"))
    assert difference < 1e-4
    # Two layers stand for these alone; the weights of the others are stored as products.
    assert {edit.layer for edit in edits if isinstance(edit, Factorize)} <= {"enter", "d", "head"}


@pytest.mark.parametrize("measure", MEASURES)
def test_budgets_of_parameters_are_met_by_products_of_weights_that_are_no_layers(measure: Measure) -> None:
    user = USERS["recurrent"]
    task = replace(user.task(), model=user.make)
    model, difference, edits = compressed(
        task, Config(keep=0.5, cost="params", measure=measure, max_slices=2)
    )
    assert difference < 1e-4
    assert count_params(model) <= 0.5 * count_params(task.model())
    products = {edit.layer for edit in edits if isinstance(edit, Encode)}
    # The recurrent layer, weights of the model itself, and a weight that an embedding shares.
    assert {"rnn", "", "embed"} >= products >= {"rnn"}
    assert all(edit.of_weights for edit in edits if isinstance(edit, Encode))


class Translating(nn.Module):
    """Words, and an upsampling of what they stand for."""

    def __init__(self) -> None:
        super().__init__()
        self.embed, self.up = nn.Embedding(60, 32), nn.ConvTranspose1d(32, 40, 4, 2, 1)
        self.head = nn.Linear(40, 5)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(torch.relu(self.up(self.embed(x).mT)).mean(2))


@pytest.mark.parametrize("measure", MEASURES)
def test_two_layers_stand_for_embeddings_and_transposed_convolutions(measure: Measure) -> None:
    generator = torch.Generator().manual_seed(0)
    ids, labels = torch.randint(60, (64, 9), generator=generator), torch.zeros(64, dtype=torch.int64)
    task = ac.Task(model=Translating, train=[(ids, labels)], recipe=ac.Recipe(epochs=1))
    model, difference, edits = compressed(task, Config(keep=0.5, cost="params", measure=measure))
    assert difference < 1e-4
    schemes = {edit.layer: edit.scheme for edit in edits if isinstance(edit, Factorize)}
    assert (schemes["embed"], schemes["up"]) == (0, 1)
    assert count_params(model) <= 0.5 * count_params(task.model())
    # Looking up takes no multiplications, so that factors of an embedding would only add some.
    macs = layer_macs(task.model(), ids[:2])[""]
    model, difference, edits = compressed(task, Config(keep=0.5, cost="macs", measure=measure))
    layers = {edit.layer for edit in edits if isinstance(edit, Factorize)}
    assert "up" in layers
    assert "embed" not in layers
    assert layer_macs(model, ids[:2])[""] <= 0.5 * macs


@pytest.mark.parametrize(("options", "message"), [
    ({"keep": 0.0}, "keep must be in (0, 1) but got 0.0."),
    ({"measure": "none"}, "measure must be one of slices, operator, frobenius, data but got 'none'."),
    ({"rank_caps": (0.5, 0.0)}, "rank_caps must be in (0, 1] but got (0.5, 0.0)."),
    ({"cascade": 0}, "cascade must be at least 1 but got 0."),
    ({"cascade": 2, "epsilon": 0.3}, "cascade must be 1 where epsilon is given but got 2."),
    ({"lambda_rank": -1.0}, "lambda_rank must be at least 0 but got -1.0."),
])  # fmt: skip
def test_config_refuses_values_out_of_range(options: dict[str, object], message: str) -> None:
    with pytest.raises(SettingsError, match=re.escape(message)):
        Config(**options)


def test_factorize_refuses_what_does_not_fit(task: ac.Task) -> None:
    model = task.model()
    for layer in ("norm", "", "nowhere"):
        with pytest.raises(
            CheckpointError, match=f"a linear, convolution or embedding layer but got '{layer}'"
        ):
            apply(model, (Factorize(layer, 0, 1, 1),), task.example())
    with pytest.raises(CheckpointError, match=re.escape("rank be in [1, 5] but got 1 and 6")):
        apply(model, (Factorize("head", 0, 1, 6),), task.example())
    with pytest.raises(CheckpointError, match="slices must divide 12 channels"):
        apply(model, (Factorize("grouped", 0, 5, 1),), task.example())


def test_models_without_such_layers_are_unsupported() -> None:
    from autocompress.task import ModelProfile

    assert Alds.unsupported(ModelProfile(1, 1, ())) is not None


class Frames(nn.Module):
    """A layer that sees five positions of each input as a batch of their own, and one called twice."""

    def __init__(self) -> None:
        super().__init__()
        self.enter, self.twice, self.head = nn.Linear(24, 32), nn.Linear(32, 32), nn.Linear(32, 5)

    def forward(self, x: Tensor) -> Tensor:
        frames = x.reshape(-1, 24)
        frames = torch.relu(self.twice(torch.relu(self.twice(torch.relu(self.enter(frames))))))
        return self.head(frames.reshape(x.shape[0], -1, self.twice.out_features).mean(1))


def test_costs_count_every_position_and_call(residual_task: ac.Task) -> None:
    task = replace(residual_task, model=Frames)
    model, x = Frames(), task.example()
    macs = layer_macs(model, x)
    layers = {one.name: one for one in weights_of(model, analyse(model, x), macs)}
    assert {name: one.macs for name, one in layers.items()} == {name: macs[name] for name in layers}
    assert layers["twice"].macs == 2 * 8 * 32 * 32
    small, difference, _ = compressed(task, Config(keep=0.5))
    assert difference < 1e-4
    assert layer_macs(small, x)[""] <= 0.5 * macs[""]


def test_the_penalty_ends_at_zero(task: ac.Task) -> None:
    session = Alds(Config(keep=0.5, cost="params", lambda_rank=1.0)).start(task.model(), task)
    optimizer = torch.optim.Adam(session.model.parameters(), lr=1e-2)
    for _ in range(300):
        optimizer.zero_grad()
        loss = session.penalty()
        loss.backward()
        optimizer.step()
    assert 0 <= loss.item() < 0.05


class Peeking(nn.Module):
    """Code that reads a layer's weight, and code that asks for a layer's class."""

    def __init__(self) -> None:
        super().__init__()
        self.enter, self.plain, self.asked = nn.Linear(192, 40), nn.Linear(40, 40), nn.Linear(40, 40)
        self.head = nn.Linear(40, 5)

    def forward(self, x: Tensor) -> Tensor:
        if self.training:
            x = x.to(self.enter.weight.dtype)
        x = torch.relu(self.enter(x.flatten(1)))
        x = torch.relu(self.plain(x))
        x = self.asked(x) if isinstance(self.asked, nn.Linear) else x
        return self.head(x)


def test_layers_that_the_models_code_looks_into_keep_their_place(residual_task: ac.Task) -> None:
    task = replace(residual_task, model=Peeking)
    _, difference, edits = compressed(task, Config(keep=0.9, cost="params"))
    assert difference < 1e-4
    assert {edit.layer for edit in edits if isinstance(edit, Factorize)} == {"plain", "head"}
    assert {edit.layer for edit in edits if isinstance(edit, Encode)} <= {"enter", "asked"}


class Encoder(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.layer = nn.TransformerEncoderLayer(16, 2, 64, batch_first=True)
        self.norm = nn.BatchNorm1d(16)
        self.head = nn.Linear(16, 5)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.norm(self.layer(x.flatten(2).reshape(-1, 12, 16)).mean(1)))


def test_factors_in_a_transformer_pass_its_fused_kernel_of_inference(residual_task: ac.Task) -> None:
    task = replace(residual_task, model=Encoder, recipe=ac.Recipe(epochs=1))
    done = ac.compress(Encoder(), task, Alds(Config(keep=0.7, cost="params")))
    assert isinstance(done.model.layer.linear1, nn.Sequential)
    x = task.example(4)
    with torch.no_grad():
        fused = done.model(x)
        done.model.layer.train()
        done.model.layer.dropout.p = done.model.layer.dropout1.p = done.model.layer.dropout2.p = 0.0
        done.model.layer.self_attn.dropout = 0.0
        plain = done.model(x)
    assert torch.allclose(fused, plain, atol=1e-5)


def test_spectra_of_weights_that_training_made_are_not_shared(task: ac.Task, tmp_path: Path) -> None:
    with sharing(tmp_path):
        session = Alds(Config(keep=0.6, cost="params", cascade=2)).start(task.model(), task)
        first = len(list(tmp_path.glob("*.pickle")))
        with torch.no_grad():
            for parameter in session.model.parameters():
                parameter.mul_(1.1)
        session.after_step(0.5)
        session.finish()
    assert first > 0
    assert len(list(tmp_path.glob("*.pickle"))) == first


def test_a_digest_goes_by_values_and_not_by_strides() -> None:
    narrow = torch.randn(8, 24).as_strided((4, 1), (1, 24))
    assert digest(narrow) == digest(narrow.clone(memory_format=torch.contiguous_format))
    assert digest(narrow) != digest(narrow + 1)
