"""ALCN's numbers against NumPy, and what annealing leads to."""

from __future__ import annotations

import math
import re
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

import autocompress as ac
from autocompress.errors import SettingsError, TrialError
from autocompress.methods.alcn import Alcn, Config
from autocompress.methods.alcn.session import AlcnSession
from autocompress.methods.alcn.survival import Gates, kept_units, quantile, survival_scores
from autocompress.surgery import KeepChannels, check_equal
from autocompress.training.loop import Trainer
from tests.references import alcn as reference


@pytest.mark.parametrize("q", [0.0, 0.1, 0.37, 0.5, 0.99, 1.0])
@pytest.mark.parametrize("size", [1, 2, 7, 64])
def test_quantile_equals_numpys(q: float, size: int) -> None:
    values = torch.randn(size, generator=torch.Generator().manual_seed(size))
    value = quantile(values, torch.tensor(q)).item()
    assert value == pytest.approx(np.quantile(values.numpy(), q), abs=1e-5)


def test_quantile_is_differentiable_in_its_level() -> None:
    values = torch.tensor([0.0, 1.0, 4.0])
    q = torch.tensor(0.75, requires_grad=True)
    quantile(values, q).backward()
    assert q.grad is not None
    assert q.grad.item() == pytest.approx((4.0 - 1.0) * 2)


@pytest.mark.parametrize("kind", ["quantile", "median"])
@pytest.mark.parametrize("temperature", [1.0, 0.1])
@pytest.mark.parametrize("ratio", [0.2, 0.5, 0.8])
def test_survival_equals_the_numpy_reference(kind: str, temperature: float, ratio: float) -> None:
    h = torch.rand(33, generator=torch.Generator().manual_seed(3), dtype=torch.float64)
    scores = survival_scores(
        h, torch.tensor(ratio, dtype=torch.float64), torch.tensor(1.7), temperature, kind
    )
    expected = reference.survival(h.numpy(), ratio, 1.7, temperature, kind)
    assert np.allclose(scores.numpy(), expected, atol=1e-6)


@pytest.mark.parametrize("kind", ["quantile", "median"])
@pytest.mark.parametrize("round_to", [1, 4])
def test_groups_of_any_widths_are_those_of_the_numpy_reference(kind: str, round_to: int) -> None:
    widths, ratios = [9, 4, 9, 2, 24, 4], np.array([0.2, 0.9, 0.55, 0.6, 0.3, 0.3])
    gates = Gates(widths, torch.from_numpy(ratios), 0.05, round_to)
    h = torch.rand(sum(widths), generator=torch.Generator().manual_seed(3))
    survival = gates.survival(h, 0.5, kind)
    means = gates.means(survival)
    (means.sum() + 0 * gates.ratio.sum()).backward()
    assert gates.ratio_logit.grad is not None
    per_group = zip(
        widths,
        ratios,
        (part.double().numpy() for part in torch.split(h, widths)),
        (part.numpy() for part in torch.split(survival.detach(), widths)),
        means.tolist(),
        gates.ratio_logit.grad.tolist(),
        strict=True,
    )
    for width, ratio, scores, kept, mean, gradient in per_group:
        used, step = ratio, 1e-6
        if round_to > 1:
            allowed = [*range(round_to, width, round_to), width]
            used = min(allowed, key=lambda units: abs(units - np.ceil(ratio * width))) / width
        if used == 1:
            expected, slope = np.ones(width), 1.0
        else:
            expected = reference.survival(scores, used, 1.0, 0.5, kind)
            near = [reference.survival(scores, used + d, 1.0, 0.5, kind).mean() for d in (-step, step)]
            slope = (near[1] - near[0]) / (2 * step)
        assert np.allclose(kept, expected, atol=1e-5)
        assert mean == pytest.approx(expected.mean(), rel=1e-5)
        # Of the group's own ratio, straight through its rounding.
        assert gradient == pytest.approx(slope * (ratio - 0.05) * (1 - ratio) / 0.95, rel=1e-3, abs=1e-6)


@pytest.mark.parametrize("ratio", [0.1, 0.3, 0.5, 0.9])
def test_mean_survival_can_meet_any_ratio_where_the_median_cannot(ratio: float) -> None:
    h = torch.randn(1000, generator=torch.Generator().manual_seed(0)).abs()
    means = {
        kind: survival_scores(h, torch.tensor(ratio), torch.tensor(1.0), 0.001, kind).mean().item()
        for kind in ("quantile", "median")
    }
    assert means["quantile"] == pytest.approx(ratio, abs=0.01)
    assert means["median"] == pytest.approx(0.5, abs=0.01)


def started(config: Config, task: ac.Task) -> AlcnSession:
    torch.manual_seed(0)
    return Alcn(config).start(task.model(), task)


def test_penalty_equals_the_numpy_reference(residual_task: ac.Task) -> None:
    config = Config(lambda_sparse=0.3, lambda_ratio=0.7, cost="macs")
    session = started(config, residual_task)
    session.model(residual_task.example())
    expected = reference.loss(
        [s.detach().numpy() for s in torch.split(session.survival, session.gates.widths)],
        session.gates.ratio.tolist(),
        session.weights.tolist(),
        0.3,
        0.7,
    )
    assert session.penalty().item() == pytest.approx(expected, rel=1e-5)


def test_a_model_without_groups_is_refused(residual_task: ac.Task) -> None:
    with pytest.raises(TrialError, match="no channel group of the model can be removed"):
        Alcn().start(nn.Sequential(nn.Flatten(), nn.Linear(192, 5)), residual_task)


def test_gates_start_open_and_end_at_their_survival(residual_task: ac.Task) -> None:
    session = started(Config(), residual_task)
    x = residual_task.example()
    plain = residual_task.model()
    own = {k: v for k, v in session.model.state_dict().items() if not k.startswith("alcn_")}
    plain.load_state_dict(own)
    with torch.no_grad():
        assert torch.allclose(session.model.eval()(x), plain.eval()(x), atol=1e-6)
    session.after_step(1.0)
    session.model(x)
    everything = torch.cat([session.survival, torch.ones(1)])
    for site in session.sites:
        for name, (_, index) in site.gated.items():
            gate = site.scope._gates[f"{site.name}.{name}"][-1]
            assert torch.allclose(gate, everything[index], atol=1e-6)


def test_annealed_gates_are_nearly_hard_and_keep_the_learned_share(residual_task: ac.Task) -> None:
    session = started(Config(initial_ratio=0.5), residual_task)
    Trainer(residual_task, 3).fit(session.model, 3, session)
    keep = session.keep()
    parts = torch.split(session.survival, session.gates.widths)
    for group, survival, ratio in zip(
        session.analysis.groups, parts, session.gates.ratio.tolist(), strict=True
    ):
        count = math.ceil(round(ratio * group.width, 3))
        assert len(keep[group.name]) == count
        kept = torch.zeros(group.width, dtype=torch.bool).index_fill_(0, torch.tensor(keep[group.name]), True)
        assert survival[kept].min() >= survival[~kept].max()
        assert ((survival < 0.1) | (survival > 0.9)).float().mean() >= 0.5


@pytest.mark.parametrize(
    ("ratio", "width", "round_to", "expected"),
    [
        (0.5, 64, 1, 32),
        (0.501, 64, 1, 33),
        (0.6, 64, 16, 32),
        (0.66, 64, 16, 48),
        (0.9, 20, 8, 16),
        (0.95, 20, 8, 20),
        (0.01, 64, 16, 16),
        (0.01, 12, 16, 12),
        (1.0, 64, 16, 64),
    ],
)
def test_kept_units_are_the_nearest_multiple(ratio: float, width: int, round_to: int, expected: int) -> None:
    assert kept_units(torch.tensor([ratio, 1.0]), width, round_to).tolist() == [expected, width]


@pytest.mark.parametrize("ratio", [0.3, 0.55, 0.9])
def test_rounded_gates_end_open_for_as_many_units_as_are_kept(ratio: float) -> None:
    gates = Gates([24], torch.tensor([ratio]), 0.05, round_to=8)
    h = torch.randn(24, generator=torch.Generator().manual_seed(1)).abs()
    survival = gates.survival(h, 1e-3, "quantile")
    assert int((survival > 0.9).sum()) == int(kept_units(torch.tensor(ratio), 24, 8))
    assert int(((survival > 0.1) & (survival <= 0.9)).sum()) == 0
    gates.survival(h, 1.0, "quantile").mean().backward()
    assert gates.ratio_logit.grad is not None
    assert gates.ratio_logit.grad.item() > 0


def test_widths_are_rounded_as_asked(residual_task: ac.Task) -> None:
    session = started(Config(initial_ratio=0.4, round_to=4), residual_task)
    Trainer(residual_task, 2).fit(session.model, 2, session)
    keep = session.keep()
    assert {name for name, units in keep.items() if len(units) == 4} == {"stem", "side"}
    smaller: Any = session.finish().model
    assert (smaller.stem.out_channels, smaller.side.out_channels) == (4, 4)


def test_release_folds_the_gates_into_the_weights(residual_task: ac.Task) -> None:
    session = started(Config(), residual_task)
    Trainer(residual_task, 1).fit(session.model, 1, session)
    x = residual_task.example()
    with torch.no_grad():
        gated = session.model.eval()(x)
        released = session.release().eval()
        assert torch.allclose(released(x), gated, atol=1e-5)


def test_finished_model_equals_the_released_one_without_the_units_that_are_shut(
    residual_task: ac.Task,
) -> None:
    session = started(Config(), residual_task)
    Trainer(residual_task, 1).fit(session.model, 1, session)
    keep = session.keep()
    finished = session.finish()
    assert check_equal(finished.model, finished.expected, residual_task.example(), "surgery") < 1e-5
    smaller: Any = finished.model
    assert smaller.stem.out_channels == len(keep["stem"])
    assert smaller.side.out_channels == len(keep["side"])


def test_lambda_sparse_drives_ratios_down(residual_task: ac.Task) -> None:
    ratios = []
    for weight in (0.0, 5.0):
        session = started(Config(lambda_sparse=weight, gate_lr_scale=30), residual_task)
        Trainer(residual_task, 4).fit(session.model, 4, session)
        ratios.append(session.gates.ratio.mean().item())
    assert ratios[1] < ratios[0] - 0.02


def test_ratios_of_single_groups_stand_before_the_others_common_one(residual_task: ac.Task) -> None:
    session = started(Config(initial_ratio=0.5, ratios={"side": 0.8}), residual_task)
    names = [group.name for group in session.analysis.groups]
    expected = [0.8 if name == "side" else 0.5 for name in names]
    assert session.gates.ratio.tolist() == pytest.approx(expected, abs=1e-5)


def test_ratios_of_groups_that_are_not_there_are_refused(residual_task: ac.Task) -> None:
    message = r"ratios must name channel groups of the model but got 'nowhere' \(it has .*'side'.*\)"
    with pytest.raises(TrialError, match=message):
        started(Config(ratios={"nowhere": 0.8}), residual_task)


def test_ratio_slope_spreads_initial_ratios_from_first_to_last_group(residual_task: ac.Task) -> None:
    session = started(Config(initial_ratio=0.5, ratio_slope=0.4), residual_task)
    assert session.gates.ratio.tolist() == pytest.approx([0.3, 0.7])


@pytest.mark.parametrize("ratio", [0.0500001, 0.06, 0.5, 0.98, 0.999999])
def test_ratios_start_at_what_is_given(ratio: float, residual_task: ac.Task) -> None:
    session = started(Config(initial_ratio=ratio), residual_task)
    assert session.gates.ratio.tolist() == pytest.approx([ratio] * len(session.gates.ratio), rel=1e-6)


def test_models_without_removable_channels_are_unsupported() -> None:
    assert Alcn.unsupported(ac.ModelProfile(10, 10, ())) == "no channel group of the model can be removed"


class Unaffine(nn.Module):
    """A norm without parameters cannot carry a gate; the convolution must."""

    def __init__(self) -> None:
        super().__init__()
        self.conv = nn.Conv2d(3, 8, 3)
        self.norm = nn.BatchNorm2d(8, affine=False)
        self.head = nn.Linear(8, 5)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(torch.relu(self.norm(self.conv(x))).mean((2, 3)))


class RawParameters(nn.Module):
    """One module owns the parameters of two groups of different widths."""

    def __init__(self) -> None:
        super().__init__()
        self.w1 = nn.Parameter(torch.randn(12, 192) / 14)
        self.w2 = nn.Parameter(torch.randn(20, 12) / 3)
        self.w3 = nn.Parameter(torch.randn(5, 20) / 4)

    def forward(self, x: Tensor) -> Tensor:
        x = torch.relu(F.linear(x.flatten(1), self.w1))
        return F.linear(torch.relu(F.linear(x, self.w2)), self.w3)


class FunctionalWeight(nn.Module):
    """The layer's own forward is never called, so gates there would do nothing."""

    def __init__(self) -> None:
        super().__init__()
        self.a = nn.Linear(192, 12)
        self.head = nn.Linear(12, 5)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(torch.relu(F.linear(x.flatten(1), self.a.weight)))


@pytest.mark.parametrize("model", [Unaffine, RawParameters, FunctionalWeight])
def test_unusual_layers_are_gated_released_and_removed_exactly(
    model: type[nn.Module], residual_task: ac.Task
) -> None:
    task = replace(residual_task, model=model)
    torch.manual_seed(0)
    done = ac.compress(model(), task, Alcn(initial_ratio=0.3))
    assert done.difference < 1e-4
    assert sum(p.numel() for p in done.model.parameters()) < sum(p.numel() for p in model().parameters())


def test_calibration_sees_the_ungated_model(residual_task: ac.Task) -> None:
    session = started(Config(), residual_task)
    open_rms = [rms.clone() for rms in session.input_rms]
    session.after_step(0.4)
    session.model.eval()(residual_task.example())
    session.after_epoch(0.4)
    assert all(torch.allclose(a, b, rtol=1e-4) for a, b in zip(open_rms, session.input_rms, strict=True))


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"initial_ratio": 1.0}, "initial_ratio must be in (0.05, 1) but got 1.0."),
        ({"min_ratio": 1.0}, "min_ratio must be in [0, 1) but got 1.0."),
        ({"lambda_sparse": -1}, "lambda_sparse must be at least 0 but got -1."),
        ({"lambda_ratio": float("nan")}, "lambda_ratio must be at least 0 but got nan."),
        ({"reference": "mean"}, "reference must be 'quantile' or 'median' but got 'mean'."),
        ({"cost": "flops"}, "cost must be 'uniform', 'macs' or 'params' but got 'flops'."),
        ({"final_temperature": 0.0}, "final_temperature must be in (0, 1] but got 0.0."),
        ({"ramp": 1.0}, "ramp must be in [0, 1) but got 1.0."),
        ({"gate_lr_scale": 0.0}, "gate_lr_scale must be positive but got 0.0."),
        (
            {"ratios": {"a": 0.5, "b": 1.0}},
            "ratios must be in (0.05, 1) but got 1.0 for group 'b'.",
        ),
        (
            {"initial_ratio": 0.9, "ratio_slope": 0.2},
            "ratio_slope must leave each ratio in (0.05, 1), so be in (-0.2, 0.2) "
            "where initial_ratio = 0.9, but got 0.2.",
        ),
    ],
)
def test_config_refuses_values_out_of_range(options: dict[str, object], message: str) -> None:
    with pytest.raises(SettingsError, match=f"^{re.escape(message)}$"):
        Config(**options)


def test_compress_alone_returns_a_small_exact_model(residual_task: ac.Task) -> None:
    model = residual_task.model()
    before = sum(p.numel() for p in model.parameters())
    done = ac.compress(model, residual_task, Alcn(initial_ratio=0.3))
    assert sum(p.numel() for p in done.model.parameters()) < 0.7 * before
    assert done.difference < 1e-4
    assert [entry["epoch"] for entry in done.history] == [1.0, 2.0]
    assert all(isinstance(edit, KeepChannels) for edit in done.edits)
    touched = {kept.tensor.partition(".")[0] for edit in done.edits for kept in edit.kept}
    assert touched == {"stem", "norm", "branch", "depthwise", "side", "head"}
    assert isinstance(done.model, nn.Module)
