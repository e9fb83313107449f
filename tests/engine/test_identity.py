"""A run is continued with what it was made with; what changed is named, with what to do about it."""

from __future__ import annotations

import json
import os
import re
import shutil
import subprocess
import sys
import types
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import save_file
from torch import Tensor, nn

import autocompress as ac
from autocompress.data import TensorBatches
from autocompress.engine.folder import RunFolder
from autocompress.engine.identity import identity
from autocompress.engine.prepare import Prepared, prepare
from autocompress.engine.replay import replay
from autocompress.engine.settings import Settings
from autocompress.task.pretrained import read_weights
from tests.conftest import Residual, image_batches

SPACE = "def suggest(trial, profile):\n    return trial.suggest_float('ratio', 0.1, {})\n"


def squared(outputs: Tensor, targets: Tensor) -> Tensor:
    return (outputs - nn.functional.one_hot(targets, 5)).square().mean()


def absolute(outputs: Tensor, targets: Tensor) -> Tensor:
    return (outputs - nn.functional.one_hot(targets, 5)).abs().mean()


class Widened(Residual):
    """Of other sizes than its base."""

    def __init__(self) -> None:
        super().__init__()
        self.side = nn.Conv2d(8, 6, 1, bias=False)


class Dropped(Residual):
    """The same graph in evaluation, trained otherwise."""

    def forward(self, x: Tensor) -> Tensor:
        return super().forward(nn.functional.dropout(x, 0.5, self.training))


def half_wrong(outputs: Tensor, targets: Tensor) -> float:
    return 0.5


def all_wrong(outputs: Tensor, targets: Tensor) -> float:
    return 1.0


def unchanged(model: nn.Module) -> nn.Module:
    return model


@pytest.fixture(scope="module")
def task() -> ac.Task:
    torch.manual_seed(0)
    return ac.Task(
        model=Residual,
        train=image_batches(),
        val=image_batches(40, shuffle=False),
        test=image_batches(50, shuffle=False),
        loss=squared,
        metrics={"error": half_wrong},
        recipe=ac.Recipe(epochs=2),
        weights=Residual().state_dict(),
    )


@pytest.fixture(scope="module")
def prepared(task: ac.Task) -> Prepared:
    return prepare(task, Settings(objectives=("bytes",)))


@pytest.fixture
def folder(prepared: Prepared, tmp_path: Path) -> RunFolder:
    """A run of `prepared`."""
    made = RunFolder(tmp_path / "run")
    made.write(prepared.settings, identity(prepared), {})
    return made


def altered(batches: TensorBatches) -> TensorBatches:
    return replace(batches, x=batches.x[::-1].copy())


def heavier(state: dict[str, Tensor]) -> dict[str, Tensor]:
    return {**state, "head.bias": state["head.bias"] + 1e-3}


@pytest.mark.parametrize(
    ("change", "changed", "same"),
    [
        (lambda t: {"train": altered(t.train)}, "data of the train split", "data"),
        (lambda t: {"val": altered(t.val)}, "data of the val split", "data"),
        (lambda t: {"test": altered(t.test)}, "data of the test split", "data"),
        (lambda t: {"test": None}, "data of the test split", "data"),
        (lambda t: {"weights": heavier(t.weights)}, "the weights", "weights"),
        (lambda t: {"weights": None}, "the weights", "weights"),
        (lambda t: {"loss": absolute}, "the loss", "loss"),
        (lambda t: {"loss": nn.CrossEntropyLoss()}, "the loss", "loss"),
        (lambda t: {"metrics": {"error": all_wrong}}, "the metric 'error'", "metrics"),
        (lambda t: {"teacher": Dropped}, "the teacher", "teacher"),
        (lambda t: {"prepare": unchanged}, "the preparation", "prepare"),
        (lambda t: {"model": Dropped}, "the model's code", "model"),
        (
            lambda t: {"val": altered(t.val), "train": altered(t.train), "loss": absolute},
            "data of the train split, data of the val split and the loss",
            "data and loss",
        ),
    ],
)
def test_what_changed_is_named_with_the_remedy(
    change: Callable[[ac.Task], dict[str, Any]],
    changed: str,
    same: str,
    prepared: Prepared,
    folder: RunFolder,
) -> None:
    other = replace(prepared, task=replace(prepared.task, **change(prepared.task)))
    with pytest.raises(ac.UsageError) as refusal:
        folder.refuse_other_settings(identity(other))
    assert str(refusal.value) == (
        f"{changed} changed since the run in '{folder.path}' was made "
        f"(continue it with the same {same}, or choose another out)."
    )


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"recipe": ac.Recipe(epochs=7)}, "epochs of the run in '.*' is 2 but got 7"),
        ({"recipe": ac.Recipe(epochs=2, lr=0.7)}, "recipe of the run in "),
        ({"model": Widened, "weights": None}, "the weights, the model's architecture and the model's code"),
        ({"metrics": {"loss": half_wrong}}, r"metrics of the run in '.*' is \['error'\] but got \['loss'\]"),
        (
            {"train": replace(image_batches(), batch_size=16)},
            "batch_size of the run in '.*' is 32 but got 16",
        ),
    ],
)
def test_another_task_of_the_same_name_is_another_run(
    changes: dict[str, Any], message: str, task: ac.Task, folder: RunFolder
) -> None:
    other = prepare(replace(task, **changes), Settings(objectives=("bytes",)))
    with pytest.raises(ac.UsageError, match=rf"^{message}"):
        folder.refuse_other_settings(identity(other))


def test_a_task_made_anew_continues_its_run(task: ac.Task, prepared: Prepared, folder: RunFolder) -> None:
    state = {name: tensor.clone() for name, tensor in reversed(task.weights.items())}
    again = replace(
        task,
        train=image_batches(),
        val=image_batches(40, shuffle=False),
        weights=state,
        metrics={"error": half_wrong},
    )
    settings = Settings(
        objectives=("bytes",), trials=99, workers=7, timeout=3.0, cpus_per_trial=2.0, out="elsewhere"
    )
    folder.refuse_other_settings(identity(prepare(again, settings)))


@pytest.mark.parametrize(
    ("made", "given", "message"),
    [
        ({}, {"exclude": ("stem",)}, r"exclude of the run in '.*' is \[\] but got \['stem'\] "),
        ({"exclude": ("stem",)}, {}, r"exclude of the run in '.*' is \['stem'\] but got \[\] "),
        (
            {"at_least": {"stem": 0.5}},
            {"at_least": {"stem": 0.75}},
            r"at_least of the run in '.*' is {'stem': 0.5} but got {'stem': 0.75} ",
        ),
    ],
)
def test_a_run_goes_on_with_its_own_limits(
    made: dict[str, Any], given: dict[str, Any], message: str, task: ac.Task, tmp_path: Path
) -> None:
    run = RunFolder(tmp_path / "run")
    prepared = prepare(task, Settings(objectives=("bytes",), **made))
    run.write(prepared.settings, identity(prepared), {})
    run.refuse_other_settings(identity(prepare(task, Settings(objectives=("bytes",), **made))))
    with pytest.raises(ac.UsageError, match=f"^{message}"):
        run.refuse_other_settings(identity(prepare(task, Settings(objectives=("bytes",), **given))))
    assert Settings.from_json(run.read()["settings"]) == prepared.settings


def test_the_order_of_excluded_layers_is_no_other_run(task: ac.Task) -> None:
    one, other = (
        identity(prepare(task, Settings(objectives=("bytes",), exclude=exclude)))
        for exclude in (("stem", "side"), ("side", "stem", "side"))
    )
    assert one == other


def test_what_is_frozen_is_a_part_of_the_run(task: ac.Task, folder: RunFolder) -> None:
    frozen = {"head.bias"}

    def make() -> nn.Module:
        model = Residual()
        for name in frozen:
            model.get_parameter(name).requires_grad_(False)
        return model

    run = RunFolder(folder.path.parent / "frozen")
    other, settings = replace(task, model=make), Settings(objectives=("bytes",), methods=("lc",))
    prepared = prepare(other, settings)
    run.write(prepared.settings, identity(prepared), {})
    frozen.add("head.weight")
    with pytest.raises(ac.UsageError, match=r"which parameters are frozen.* changed since the run in "):
        run.refuse_other_settings(identity(prepare(other, settings)))


def test_storage_may_not_differ(task: ac.Task, folder: RunFolder) -> None:
    other = prepare(task, Settings(objectives=("bytes",), storage="sqlite:///elsewhere.db"))
    with pytest.raises(ac.UsageError, match=r"^storage of the run in"):
        folder.refuse_other_settings(identity(other))


def test_a_space_is_its_contents(
    task: ac.Task, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, folder: RunFolder
) -> None:
    monkeypatch.syspath_prepend(str(tmp_path))
    file, module = tmp_path / "own.py", tmp_path / "own_module.py"
    file.write_text(SPACE.format("0.5"))
    module.write_text(SPACE.format("0.5"))
    settings = Settings(objectives=("bytes",), methods=("alcn",), spaces=(str(file), "own_module"))

    def current() -> dict[str, Any]:
        monkeypatch.delitem(sys.modules, "own_module", raising=False)
        return identity(prepare(task, settings))

    made = RunFolder(tmp_path / "run with spaces")
    first = current()
    made.write(settings, first, {})
    assert [name for name in first["digests"] if name.startswith("spaces.")] == [
        "spaces.own",
        "spaces.own_module",
    ]
    file.write_text("# A comment.\n" + SPACE.format("0.5"))
    made.refuse_other_settings(current())
    file.write_text(SPACE.format("0.75"))
    with pytest.raises(ac.UsageError, match=r"^the search space 'own' changed .* the same search space, or"):
        made.refuse_other_settings(current())
    # A trial that is trained again has been proposed already.
    made.refuse_other_settings(current(), replayed=True)
    file.write_text(SPACE.format("0.5"))
    module.write_text(SPACE.format("0.75"))
    with pytest.raises(ac.UsageError, match="the search space 'own_module' changed"):
        made.refuse_other_settings(current())


def low(trial: Any, profile: Any) -> object:
    return ac.Alcn.Config(initial_ratio=trial.suggest_float("ratio", 0.1, 0.3))


def high(trial: Any, profile: Any) -> object:
    return ac.Alcn.Config(initial_ratio=trial.suggest_float("ratio", 0.6, 0.9))


def test_a_space_that_is_a_function_is_stored_by_name_and_told_by_what_it_computes(
    task: ac.Task, tmp_path: Path
) -> None:
    def of(*spaces: Callable[..., object]) -> Prepared:
        return prepare(task, Settings(objectives=("bytes",), spaces=spaces))

    made = RunFolder(tmp_path / "run of a function")
    prepared = of(low)
    made.write(prepared.settings, identity(prepared), {})
    assert json.loads(made.json.read_text())["settings"]["spaces"] == ["low"]
    made.refuse_other_settings(identity(of(low)))
    with pytest.raises(ac.UsageError, match=r"^spaces of the run in '.*' is \['low'\] but got \['high'\] \("):
        made.refuse_other_settings(identity(of(high)))
    renamed = types.FunctionType(high.__code__, high.__globals__, "low")
    with pytest.raises(ac.UsageError, match=r"^the search space 'low' changed .* the same search space, or"):
        made.refuse_other_settings(identity(of(renamed)))
    with_move = types.FunctionType(low.__code__, low.__globals__, "low")
    with_move.move = lambda profile, keep: {"ratio": 0.2}  # type: ignore[attr-defined]
    with pytest.raises(ac.UsageError, match="the search space 'low' changed"):
        made.refuse_other_settings(identity(of(with_move)))
    # Two of the same name are told apart.
    assert list(of(low, renamed).spaces) == ["low", "low-2"]


def test_a_replay_is_refused_in_its_own_words(prepared: Prepared, folder: RunFolder) -> None:
    other = replace(prepared, task=replace(prepared.task, loss=absolute))
    with pytest.raises(ac.UsageError, match=r"^the loss changed .* \(replay it with the same loss\)\.$"):
        folder.refuse_other_settings(identity(other), replayed=True)


def rewritten(folder: RunFolder, change: Callable[[dict[str, Any]], object]) -> None:
    data = json.loads(folder.json.read_text())
    change(data)
    folder.json.write_text(json.dumps(data))


def test_a_run_of_an_older_version_is_refused_by_what_it_lacks(prepared: Prepared, folder: RunFolder) -> None:
    rewritten(folder, lambda data: [data["identity"].pop(name) for name in ("digests", "batch_size")])
    with pytest.raises(
        ac.UsageError,
        match=r"^the run in '.*' was made by an older version of autocompress, which did not store "
        r"batch_size, digests \(continue it with that version, or choose another out\)\.$",
    ):
        folder.refuse_other_settings(identity(prepared))


def test_another_python_is_named_where_it_may_be_all_that_changed(
    prepared: Prepared, folder: RunFolder
) -> None:
    rewritten(folder, lambda data: data["versions"].update(python="3.9.1"))
    folder.refuse_other_settings(identity(prepared))
    rewritten(folder, lambda data: data["identity"]["digests"].update(loss="another"))
    with pytest.raises(ac.UsageError, match=r"^the loss changed since .* was made with python 3\.9\.1 \("):
        folder.refuse_other_settings(identity(prepared))


def test_weights_are_their_tensors_and_data_their_rows_wherever_they_lie(tmp_path: Path) -> None:
    rng = np.random.default_rng(0)
    names = ("x_train", "y_train", "x_test", "y_test")
    made = rng.integers(0, 255, (60, 28, 28), dtype=np.uint8), np.arange(60) % 10
    for root in ("a", "b"):
        (tmp_path / root).mkdir()
        np.savez(tmp_path / root / "mnist.npz", **dict(zip(names, (*made, *made), strict=True)))
    state = prepare("mnist", Settings(task="mnist", data_root=str(tmp_path / "a"))).model.state_dict()
    save_file(state, tmp_path / "weights.safetensors")
    torch.save({"state_dict": state}, tmp_path / "weights.pth")
    np.savez(tmp_path / "weights.npz", **{name: tensor.numpy() for name, tensor in state.items()})
    settings = [
        Settings(task="mnist", data_root=str(tmp_path / root), weights=str(tmp_path / f"weights.{kind}"))
        for root, kind in (("a", "safetensors"), ("b", "pth"))
    ]
    first, second = (identity(prepare("mnist", each)) for each in settings)
    assert first == second
    assert first["digests"]["weights"] is not None
    loaded = read_weights(tmp_path / "weights.npz")
    third = prepare("mnist", settings[0])
    assert identity(replace(third, task=replace(third.task, weights=loaded))) == first


MODULE = '''
import torch
from torch import nn
from torch.utils.data import DataLoader, Dataset
import autocompress as ac

KINDS = {"mean", "sum", "none"}


class Noisy(Dataset):
    """Augmented at random."""

    targets = [row % 3 for row in range(40)]

    def __len__(self):
        return 40

    def __getitem__(self, row):
        return torch.full((6,), float(row)) + torch.rand(6), self.targets[row]


class Net(nn.Module):
    def __init__(self, width=8):
        super().__init__()
        self.layers = nn.Sequential(nn.Linear(6, width), nn.ReLU(), nn.Dropout(0.1), nn.Linear(width, 3))

    def forward(self, x):
        return self.layers(x) * torch.tensor([1.0, 2.0, 3.0])


def loss(outputs, targets):
    return nn.functional.cross_entropy(outputs, targets, reduction="mean" if "mean" in KINDS else "sum")


def make():
    train, val = (DataLoader(Noisy(), batch_size=8, shuffle=shuffle) for shuffle in (True, False))
    hit = lambda o, t: float((o.argmax(1) == t).float().mean())
    recipe = ac.Recipe(epochs=1)
    return ac.Task(lambda: Net(), train, val, loss=loss, metrics={"accuracy": hit}, recipe=recipe)
'''
PROGRAM = """
import json
from autocompress.engine.identity import identity
from autocompress.engine.prepare import prepare
from autocompress.engine.settings import Settings
from autocompress.task.pretrained import read_weights
print(json.dumps(identity(prepare("own.py:make", Settings(task="own.py:make", spaces=("space.py",))))))
"""


def test_two_processes_agree_on_a_task_of_a_file(tmp_path: Path) -> None:
    (tmp_path / "own.py").write_text(MODULE)
    (tmp_path / "space.py").write_text(SPACE.format("0.5"))
    printed = [
        subprocess.run(
            [sys.executable, "-c", PROGRAM],
            capture_output=True,
            text=True,
            check=True,
            cwd=tmp_path,
            env={**os.environ, "PYTHONHASHSEED": seed},
        ).stdout
        for seed in ("1", "2")
    ]
    assert printed[0] == printed[1]
    digests = json.loads(printed[0])["digests"]
    assert sorted(digests) == [
        "architecture",
        "data.train",
        "data.val",
        "frozen",
        "loss",
        "metrics.accuracy",
        "model",
        "spaces.space",
        "weights",
    ]
    assert all(digest is None or re.fullmatch("[0-9a-f]{32}", digest) for digest in digests.values())


@pytest.mark.usefixtures("shared_ray")
def test_a_search_goes_on_only_as_what_it_was_and_is_read_without_its_data(
    task: ac.Task, tmp_path: Path
) -> None:
    quick = replace(task, recipe=ac.Recipe(epochs=1), metrics=None)
    options = {"methods": ["alcn"], "workers": 1, "out": tmp_path / "run", "progress": ac.Progress()}
    first = ac.search(quick, trials=1, **options)
    again = ac.search(replace(quick, train=image_batches()), trials=1, **options)
    assert [p.trial for p in again.front] == [p.trial for p in first.front]
    with pytest.raises(ac.UsageError, match="data of the train split changed"):
        ac.search(replace(quick, train=altered(quick.train)), trials=2, **options)
    with pytest.raises(ac.UsageError, match=r"^the loss changed .* \(replay it with the same loss\)"):
        replay(first.out, 1, replace(quick, loss=absolute))
    moved = Path(shutil.move(first.out, tmp_path / "moved"))
    assert len(ac.load_run(moved).front) == len(first.front)
