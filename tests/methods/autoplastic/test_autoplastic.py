"""Autoplastic: rules, what they remove, and that the compact model computes what the gated one does."""

from __future__ import annotations

import copy
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch
import torchvision.models as tv
from torch import nn

import autocompress as ac
from autocompress.errors import SettingsError, TrialError
from autocompress.graph import analyse
from autocompress.graph.bridging import bridge
from autocompress.graph.costs import count_params
from autocompress.graph.proof import relative_difference
from autocompress.methods.autoplastic import Autoplastic
from autocompress.methods.autoplastic.config import Config
from autocompress.methods.autoplastic.session import AutoplasticSession
from autocompress.methods.autoplastic.switches import Values
from autocompress.models.autoplastic import AutoplasticNet
from autocompress.models.mixing import Mixing, PooledAttention
from autocompress.models.resnet_cifar import ResNetCifar
from autocompress.surgery import DropBranches, KeepChannels, apply, check_equal
from autocompress.training.loop import Trainer


class Blocks(nn.Module):
    """Two mixing blocks with shortcuts around them."""

    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Conv2d(3, 8, 3, padding=1)
        self.first, self.second = (
            Mixing(nn.Conv2d(8, 8, 3, padding=1), PooledAttention(8, 8), 0.6) for _ in range(2)
        )
        self.head = nn.Linear(8, 5)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = torch.relu(self.stem(x))
        x = torch.relu(x + self.first(x))
        x = torch.relu(x + self.second(x))
        return self.head(x.mean((2, 3)))


@pytest.fixture
def task(residual_task: ac.Task) -> ac.Task:
    return replace(residual_task, model=Blocks)


def begun(model: nn.Module, task: ac.Task, **options: Any) -> AutoplasticSession:
    return Autoplastic(**options).start(model, task)


def set_gates(session: AutoplasticSession, **shut: list[int]) -> None:
    """Half-open gates, those that are named shut; α by "alpha0" and "alpha1"."""
    ends = (-20.0, 20.0) if session.config.rule == "gradient" else (0.0, 1.0)
    with torch.no_grad():
        for name in ("p", "c"):
            getattr(session.raw, name)[shut.get(name, [])] = ends[0]
        session.raw.alpha[shut.get("alpha0", [])] = ends[0]
        session.raw.alpha[shut.get("alpha1", [])] = ends[1]


def thresholded(session: AutoplasticSession, inputs: torch.Tensor) -> torch.Tensor:
    """What the gated model computes with its final gates."""
    session.hook.remove()
    session.switches.turn(session.final())
    with torch.no_grad():
        outputs: torch.Tensor = session.model.eval()(inputs)
    return outputs


def kept_units(session: AutoplasticSession) -> dict[str, list[int]]:
    """The units that stay of each group that loses some."""
    keep = session.switches.keep(session.final())
    return {
        name: units
        for name, units in keep.items()
        if len(units) < session.switches.analysis.group(name).width
    }


@pytest.mark.parametrize(
    ("make", "size", "rule"),
    [
        (lambda: ResNetCifar(3, 3, 5), 8, "gradient"),
        (lambda: ResNetCifar(3, 3, 5), 8, "published"),
        (lambda: tv.mobilenet_v2(num_classes=5, width_mult=0.5), 32, "gradient"),
    ],
    ids=["resnet20", "resnet20-published", "mobilenet_v2"],
)
def test_blocks_and_channels_that_are_shut_are_gone_and_outputs_stay(
    make: Callable[[], nn.Module], size: int, rule: Any, residual_task: ac.Task
) -> None:
    torch.manual_seed(0)
    images, targets = torch.randn(16, 3, size, size), torch.randint(0, 5, (16,))
    task = replace(residual_task, model=make, train=[(images, targets)], val=[(images, targets)], input=None)
    model = make()
    session = begun(model, task, rule=rule)
    Trainer(task, 1).fit(session.model, 1, session)
    set_gates(session, p=[1, 3], c=list(range(0, len(session.raw.c), 4)))
    branches, cut_groups = dict(session.switches.branches), kept_units(session)
    wanted = thresholded(session, images)
    finished = session.finish()
    with torch.no_grad():
        assert relative_difference(wanted, finished.model.eval()(images)) < 1e-5
    names = list(branches)
    dropped = [edit.gates for edit in finished.edits if isinstance(edit, DropBranches)]
    assert dropped == [(names[1], names[3])]
    assert len(cut_groups) > 5
    assert sum(isinstance(edit, KeepChannels) for edit in finished.edits) == 1
    assert count_params(finished.model) < 0.75 * count_params(make())
    kept = {name for name, _ in finished.model.named_modules()}
    for gone in (names[1], names[3]):
        assert not kept & set(branches[gone])
    assert not any("gate" in name for name in kept)
    rebuilt = apply(make(), finished.edits, task.example())
    rebuilt.load_state_dict(finished.model.state_dict())
    assert check_equal(rebuilt, finished.model, images, "rebuilding") < 1e-6


@pytest.mark.parametrize(
    ("end", "kept", "gone"), [("alpha0", "attention", "conv"), ("alpha1", "conv", "attention")]
)
def test_a_path_whose_share_is_zero_leaves_none_of_its_operators(
    end: str, kept: str, gone: str, task: ac.Task
) -> None:
    torch.manual_seed(0)
    session = begun(Blocks(), task)
    set_gates(session, **{end: [0, 1]})
    images = torch.randn(5, 3, 8, 8)
    wanted = thresholded(session, images)
    compact = session.finish().model
    with torch.no_grad():
        assert relative_difference(wanted, compact.eval()(images)) < 1e-5
    names = [name for name, _ in compact.named_parameters()]
    assert any(f".{kept}." in name for name in names)
    assert not any(f".{gone}." in name or "share" in name for name in names)
    program = torch.export.export(compact.eval(), (images,))
    operators = " ".join(str(node.target) for node in program.graph.nodes)
    assert ("softmax" in operators) == (kept == "attention")
    convolutions = operators.count("conv2d")
    assert convolutions == (3 if kept == "conv" else 1)


def test_shares_between_the_ends_are_folded_into_both_paths(task: ac.Task) -> None:
    torch.manual_seed(0)
    session = begun(Blocks(), task, alpha_init=0.3)
    images = torch.randn(5, 3, 8, 8)
    wanted = thresholded(session, images)
    released = session.release()
    with torch.no_grad():
        assert relative_difference(wanted, released.eval()(images)) < 1e-5
    assert not any("share" in name or "gate" in name for name, _ in released.named_modules())


def test_the_published_rule_moves_gates_once_an_epoch_as_its_equations_say(task: ac.Task) -> None:
    torch.manual_seed(0)
    session = begun(Blocks(), task, rule="published", stability="absolute", c_max=0.995)
    before = {n: p.detach().numpy().copy() for n, p in session.model.named_parameters() if p.dim() > 1}
    Trainer(task, 1).fit(session.model, 1, session)
    after = {n: p.detach().numpy() for n, p in session.model.named_parameters()}
    for gate, layers, trained_gate in zip(
        ("first", "second"), session.switches.branches.values(), session.raw.p, strict=True
    ):
        names = [f"{layer}.weight" for layer in layers if f"{layer}.weight" in before]
        assert any(name.startswith(gate) for name in names)
        s = np.exp(-np.sqrt(sum(((after[n] - before[n]) ** 2).sum() for n in names)))
        step = 0.005 * max(0.05, 1 - s) if s < 0.85 else -0.005 * max(0.05, s)
        assert trained_gate.item() == pytest.approx(0.9 + step, abs=1e-6)
    assert session.memory is not None
    for name, average in session.memory.averages.items():
        assert np.allclose(average.numpy(), 0.9 * before[name] + 0.1 * after[name], atol=1e-6)


def test_alpha_is_trained_while_its_block_is_unstable(task: ac.Task) -> None:
    torch.manual_seed(0)
    session = begun(Blocks(), task, rule="published", epsilon=0.0)
    Trainer(task, 1).fit(session.model, 1, session)
    assert session.memory is not None
    assert not session.memory.open.any()
    moved = session.raw.alpha.detach().clone()
    assert (moved != 0.6).all()


def test_momentum_does_not_move_alpha_in_a_stable_block(task: ac.Task) -> None:
    torch.manual_seed(0)
    session = begun(Blocks(), task, rule="published", epsilon=0.0)
    seen: list[list[float]] = []
    report = lambda entry: seen.append(session.raw.alpha.tolist())  # noqa: E731
    Trainer(task, 3, report=report).fit(session.model, 3, session)
    assert seen[0] != pytest.approx([0.6, 0.6], abs=1e-7)
    assert seen[1] == seen[2] == seen[0]


def test_a_greater_lambda_leaves_less(task: ac.Task) -> None:
    left = []
    for strength in (0.0, 10.0):
        torch.manual_seed(0)
        session = begun(Blocks(), task, lambda_arch=strength, gate_lr_scale=100.0)
        Trainer(task, 6).fit(session.model, 6, session)
        left.append(float((session.final().c > 0).float().mean()))
    assert left[1] < 0.8 * left[0]


def test_a_group_that_is_shut_keeps_its_most_open_unit_alive(task: ac.Task) -> None:
    torch.manual_seed(0)
    session = begun(Blocks(), task)
    set_gates(session, c=list(range(len(session.raw.c))))
    with torch.no_grad():
        session.raw.c[5] = -10.0
    kept = kept_units(session)
    assert kept[session.switches.analysis.groups[0].name] == [5]
    assert all(len(units) == 1 for units in kept.values())
    finished = session.finish()
    check_equal(finished.model, finished.expected, task.example(), "surgery")
    with torch.no_grad():
        first, second = finished.model.eval()(torch.randn(2, 3, 8, 8))
    assert not torch.allclose(first, second)


def test_the_first_of_the_most_open_units_of_each_group_stays_and_others_go_by_the_threshold(
    residual_task: ac.Task,
) -> None:
    session = begun(residual_task.model(), residual_task)
    groups = session.switches.analysis.groups
    assert len({group.width for group in groups}) > 1
    rng = np.random.default_rng(0)
    for least in (0.0, 0.4):
        # In tenths, so that several are the most open.
        c = (rng.integers(0, 5, len(session.raw.c)) / 10 + least).astype(np.float32)
        values = session.values()._replace(c=torch.from_numpy(c))
        hard = session.switches.hardened(values, 0.45, 0.1).c.detach().numpy()
        stays = c >= 0.45
        start = 0
        for group in groups:
            stays[start + c[start : start + group.width].argmax()] = True
            start += group.width
        assert np.array_equal(hard, np.where(stays, np.maximum(c, np.float32(0.45)), 0))
        opened = session.switches.hardened(values, 0.45, 0.1, opened=True).c.detach().numpy()
        assert np.array_equal(opened, stays)


@pytest.mark.parametrize("progress", [0.3, 0.8])
def test_the_penalty_is_of_the_present_gates_and_holds_no_graph_of_a_step_before(
    task: ac.Task, progress: float
) -> None:
    session = begun(Blocks(), task)
    session.progress = progress
    x = task.example()
    session.model(x)
    expected = session.switches.cost(session.values()) * min(1.0, 2 * progress)
    assert session.penalty().item() == pytest.approx(expected.item())
    # Also after a pass that is not trained on.
    with torch.no_grad():
        session.model(x)
    session.penalty().backward()
    assert all(gate.grad is not None for gate in session.raw)
    session.model(x)
    session.after_step(progress)
    copy.deepcopy(session.model)
    with torch.no_grad():
        session.raw.c.fill_(-20.0)
    assert session.penalty().item() < expected.item()


def test_a_branch_without_weights_counts_as_stable_under_the_published_rule(residual_task: ac.Task) -> None:
    class Pooled(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.stem, self.norm, self.head = nn.Conv2d(3, 8, 3), nn.BatchNorm2d(8), nn.Linear(8, 5)

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            x = self.stem(x)
            return self.head((x + nn.functional.avg_pool2d(self.norm(x), 3, 1, 1)).mean((2, 3)))

    session = begun(Pooled(), residual_task, rule="published")
    Trainer(residual_task, 1).fit(session.model, 1, session)
    assert session.raw.p.tolist() == pytest.approx([0.9 - 0.005])


def test_mixing_blocks_are_found_after_another_stage(task: ac.Task) -> None:
    model = Blocks().eval()
    bridged = bridge(model, analyse(model, task.example()), [])
    session = begun(bridged, task)
    assert list(session.switches.mixings) == ["first", "second"]
    plain = begun(Blocks(), task)
    assert torch.allclose(session.switches.costs.p, plain.switches.costs.p)


def test_gates_start_where_the_settings_say(task: ac.Task) -> None:
    session = begun(Blocks(), task, p_min=0.5, c_min=0.4, c_max=0.995, c_spread=0.0)
    with torch.no_grad():
        p, c, alpha = session.values()
    assert p.tolist() == pytest.approx([0.9] * 2)
    assert c.tolist() == pytest.approx([0.7] * len(c))
    assert alpha.tolist() == pytest.approx([0.6] * 2)


def test_a_gate_that_stays_does_not_hinder_a_second_time(residual_task: ac.Task) -> None:
    class Late(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.stem, self.conv, self.head = nn.Conv2d(3, 8, 3), nn.Conv2d(8, 8, 1), nn.Linear(8, 5)

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            x = self.stem(x)
            return self.head((x + torch.relu(self.conv(x))).mean((2, 3)))

    torch.manual_seed(0)
    session = begun(Late(), residual_task, rule="published")
    released = session.release()
    assert [name for name, _ in released.named_modules() if "gate" in name] == ["gate_add"]
    again = begun(released, residual_task)
    assert list(again.switches.branches) == ["gate_add_"]
    finished = again.finish()
    check_equal(finished.model, finished.expected, residual_task.example(), "surgery")


def test_attention_that_is_added_starts_with_little_share_and_trains(residual_task: ac.Task) -> None:
    torch.manual_seed(0)
    session = begun(residual_task.model(), residual_task, add_attention=True)
    assert list(session.switches.mixings) == ["branch"]
    assert session.switches.alphas().tolist() == pytest.approx([0.9])
    Trainer(residual_task, 1).fit(session.model, 1, session)
    finished = session.finish()
    check_equal(finished.model, finished.expected, residual_task.example(), "surgery")


def test_the_log_line_says_what_the_gates_are(task: ac.Task) -> None:
    session = begun(Blocks(), task, p_init=0.75)
    line = session.after_epoch(0.0)
    assert line["effective_layers"] == pytest.approx(1.5)
    assert line["alpha/first"] == pytest.approx(0.6, abs=1e-3)
    assert 0 < line["active_channels"] < 1
    assert 0 < line["pruned"] < 1


def test_the_paper_network_has_six_blocks_that_mix() -> None:
    model = AutoplasticNet(3, 10)
    assert sum(isinstance(module, Mixing) for module in model.modules()) == 6
    assert model(torch.randn(2, 3, 32, 32)).shape == (2, 10)


def test_a_mixing_block_is_the_weighted_sum_of_its_paths() -> None:
    torch.manual_seed(0)
    block = Mixing(nn.Conv2d(4, 6, 3, 2, 1), PooledAttention(4, 6, 2), 0.3)
    x = torch.randn(2, 4, 11, 11)
    expected = 0.3 * block.conv(x) + 0.7 * block.attention(x)
    assert torch.allclose(block(x), expected, atol=1e-6)
    assert sum(parameter is block.alpha for parameter in block.parameters()) == 1


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"rule": "hebb"}, "rule must be 'gradient' or 'published' but got 'hebb'"),
        ({"stability": "none"}, "stability must be 'relative' or 'absolute' but got 'none'"),
        ({"epsilon": 1.1}, r"epsilon must be in \[0, 1\] but got 1\.1"),
        ({"c_init": 0.2, "c_min": 0.3}, r"c_init must be from c_min = 0\.3 to c_max = 1\.0 but got 0\.2"),
        ({"p_min": 0.95}, r"p_min must be at most p_init = 0\.9 and below 1 but got 0\.95"),
        ({"p_init": 1.0}, r"p_init must be in \(0\.0, 1\.0\) where rule = 'gradient'.* but got 1\.0"),
        ({"c_init": 0.9, "c_max": 0.9}, r"c_init must be in \(0\.0, 0\.9\) where rule = 'gradient'"),
        ({"alpha_init": 0.0}, r"alpha_init must be in \(0\.0, 1\.0\) where rule = 'gradient'"),
        ({"alpha_threshold": 0.5}, r"alpha_threshold must be in \[0, 0\.5\) but got 0\.5"),
        ({"lambda_arch": -1.0}, r"lambda_arch must be at least 0 but got -1\.0"),
        ({"gate_lr_scale": 0.0}, r"gate_lr_scale must be positive but got 0\.0"),
    ],
)
def test_settings_out_of_range_are_refused(options: dict[str, Any], message: str) -> None:
    with pytest.raises(SettingsError, match=message):
        Config(**options)


@pytest.mark.parametrize("value", [0.201, 0.5, 0.99, 0.9995])
def test_gates_start_at_what_is_given(value: float, task: ac.Task) -> None:
    start = {"p_init": value, "c_init": value, "alpha_init": value}
    for options in ({"rule": "gradient", "p_min": 0.2, "c_min": 0.2}, {"rule": "published"}):
        session = begun(Blocks(), task, c_spread=0.0, **start, **options)
        for gates in session.values():
            assert gates.tolist() == pytest.approx([value] * len(gates), rel=1e-5)


def test_the_published_rule_starts_at_either_end(task: ac.Task) -> None:
    session = begun(Blocks(), task, rule="published", p_init=1.0, c_init=0.0, alpha_init=0.0, c_max=0.9)
    values = session.values()
    assert [set(gates.tolist()) for gates in values] == [{1.0}, {0.0}, {0.0}]


def test_a_block_whose_share_no_logit_stands_for_is_refused(task: ac.Task) -> None:
    model = Blocks()
    with torch.no_grad():
        model.first.alpha.fill_(1.0)
    with pytest.raises(TrialError, match=r"α of mixing block 'first' must be in \(0, 1\) .* but is 1\.0"):
        begun(model, task)


def test_values_are_between_their_floors_and_ceilings(task: ac.Task) -> None:
    session = begun(Blocks(), task, p_min=0.2, c_min=0.3, c_max=0.9)
    set_gates(session, p=[0], c=[0])
    with torch.no_grad():
        values: Values = session.values()
    assert values.p[0] == pytest.approx(0.2, abs=1e-4)
    assert values.c.min() == pytest.approx(0.3, abs=1e-4)
    assert values.c.max() <= 0.9
