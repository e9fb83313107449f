"""Translators against independent references, and bridges over every legal pair of cut points."""

from __future__ import annotations

import re
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import torchvision.models as tv
from sklearn.linear_model import Ridge
from torch import Tensor, nn
from torchvision.models.swin_transformer import PatchMergingV2, SwinTransformer, SwinTransformerBlockV2

import autocompress as ac
from autocompress.checkpoint import export_program, load_program
from autocompress.errors import SettingsError, TrialError
from autocompress.graph import Analysis, CutPoint, analyse, why_illegal
from autocompress.graph.bridging import OUTPUT, bridge, layers_between
from autocompress.graph.proof import relative_difference
from autocompress.methods.base import Finished
from autocompress.methods.depth import Config, Depth
from autocompress.methods.depth.config import Freeze
from autocompress.methods.depth.translator import affine_ridge, fit, refine
from autocompress.surgery import BridgeLayers, check_equal
from autocompress.surgery.translators import KINDS, Pool, Translator
from autocompress.training.loop import Trainer
from tests.graph.zoo import MODELS
from tests.methods.rebuilding import rebuilt


def random_task(make: object, side: int = 8) -> ac.Task:
    inputs, targets = torch.randn(16, 3, side, side), torch.randint(0, 5, (16,))
    data = torch.utils.data.TensorDataset(inputs, targets)
    return ac.Task(model=make, train=torch.utils.data.DataLoader(data, batch_size=8))


def test_ridge_equals_scikit_learn() -> None:
    rng = np.random.default_rng(0)
    a, b = rng.normal(size=(50, 7)), rng.normal(size=(50, 3))
    strength = 0.1
    centred = a - a.mean(0)
    reference = Ridge(alpha=strength * np.diag(centred.T @ centred).mean()).fit(a, b)
    weight, offset = affine_ridge(torch.from_numpy(a), torch.from_numpy(b), strength)
    assert np.allclose(weight.numpy(), reference.coef_, atol=1e-8)
    assert np.allclose(offset.numpy(), reference.intercept_, atol=1e-8)


@pytest.mark.parametrize(
    ("shape", "tokens"),
    [((6, 8, 8), False), ((6, 12), False), ((12, 6), True), ((9,), False)],
    ids=["grid", "signal", "tokens", "flat"],
)
def test_a_linear_map_is_recovered_exactly(shape: tuple[int, ...], tokens: bool) -> None:
    torch.manual_seed(0)
    channels = shape[-1 if tokens else 0]
    end = (*shape[:-1], 5) if tokens else (5, *shape[1:])
    a = torch.randn(40, *shape)
    mixing = torch.randn(channels, 5)
    b = a @ mixing + 1 if tokens else torch.einsum("bc...,cd->bd...", a, mixing) + 1
    translator = Translator(shape, end, "linear", tokens)
    assert fit(translator, a, b, strength=1e-9) < 1e-4


@pytest.mark.parametrize(("before", "after"), [(32, 16), (32, 8), (7, 4), (9, 2), (5, 5), (7, 3), (6, 4)])
def test_pooling_meets_the_later_size_in_one_step(before: int, after: int) -> None:
    pool = Pool((before, before), (after, after))
    x = torch.randn(2, 3, before, before)
    assert pool(x).shape == (2, 3, after, after)
    if before % after == 0:
        assert pool.kernel == pool.stride == [before // after] * 2
        assert torch.equal(pool(x), nn.functional.max_pool2d(x, before // after))


def test_refining_a_fit_does_not_make_it_worse_and_a_random_one_better() -> None:
    torch.manual_seed(0)
    a = torch.randn(128, 6, 4, 4)
    b = torch.relu(torch.einsum("bchw,cd->bdhw", a, torch.randn(6, 6)))
    fitted, drawn = Translator((6, 4, 4), (6, 4, 4), "pooled"), Translator((6, 4, 4), (6, 4, 4), "pooled")
    start = fit(fitted, a, b)
    assert refine(fitted, a, b, 200) < start
    assert refine(drawn, a, b, 0) > 2 * start


def cut(*shape: int, tokens: bool = False) -> CutPoint:
    return CutPoint("", "", shape, tokens, ())


def test_illegal_pairs_say_why() -> None:
    assert why_illegal(cut(8, 16, 16), cut(4, 8, 8)) is None
    assert why_illegal(cut(8, 16, 16), cut(4)) is None
    assert why_illegal(cut(8, 16), cut(4, 8)) is None
    assert why_illegal(cut(10, 8, tokens=True), cut(10, 6, tokens=True)) is None
    assert "10 tokens do not lead to 5" in why_illegal(cut(10, 8, tokens=True), cut(5, 8, tokens=True))
    assert "sequence of tokens" in why_illegal(cut(10, 8), cut(10, 8, tokens=True))
    assert "larger one" in why_illegal(cut(8, 4, 4), cut(8, 8, 8))
    assert "dimensions" in why_illegal(cut(8, 4, 4), cut(16, 8))


SMALL = {
    "vit": (lambda: tv.VisionTransformer(32, 8, 2, 4, 32, 48, num_classes=5), 32),
    **{name: (MODELS[name], 8) for name in MODELS if name != "functional"},
}


def gone(analysis: Analysis, start: str, end: str) -> set[str]:
    """Layers that run between these cut points and nowhere else."""
    outside = set(layers_between(analysis, end, OUTPUT))
    first = next(node.name for node in analysis.trace.graph.nodes)
    outside |= set(layers_between(analysis, first, start))
    return set(layers_between(analysis, start, end)) - outside


@pytest.mark.parametrize("name", SMALL)
def test_bridged_models_run_train_and_lose_the_layers_between(name: str, tmp_path: Path) -> None:
    torch.manual_seed(0)
    make, side = SMALL[name]
    task = random_task(make, side)
    analysis = analyse(make().eval(), task.example())
    cuts = analysis.cut_points
    legal = [
        (a, b)
        for a in range(len(cuts))
        for b in range(a + 1, len(cuts))
        if why_illegal(cuts[a], cuts[b]) is None
    ]
    assert legal
    # All pairs of small models, a spread of them for those with hundreds.
    for pair in legal[:: max(1, len(legal) // 12)]:
        finished = Depth(Config(cuts=(pair,), translator=KINDS[sum(pair) % 4])).start(make(), task).finish()
        ends = tuple(cuts[i].node for i in pair)
        kept = {n.rpartition(".")[0] for n, _ in finished.model.named_parameters()}
        assert not kept & gone(analysis, *ends)
        assert check_equal(finished.model, finished.expected, task.example(), "depth") < 1e-6
        finished.model.train()(task.example()).square().mean().backward()
        assert all(p.grad is not None for p in finished.model.parameters() if p.dim() > 1)
    # Reading the graph of a fresh model takes longest, so the last pair alone is rebuilt.
    again = rebuilt(finished, make(), task.example())
    with torch.no_grad():
        assert torch.equal(again.eval()(task.example()), finished.model.eval()(task.example()))
    export_program(finished.model, task.example(), tmp_path / "model.pt2")
    x = torch.randn(3, 3, side, side)
    with torch.no_grad():
        expected = finished.model.eval()(x)
        assert relative_difference(expected, load_program(tmp_path / "model.pt2")(x)) < 1e-5


def swin_v2() -> nn.Module:
    return SwinTransformer(
        [4, 4],
        24,
        [2, 2],
        [2, 4],
        [4, 4],
        num_classes=5,
        block=SwinTransformerBlockV2,
        downsample_layer=PatchMergingV2,
    )


def test_tensors_changed_in_place_beside_the_path_stay_changed() -> None:
    # Swin-v2 zeroes a part of a copied bias, whose result no other operator names.
    torch.manual_seed(0)
    model = swin_v2().eval()
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(0.1 * torch.randn_like(parameter))
        x = torch.randn(2, 3, 32, 32)
        whole = bridge(model, analyse(model, x), []).eval()
        assert relative_difference(model(x), whole(x)) < 1e-6


class Repeating(nn.Module):
    """One layer three times in a row."""

    def __init__(self) -> None:
        super().__init__()
        self.stem, self.again = nn.Conv2d(3, 8, 3, padding=1), nn.Conv2d(8, 8, 3, padding=1)
        self.head = nn.Linear(8, 5)

    def forward(self, x: Tensor) -> Tensor:
        x = torch.relu(self.stem(x))
        for _ in range(3):
            x = torch.relu(self.again(x))
        return self.head(x.mean((2, 3)))


@pytest.mark.parametrize(("cuts", "kept"), [(((0, 1),), True), (((0, 3),), False)])
def test_a_layer_goes_with_its_last_use(cuts: tuple[tuple[int, int], ...], kept: bool) -> None:
    task = random_task(Repeating)
    session = Depth(Config(cuts=cuts)).start(task.model(), task)
    assert hasattr(session.model, "again")
    finished = session.finish()
    assert hasattr(finished.model, "again") == kept
    assert hasattr(rebuilt(finished, task.model(), task.example()), "again") == kept


def test_several_pairs_that_meet_are_fitted_one_after_the_other(residual_task: ac.Task) -> None:
    task = random_task(MODELS["transformer_encoder"])
    session = Depth(Config(cuts=((0, 1), (1, 3), (4, 5)))).start(task.model(), task)
    assert len(session.errors) == 3
    assert all(0 <= error < 1 for error in session.errors.values())
    (edit,) = session.finish().edits
    assert isinstance(edit, BridgeLayers)
    assert [ends.name for ends in edit.ends] == list(session.errors)
    with pytest.raises(TrialError, match=r"cuts must be below the model's 6 cut points but got 9"):
        Depth(Config(cuts=((1, 9),))).start(task.model(), task)


def test_models_in_double_precision_are_bridged_in_it(residual_task: ac.Task) -> None:
    batches = [(x.double(), y) for x, y in residual_task.train]
    task = replace(residual_task, train=batches, val=batches, input=None)
    session = Depth(Config(cuts=((0, 1),))).start(task.model().double(), task)
    assert session.model(task.example()).dtype == torch.float64
    finished, x = session.finish(), task.example()
    again = rebuilt(finished, task.model().double(), x)
    assert {p.dtype for p in again.parameters()} == {torch.float64}
    with torch.no_grad():
        assert torch.equal(again.eval()(x), finished.model.eval()(x))


def test_translators_of_an_earlier_pass_stay_what_they_are(residual_task: ac.Task) -> None:
    def make() -> nn.Module:
        wide = [layer for _ in range(6) for layer in (nn.Linear(192, 192), nn.ReLU())]
        return nn.Sequential(nn.Flatten(), *wide, nn.Linear(192, 5))

    task = replace(residual_task, model=make)
    first = Depth(Config(cuts=((0, 2), (3, 4)))).start(make(), task).finish()
    second = Depth(Config(cuts=((3, 4),))).start(first.model, task).finish()
    graph: Any = second.model.graph
    names = [str(node.target) for node in graph.nodes if "translator" in str(node.target)]
    assert len(names) == len(set(names)) == len({id(second.model.get_submodule(name)) for name in names})
    both = Finished(second.model, first.edits + second.edits, second.expected)
    again, x = rebuilt(both, make(), task.example()), task.example()
    with torch.no_grad():
        assert torch.equal(again.eval()(x), second.model.eval()(x))


def test_a_frozen_backbone_trains_translators_and_the_new_head_alone() -> None:
    task = random_task(MODELS["conv1d"])
    session = Depth(Config(cuts=(), freeze="backbone", head_width=6)).start(task.model(), task)
    trained = trained_names(session.model)
    assert trained == {
        f"translator_head.{n}" for n in ("hidden.weight", "hidden.bias", "last.weight", "last.bias")
    }
    before = {name: p.detach().clone() for name, p in session.model.named_parameters()}
    Trainer(task, 2).fit(session.model, 1, session)
    finished, x = session.finish(), task.example()
    assert finished.model(x).shape == (2, 5)
    assert not any(n.startswith("head.") for n, _ in finished.model.named_parameters())
    # Fine-tuning leaves the backbone alone too.
    assert trained_names(finished.model) == trained
    Trainer(task, 2).fit(finished.model, 1)
    moved = {name for name, p in finished.model.named_parameters() if not torch.equal(p, before[name])}
    assert moved == trained
    # The trial is over where the model is rebuilt, so all that the user did not freeze trains again.
    again = rebuilt(finished, task.model(), x)
    assert trained_names(again) == {name for name, _ in finished.model.named_parameters()}
    with torch.no_grad():
        assert torch.equal(again.eval()(x), finished.model.eval()(x))


def trained_names(model: nn.Module) -> set[str]:
    return {name for name, p in model.named_parameters() if p.requires_grad}


@pytest.mark.parametrize("freeze", ["none", "backbone"])
@pytest.mark.parametrize("head_width", [0, 6])
def test_what_the_user_froze_stays_frozen(residual_task: ac.Task, freeze: Freeze, head_width: int) -> None:
    def make() -> nn.Module:
        model = residual_task.model()
        model.get_parameter("stem.weight").requires_grad_(False)
        return model

    task = replace(residual_task, model=make)
    config = Config(cuts=((0, 1),), freeze=freeze, head_width=head_width)
    session = Depth(config).start(make(), task)
    Trainer(task, 1).fit(session.model, 1, session)
    finished, x = session.finish(), task.example()
    own = {name for name, _ in finished.model.named_parameters() if name.startswith("translator_")}
    free = {name for name, _ in finished.model.named_parameters()} - {"stem.weight"}
    assert own
    assert trained_names(finished.model) == (own if freeze == "backbone" else free)
    again = rebuilt(finished, make(), x)
    assert trained_names(again) == free
    with torch.no_grad():
        assert torch.equal(again.eval()(x), finished.model.eval()(x))


def test_channels_are_removed_from_what_depth_leaves(residual_task: ac.Task) -> None:
    task = replace(residual_task, recipe=ac.Recipe(epochs=2))
    bridged = ac.compress(task.model(), task, Depth(Config(cuts=((0, 1),))))
    analysis = analyse(bridged.model.eval(), task.example())
    assert analysis.groups
    assert "translator_0_1.map" in {layer for group in analysis.groups for layer in group.layers}


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"cuts": ((2, 1),)}, "cuts must be disjoint, increasing pairs A < B but got ((2, 1),)."),
        ({"cuts": ((0, 2), (1, 3))}, "cuts must be disjoint"),
        ({"translator": "magic"}, "translator must be one of identity, linear"),
        ({"freeze": "all"}, "freeze must be 'none' or 'backbone' but got 'all'."),
        ({"freeze": "backbone", "translator": "identity"}, "freeze must be 'none' where nothing else"),
        ({"head_width": -1}, "head_width must be at least 0 but got -1."),
        ({"calibration": 1}, "calibration must be at least 2 but got 1."),
        ({"ridge": -1.0}, "ridge must be at least 0 but got -1.0."),
    ],
)
def test_settings_out_of_range_are_refused(options: dict[str, object], message: str) -> None:
    with pytest.raises(SettingsError, match=re.escape(message)):
        Config(**options)
