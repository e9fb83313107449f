"""What every discovered method promises, whatever it is, on models of every kind."""

from __future__ import annotations

import copy
import json
import subprocess
import sys
from collections.abc import Callable, Iterator
from dataclasses import FrozenInstanceError, asdict, fields
from pathlib import Path
from typing import Any

import optuna
import pytest
import torch
from torch import Tensor, nn

import autocompress as ac
from autocompress import plugins
from autocompress.checkpoint import export_program, load_program
from autocompress.graph import analyse
from autocompress.graph.costs import profile
from autocompress.graph.proof import relative_difference
from autocompress.methods.base import Method, Session
from autocompress.surgery import apply, check_equal, edits_from_json
from autocompress.training.loop import Trainer
from tests.methods.users import USERS, configured, probe

METHODS = sorted(plugins.compressors())
# Changes the numbers of a model alone.
SAME_STRUCTURE = {"qat"}
# Every method on models of every kind; of those that leave the structure as it is, a few say as much.
PAIRS = [
    (method, name)
    for method in METHODS
    for name in sorted(USERS)
    if method not in SAME_STRUCTURE or name in ("encoder", "residual", "tied")
]
# A GPU too where there is one; tests/devices does without.
DEVICES = [
    "cpu",
    pytest.param("cuda", marks=pytest.mark.skipif(not torch.cuda.is_available(), reason="there is no GPU")),
]
MODELS = {
    "residual": None,
    "mlp": lambda: nn.Sequential(
        nn.Flatten(), nn.Linear(192, 24), nn.ReLU(), nn.Linear(24, 16), nn.Tanh(), nn.Linear(16, 5)
    ),
}


def test_methods_are_discovered_by_name() -> None:
    assert {"alcn", "alds", "autoplastic", "depth", "lc", "qat"} <= set(METHODS)


@pytest.fixture(params=sorted(MODELS))
def task(request: pytest.FixtureRequest, residual_task: ac.Task) -> ac.Task:
    factory = MODELS[request.param]
    return residual_task if factory is None else ac.Task(**{**vars(residual_task), "model": factory})


def trained(method: str, task: ac.Task, device: str = "cpu") -> Session:
    torch.manual_seed(0)
    session = plugins.compressor(method)().start(task.model().to(device), task)
    Trainer(task, 2).fit(session.model, 2, session)
    return session


@pytest.mark.parametrize("method", METHODS)
class TestEveryMethod:
    def test_config_is_frozen_and_json_able(self, method: str, task: ac.Task) -> None:
        config = plugins.compressor(method).Config()
        with pytest.raises(FrozenInstanceError):
            setattr(config, fields(config)[0].name, None)
        assert type(config)(**asdict(config)) == config

    def test_search_space_proposes_its_config(self, method: str, task: ac.Task) -> None:
        model = task.model().eval()
        described = profile(model, task.example(), analyse(model, task.example()))
        suggest = plugins.search_space(method).suggest
        study = optuna.create_study(sampler=optuna.samplers.RandomSampler(seed=0))
        for _ in range(20):
            assert plugins.method_of(suggest(study.ask(), described)) == method

    @pytest.mark.parametrize("device", DEVICES)
    def test_penalty_is_finite_and_training_changes_the_model(
        self, method: str, task: ac.Task, device: str
    ) -> None:
        session = plugins.compressor(method)().start(task.model().to(device), task)
        before = {name: p.detach().clone() for name, p in session.model.named_parameters()}
        Trainer(task, 2).fit(session.model, 2, session)
        # A method may hold some parameters for a while, as published Autoplastic does α.
        moved = [not torch.equal(p, before[name]) for name, p in session.model.named_parameters()]
        assert sum(moved) > len(moved) / 2
        session.model(task.example().to(device))
        assert torch.isfinite(session.penalty())
        history = session.after_epoch(1.0)
        assert all(isinstance(value, float) for value in history.values())

    def test_param_groups_hold_every_trained_parameter_once(self, method: str, task: ac.Task) -> None:
        session = plugins.compressor(method)().start(task.model(), task)
        listed = [id(p) for group in session.param_groups() for p in group.params]
        assert len(listed) == len(set(listed))
        assert set(listed) == {id(p) for p in session.model.parameters() if p.requires_grad}

    def test_finished_model_has_its_own_layers_and_no_hooks(self, method: str, task: ac.Task) -> None:
        finished = trained(method, task).finish().model
        layers = {
            name: type(m) for name, m in task.model().named_modules() if name and not list(m.children())
        }
        kept = {name: m for name, m in finished.named_modules() if name in layers}
        assert kept
        # A layer is of its own class, of one that reads its weight from codes, or two stand for it.
        ours = {type(m) for m in kept.values()} - set(layers.values())
        assert all(cls.__module__.startswith("autocompress.weights.") for cls in ours)
        assert not any(m._forward_pre_hooks or m._forward_hooks for m in finished.modules())
        assert not [name for name in finished.state_dict() if name.startswith(f"{method}_")]
        assert all(p.requires_grad for p in finished.parameters())

    @pytest.mark.parametrize("device", DEVICES)
    def test_compact_model_is_smaller_equals_the_trained_one_and_can_be_made_again(
        self, method: str, task: ac.Task, tmp_path: Path, device: str
    ) -> None:
        session = trained(method, task, device)
        full = sum(p.numel() for p in task.model().parameters())
        finished = session.finish()
        model = finished.model
        assert check_equal(model, finished.expected, task.example().to(device), "surgery") < 1e-4
        numbers = sum(p.numel() for p in model.parameters())
        # A translator from the flat image may be as large as the layer that it stands for.
        assert numbers < full or (method in {"depth", *SAME_STRUCTURE} and numbers == full)
        edits = edits_from_json(json.loads(json.dumps([edit.to_json() for edit in finished.edits])))
        assert edits == finished.edits
        again = apply(task.model(), edits, task.example())
        again.load_state_dict(model.state_dict())
        assert check_equal(again, model.to("cpu"), task.example(), "making it again") < 1e-6
        Trainer(task, 1).fit(model.to(device), 1)
        model.to("cpu")
        export_program(model, task.example(), tmp_path / "model.pt2")
        loaded = load_program(tmp_path / "model.pt2")
        for batch in (1, 3):
            x = torch.randn(batch, 3, 8, 8)
            with torch.no_grad():
                assert relative_difference(model.eval()(x), loaded(x)) < 1e-6

    @pytest.mark.parametrize("device", DEVICES)
    def test_model_in_training_can_be_copied_and_its_state_is_saved(
        self, method: str, task: ac.Task, device: str
    ) -> None:
        session = trained(method, task, device)
        x = task.example().to(device)
        twin = copy.deepcopy(session.model)
        with torch.no_grad():
            assert torch.equal(session.model.eval()(x), twin.eval()(x))
        assert set(twin.state_dict()) == set(session.model.state_dict())


def state_of(model: nn.Module) -> dict[str, Tensor]:
    return {name: tensor.detach().clone() for name, tensor in model.state_dict().items()}


@pytest.mark.parametrize(("method", "name"), PAIRS)
def test_a_copy_of_a_session_finishes_as_it_would_and_leaves_it_as_it_is(method: str, name: str) -> None:
    user = USERS[name]
    task = user.task()

    def ended(look: bool) -> list[dict[str, Tensor]]:
        torch.manual_seed(0)
        model = user.model()
        session = configured(method, model, task.example()).start(model, task)
        seen = []

        def watch(epoch: int, watched: Session) -> dict[str, float]:
            if look:
                with torch.random.fork_rng():
                    twin = copy.deepcopy(watched)
                    assert twin.model.state_dict().keys() == watched.model.state_dict().keys()
                    seen.append(state_of(twin.finish().model))
            return {}

        Trainer(task, 2, watch=watch).fit(session.model, 2, session)
        return [*seen[-1:], state_of(session.finish().model)]

    copied, watched = ended(look=True)
    (alone,) = ended(look=False)
    assert copied.keys() == watched.keys() == alone.keys()
    for tensor, value in alone.items():
        assert torch.equal(value, watched[tensor]), tensor
        assert torch.equal(value, copied[tensor]), tensor


# Compressed again, by which method: every first method, on models of every kind, by itself where it cuts.
SECOND = {
    ("alcn", "residual"): "lc",
    ("alcn", "grouped"): "alcn",
    ("depth", "vit"): "alcn",
    ("depth", "mlp"): "depth",
    ("alds", "unet"): "lc",
    ("autoplastic", "grouped"): "alds",
    ("alds", "recurrent"): "lc",
    ("depth", "recurrent"): "lc",
    ("qat", "residual"): "alcn",
}

# A graph is traced as it is in evaluation, where torchvision's stochastic depth is no operator: after surgery
# on the graph it is lost. Dropout is kept.
STILL_IN_TRAINING = {("depth", "grouped")}

ONNX = {
    ("alcn", "residual"),
    ("depth", "mlp"),
    ("alds", "conv1d"),
    ("autoplastic", "tied"),
    ("lc", "mlp"),
    ("lc", "recurrent"),
}


@pytest.fixture(scope="module")
def ask() -> Iterator[Callable[..., dict[str, Any]]]:
    """Ask a process of its own, which has the user's classes and this package alone."""
    command = [sys.executable, "-W", "error", "-m", "tests.methods.rebuild_child"]
    child = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
    assert child.stdin is not None
    assert child.stdout is not None

    def request(**fields: str) -> dict[str, Any]:
        assert child.stdin is not None
        assert child.stdout is not None
        child.stdin.write(json.dumps(fields) + "\n")
        child.stdin.flush()
        answer: dict[str, Any] = json.loads(child.stdout.readline())
        assert "error" not in answer, answer["traceback"]
        return answer

    yield request
    child.stdin.close()
    assert child.wait() == 0
    child.stdout.close()


def outputs(model: Callable[[Tensor], Tensor]) -> Tensor:
    with torch.no_grad():
        return model(probe())


@pytest.mark.parametrize(("method", "name"), PAIRS)
def test_compressed_models_are_rebuilt_trained_compressed_again_and_exported(
    method: str, name: str, ask: Callable[..., dict[str, Any]], tmp_path: Path
) -> None:
    user = USERS[name]
    task = user.task()
    torch.manual_seed(0)
    model = user.model()
    done = ac.compress(model, task, configured(method, model, task.example()))
    assert bool(done.edits) != (method in SAME_STRUCTURE)
    assert done.difference < 1e-4
    expected = outputs(done.model)
    torch.save(expected, tmp_path / "compressed.outputs.pt")
    done.save(tmp_path / "compressed")
    files = [tmp_path / "compressed" / "model.pt2"]
    if (method, name) in ONNX:
        files.append(done.export(tmp_path / "model.onnx"))
    for file in files:
        assert relative_difference(expected, outputs(load_program(file))) < 1e-5
    second = SECOND.get((method, name), "")
    answer = ask(user=name, folder=str(tmp_path / "compressed"), second=second)
    assert answer["difference"] < 1e-6
    frozen = {n: p for n, p in user.model().named_parameters() if not p.requires_grad}
    assert answer["frozen"] == sorted(frozen)
    left = dict(done.model.named_parameters())
    assert all(left[n].shape == p.shape for n, p in frozen.items())
    assert answer["thawed"] == []
    assert answer["without_gradient"] == []
    assert answer["not_moved"] == answer["moved_frozen"] == answer["still_statistics"] == []
    assert answer["random"] == (user.random and (method, name) not in STILL_IN_TRAINING)
    if second:
        again = answer["second"]
        assert again["edits"] > 0
        # Unlike the others, a translator may be as large as what it stands for.
        assert again["smaller"] or method == "depth"
        assert again["difference"] < 1e-4
        assert again["rebuilt"] < 1e-6
        assert again["exported"] < 1e-5
        assert again["thawed"] == []


@pytest.mark.parametrize(
    "method",
    [ac.Alcn(), ac.Alds(), ac.Alds(lambda_rank=0.1), ac.Depth(cuts=((0, 1),)), ac.Lc()],
    ids=lambda method: type(method).__name__,
)
def test_what_a_method_solves_at_its_start_counts_as_its_own_time(
    method: Method, residual_task: ac.Task
) -> None:
    assert method.start(residual_task.model(), residual_task).start_seconds > 0
