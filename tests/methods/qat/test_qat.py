"""Training sees the numbers of the int8 file, and leaves a plain model in floats that the file is made of."""

from __future__ import annotations

import copy
import math
from dataclasses import replace
from pathlib import Path
from typing import Any

import onnx
import pytest
import torch
from torch import Tensor, nn

import autocompress as ac
from autocompress.checkpoint import export_onnx, load_program
from autocompress.checkpoint.quantize import quantize_onnx
from autocompress.errors import SettingsError, TrialError
from autocompress.graph import analyse
from autocompress.graph.costs import profile
from autocompress.methods.qat import rounding
from autocompress.methods.qat import session as qat_session
from autocompress.methods.qat.layers import RoundInputs, Straight, rounded_weights
from autocompress.methods.qat.rounding import round_activations
from autocompress.methods.qat.session import QatSession
from autocompress.task.limits import Limits, settle
from autocompress.training.loop import Trainer
from tests.graph.zoo import Shared


def session(task: ac.Task, model: nn.Module, **settings: Any) -> QatSession:
    return ac.Qat(**settings).start(model, task)


def most_levels(weight: Tensor) -> int:
    """Of the outputs of a weight, the most different numbers that one has."""
    return max(len(row.unique()) for row in weight.detach().flatten(1))


def ranges(training: QatSession) -> list[tuple[float, float]]:
    return [(float(hook.low), float(hook.high)) for hook in training.hooks if hook.low is not None]


def codes_of(path: Path) -> dict[tuple[int, ...], Tensor]:
    """Codes of a file's weights, by their sorted sizes."""
    tensors = [t for t in onnx.load(path).graph.initializer if t.data_type == onnx.TensorProto.INT8]
    arrays = [torch.tensor(onnx.numpy_helper.to_array(t)) for t in tensors if len(t.dims) > 1]
    return {tuple(sorted(array.shape)): array for array in arrays}


def test_the_file_has_the_codes_that_were_trained_at(
    residual: nn.Module, residual_task: ac.Task, images: Tensor, tmp_path: Path
) -> None:
    residual.norm.weight.data[::2] *= -1
    training = session(residual_task, residual, averaging=0.1)
    Trainer(residual_task, 2).fit(training.model, 2, training)
    trained_at = {layer: residual.get_parameter(f"{layer}.weight").detach().clone() for layer in LAYERS}
    model = training.finish().model.eval()
    path = tmp_path / "model.onnx"
    export_onnx(model, images, path)
    quantize_onnx(path, [images])
    codes = codes_of(path)
    for layer, weight in trained_at.items():
        scale = weight.abs().flatten(1).amax(1).view(-1, *[1] * (weight.dim() - 1)) / 64
        expected = (weight / scale).round().to(torch.int8)
        if layer == "stem":  # whose batch norm is folded into it
            expected *= model.norm.weight.sign().to(torch.int8).view(-1, 1, 1, 1)
        stored = codes[tuple(sorted(weight.shape))]
        stored = stored if stored.shape == weight.shape else stored.T
        # Folding rounds in another order, so that what is half-way may go the other way.
        assert (stored != expected).float().mean() < 0.005, layer


LAYERS = ("stem", "branch", "depthwise", "side", "head")


def test_the_file_computes_what_the_rounded_model_does_and_not_the_float_one(tmp_path: Path) -> None:
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(12, 40), nn.ReLU(), nn.Linear(40, 40), nn.ReLU(), nn.Linear(40, 5))
    x, y = torch.randn(64, 12), torch.randint(0, 5, (64,))
    task = ac.Task(model=lambda: model, train=[(x, y)], val=[(x, y)], recipe=ac.Recipe(epochs=20))
    training = session(task, model)
    Trainer(task, 20).fit(model, 20, training)
    floats: Any = copy.deepcopy(training).finish().model
    with torch.no_grad():
        given = x
        for layer, hook in zip(floats[::2], training.hooks, strict=True):
            # The file's ranges, as those of training make the same errors at other places.
            hook.low, hook.high = torch.aminmax(given)
            given = layer(given).relu()
        in_floats = floats(x)
        # A file rounds its outputs too.
        rounded = round_activations(model.eval()(x), *torch.aminmax(in_floats))
        path = tmp_path / "model.onnx"
        export_onnx(floats, x[:2], path)
        quantize_onnx(path, [x])
        of_file = load_program(path)(x)
        # Another order of sums moves what is half-way to the next level.
        assert torch.isclose(of_file, rounded, atol=1e-5).float().mean() > 0.95
        assert torch.isclose(of_file, in_floats, atol=1e-5).float().mean() < 0.1


def test_it_learns_what_rounding_loses(monkeypatch: pytest.MonkeyPatch) -> None:
    """With so few levels that rounding costs much: three of a weight, eight of an activation."""
    monkeypatch.setattr(qat_session, "COMPUTED_CODES", 1)
    monkeypatch.setattr(rounding, "_ACTIVATION_CODES", 7)
    torch.manual_seed(0)
    x = torch.randn(256, 8)
    y = (x[:, :4].sum(1) > x[:, 4:].sum(1)).long()
    rows = [(x[i : i + 32], y[i : i + 32]) for i in range(0, 256, 32)]
    network = nn.Sequential(nn.Linear(8, 32), nn.ReLU(), nn.Linear(32, 2))
    task = ac.Task(model=lambda: network, train=rows, val=rows, recipe=ac.Recipe(epochs=10, lr=0.02))

    @torch.no_grad()
    def loss(training: QatSession) -> float:
        return float(nn.functional.cross_entropy(training.model.eval()(x), y))

    plain = copy.deepcopy(network)
    Trainer(task, 10).fit(plain, 10)
    aware = session(task, network)
    Trainer(task, 10).fit(network, 10, aware)
    assert loss(aware) < 0.7 * loss(session(task, plain))


def test_finishing_gives_the_numbers_back_and_takes_the_hooks_off(
    residual: nn.Module, residual_task: ac.Task, images: Tensor
) -> None:
    residual.branch.requires_grad_(False)
    before = copy.deepcopy(residual.state_dict())
    training = session(residual_task, residual)
    assert residual.state_dict().keys() == before.keys()
    assert most_levels(residual.head.weight) < most_levels(before["head.weight"])
    assert not torch.equal(residual.branch.weight, before["branch.weight"])  # frozen, but int8 in the file
    training.model(images)
    finished = training.finish()
    assert finished.edits == ()
    assert finished.expected is finished.model is residual
    assert all(torch.equal(value, before[name]) for name, value in residual.state_dict().items())
    assert not any(module._forward_pre_hooks for module in residual.modules())


def test_small_steps_add_up_until_a_weight_has_another_code() -> None:
    weight = nn.Parameter(torch.tensor([[1.0, 0.5], [0.0, 0.0]]))
    straight = Straight(weight, 0, 127)
    level = weight.detach()[0, 1].clone()
    assert level == pytest.approx(64 / 127)
    for _ in range(3):
        with torch.no_grad():
            weight[0, 1] -= 0.001
        straight.follow()
    assert weight.detach()[0, 1] == pytest.approx(63 / 127)
    straight.release()
    assert torch.allclose(weight, torch.tensor([[1.0, 0.497], [0.0, 0.0]]))


def test_ranges_are_moving_averages_until_they_freeze_and_round_from_the_start_on(
    residual: nn.Module, residual_task: ac.Task, images: Tensor
) -> None:
    training = session(residual_task, residual, start=0.5, freeze=0.75, averaging=0.25)
    hook = training.hooks[0]  # of `stem`, which gets the images themselves
    model = training.model.train()
    assert hook(residual.stem, (images,), {}) is None
    low, high = float(images.min()), float(images.max())
    assert ranges(training)[0] == pytest.approx((low, high))
    model(2 * images)
    assert ranges(training)[0] == pytest.approx((1.25 * low, 1.25 * high))
    model.eval()(9 * images)
    training.after_step(0.5)
    model.train()
    ((given,), _) = hook(residual.stem, (images,), {})
    assert len(given.unique()) <= 256
    seen = ranges(training)[0]
    assert seen[1] == pytest.approx(0.75 * 1.25 * high + 0.25 * high)
    training.after_step(0.75)
    model(9 * images)
    assert ranges(training)[0] == seen


def test_weights_alone_are_rounded_without_hooks(residual: nn.Module, residual_task: ac.Task) -> None:
    training = session(residual_task, residual, activations=False)
    assert training.hooks == training.handles == []
    assert most_levels(residual.head.weight) <= 255


def test_what_is_excluded_stays_in_floats_and_its_inputs_too(
    residual: nn.Module, residual_task: ac.Task
) -> None:
    limits = settle(residual, ["side", "head.weight"])
    before = {name: residual.get_parameter(f"{name}.weight").detach().clone() for name in LAYERS}
    session(replace(residual_task, limits=limits), residual)
    rounded = {name for name in LAYERS if not torch.equal(before[name], residual.get_submodule(name).weight)}
    assert rounded == {"stem", "branch", "depthwise"}
    assert {name for name in LAYERS if residual.get_submodule(name)._forward_pre_hooks} == rounded


def test_attention_rounds_its_projections_and_keeps_one_input_one() -> None:
    torch.manual_seed(0)
    attention = nn.MultiheadAttention(8, 2, batch_first=True)
    assert rounded_weights(attention, Limits()) == {
        attention.in_proj_weight: 0,
        attention.out_proj.weight: 0,
    }
    hook, x = RoundInputs(0.1), torch.randn(2, 3, 8)
    (query, key, value), named = hook(attention, (x, x, x), {"need_weights": False})
    assert query is key is value
    assert named == {"need_weights": False}
    _, named = hook(attention, (), {"query": x, "key": x, "value": 2 * x, "attn_mask": None})
    assert named["query"] is named["key"]
    assert named["value"] is not named["key"]
    assert named["attn_mask"] is None


def test_inputs_without_rows_have_no_range() -> None:
    layer, hook = nn.Linear(4, 2), RoundInputs(0.1)
    assert hook(layer, (torch.empty(0, 4),), {}) is None
    hook(layer, (torch.ones(3, 4),), {})
    ((given,), _) = hook(layer, (torch.empty(0, 4),), {})
    assert given.shape == (0, 4)
    assert (hook.low, hook.high) == (1, 1)


def test_shared_layers_are_rounded_once_and_stay_shared() -> None:
    model = Shared()
    weights = rounded_weights(model, Limits())
    unique = {p for name, p in model.named_parameters() if name.endswith("weight") and p.dim() > 1}
    assert 0 < len(weights) <= len(unique)
    assert len({id(weight) for weight in weights}) == len(weights)


@pytest.mark.parametrize(("setting", "value"), [("start", 1.5), ("freeze", -0.1), ("averaging", 0.0)])
def test_settings_out_of_range_are_refused(setting: str, value: float) -> None:
    with pytest.raises(SettingsError, match=rf"^{setting} must be in .* but got {value}\.$"):
        ac.Qat(**{setting: value})


class Word(nn.Module):
    """A model of which no layer is computed in int8."""

    def __init__(self) -> None:
        super().__init__()
        self.rows = nn.GRU(24, 5, batch_first=True)

    def forward(self, x: Tensor) -> Tensor:
        return self.rows(x.flatten(1, 2).mT)[0][:, -1]


def test_a_model_without_a_layer_that_int8_computes_is_refused(
    residual_task: ac.Task, images: Tensor
) -> None:
    model = Word().eval()
    reason = "the model has no convolution and no linear layer"
    assert ac.Qat.unsupported(profile(model, images, analyse(model, images))) == reason
    with pytest.raises(TrialError, match=reason):
        session(residual_task, model)


def test_it_trains_to_the_end_of_a_trial_after_what_makes_the_model_smaller(residual_task: ac.Task) -> None:
    torch.manual_seed(0)
    done = ac.compress(residual_task.model(), residual_task, [ac.Alcn(), ac.Qat(averaging=0.5)])
    assert len(done.history) == residual_task.recipe.epochs
    assert done.edits
    assert done.difference < 1e-4
    assert all(map(math.isfinite, (entry["loss"] for entry in done.history)))
