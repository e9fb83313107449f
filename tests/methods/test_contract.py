"""What every discovered compressor promises, whatever its method."""

from __future__ import annotations

import copy
from dataclasses import FrozenInstanceError, asdict, fields
from pathlib import Path
from typing import Any

import optuna
import pytest
import torch
from torch import nn

import autocompress as ac
from autocompress import plugins
from autocompress.checkpoint import export_program, load_program
from autocompress.graph import analyse
from autocompress.graph.costs import profile
from autocompress.graph.proof import relative_difference
from autocompress.methods.base import Compressor
from autocompress.surgery import materialize
from autocompress.surgery.edits import plan_from_json, plan_to_json
from autocompress.training.loop import Trainer
from autocompress.trial import CompressorHooks

METHODS = sorted(plugins.compressors())
MODELS = {
    "residual": None,
    "mlp": lambda: nn.Sequential(
        nn.Flatten(), nn.Linear(192, 24), nn.ReLU(), nn.Linear(24, 16), nn.Tanh(), nn.Linear(16, 5)
    ),
}


def test_methods_are_discovered_by_file_name() -> None:
    assert "alcn" in METHODS


@pytest.fixture(params=sorted(MODELS))
def task(request: pytest.FixtureRequest, residual_task: ac.Task) -> ac.Task:
    factory = MODELS[request.param]
    return residual_task if factory is None else ac.Task(**{**vars(residual_task), "model": factory})


def trained(method: str, task: ac.Task) -> tuple[Compressor[Any], Any, nn.Module]:
    torch.manual_seed(0)
    model = task.model()
    compressor = plugins.compressor(method)()
    state = compressor.attach(model, task)
    Trainer(task, 2).fit(state.model, 2, CompressorHooks(compressor, state))
    return compressor, state, model


@pytest.mark.parametrize("method", METHODS)
class TestEveryCompressor:
    def test_config_is_frozen_and_json_able(self, method: str, task: ac.Task) -> None:
        config = plugins.compressor(method).Config()
        with pytest.raises(FrozenInstanceError):
            setattr(config, fields(config)[0].name, None)
        assert type(config)(**asdict(config)) == config

    def test_search_space_proposes_its_config(self, method: str, task: ac.Task) -> None:
        model = task.model().eval()
        found = profile(model, task.example(), analyse(model, task.example()))
        suggest = plugins.search_space(method).suggest
        study = optuna.create_study(sampler=optuna.samplers.RandomSampler(seed=0))
        for _ in range(20):
            assert plugins.method_of(suggest(study.ask(), found)) == method

    def test_penalty_is_finite_and_training_changes_the_model(self, method: str, task: ac.Task) -> None:
        compressor = plugins.compressor(method)()
        state = compressor.attach(task.model(), task)
        before = {name: p.detach().clone() for name, p in state.model.named_parameters()}
        Trainer(task, 2).fit(state.model, 2, CompressorHooks(compressor, state))
        # A method may hold some parameters for a while, as published Autoplastic does α.
        moved = [not torch.equal(p, before[name]) for name, p in state.model.named_parameters()]
        assert sum(moved) > len(moved) / 2
        state.model(task.example())
        assert torch.isfinite(compressor.penalty(state))
        history = compressor.after_epoch(state, 1.0)
        assert all(isinstance(value, float) for value in history.values())

    def test_param_groups_hold_every_trained_parameter_once(self, method: str, task: ac.Task) -> None:
        model = task.model()
        compressor = plugins.compressor(method)()
        state = compressor.attach(model, task)
        listed = [id(p) for group in compressor.param_groups(state) for p in group.params]
        assert len(listed) == len(set(listed))
        assert set(listed) == {id(p) for p in state.model.parameters() if p.requires_grad}

    def test_released_model_has_its_own_classes_keys_and_no_hooks(self, method: str, task: ac.Task) -> None:
        compressor, state, _ = trained(method, task)
        released = compressor.release(state)
        plain = task.model()
        # A method may add modules, as translators are, but leaves none of its training-time machinery.
        assert set(plain.state_dict()) <= set(released.state_dict())
        layers = {name: m for name, m in plain.named_modules() if name and not list(m.children())}
        kept = dict(released.named_modules())
        assert all(type(kept[name]) is type(m) for name, m in layers.items() if list(m.parameters()))
        assert not any(m._forward_pre_hooks or m._forward_hooks for m in released.modules())
        assert all(p.requires_grad for p in released.parameters())

    def test_materialised_model_is_smaller_and_equals_the_masked_one(
        self, method: str, task: ac.Task, tmp_path: Path
    ) -> None:
        compressor, state, _ = trained(method, task)
        plan = compressor.plan(state)
        assert plan_from_json(plan_to_json(plan)) == plan
        released = compressor.release(state)
        done = materialize(released, plan, task.example())
        assert done.proof < 1e-4
        assert sum(p.numel() for p in done.model.parameters()) < sum(p.numel() for p in released.parameters())
        Trainer(task, 1).fit(done.model, 1)
        export_program(done.model, task.example(), tmp_path / "model.pt2")
        loaded = load_program(tmp_path / "model.pt2")
        for batch in (1, 3):
            x = torch.randn(batch, 3, 8, 8)
            with torch.no_grad():
                assert relative_difference(done.model.eval()(x), loaded(x)) < 1e-6

    def test_attached_model_can_be_copied_and_its_state_is_saved(self, method: str, task: ac.Task) -> None:
        _, state, _ = trained(method, task)
        x = task.example()
        twin = copy.deepcopy(state.model)
        with torch.no_grad():
            assert torch.equal(state.model.eval()(x), twin.eval()(x))
        assert set(twin.state_dict()) == set(state.model.state_dict())
