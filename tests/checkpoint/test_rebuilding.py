"""A checkpoint's edits and weights make the compressed model of the user's class, and it trains on."""

from __future__ import annotations

import importlib
import json
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from torch import nn

import autocompress as ac
from autocompress import plugins
from autocompress.errors import CheckpointError
from autocompress.methods.alcn import Alcn
from autocompress.surgery import KeepChannels, check_equal
from tests.conftest import Residual

METHODS = sorted(plugins.compressors())

MINE = """
from torch import nn


class Net(nn.Module):
    def __init__(self):
        super().__init__()
        self.first, self.norm, self.last = nn.Conv2d(3, 16, 3), nn.BatchNorm2d(16), nn.Linear(16, 5)

    def forward(self, x):
        return self.last(self.norm(self.first(x)).relu().mean((2, 3)))
"""

FRESH = """
import sys
import torch
import autocompress as ac
from mine import Net

model, (inputs, outputs) = ac.rebuild(Net(), sys.argv[1]), torch.load(sys.argv[2])
assert type(model) is Net
assert model.training
assert torch.allclose(model.eval()(inputs), outputs, rtol=0, atol=1e-6)
print(model.first.out_channels)
"""


@pytest.mark.parametrize("method", METHODS)
def test_a_rebuilt_model_is_the_compressed_one_and_trains_on(
    method: str, residual_task: ac.Task, tmp_path: Path
) -> None:
    compressed = ac.compress(residual_task.model(), residual_task, plugins.compressor(method)())
    compressed.save(tmp_path / "saved")
    model = ac.rebuild(Residual(), tmp_path / "saved")
    assert compressed.edits or method == "qat"  # which changes weights alone
    assert isinstance(model, Residual) == isinstance(compressed.model, Residual)
    assert check_equal(model, compressed.model, residual_task.example(64), "rebuilding") < 1e-6
    norms = [module for module in model.modules() if isinstance(module, nn.BatchNorm2d)]
    means = [norm.running_mean.clone() for norm in norms]
    weights = {name: p.detach().clone() for name, p in model.named_parameters()}
    optimizer = torch.optim.Adam(model.parameters(), 1e-2)
    inputs, targets = next(iter(residual_task.train))
    residual_task.loss(model.train()(inputs), targets).backward()
    optimizer.step()
    assert not any(torch.equal(n.running_mean, mean) for n, mean in zip(norms, means, strict=True))
    assert [name for name, p in model.named_parameters() if torch.equal(p, weights[name])] == []


def test_channels_are_cut_out_of_the_users_own_class_which_is_not_run_as_a_graph(
    residual_task: ac.Task, tmp_path: Path
) -> None:
    compressed = ac.compress(residual_task.model(), residual_task, Alcn(initial_ratio=0.3))
    compressed.save(tmp_path / "saved")
    model = ac.rebuild(Residual(), tmp_path / "saved")
    assert type(model) is Residual
    assert model.stem.out_channels == model.norm.num_features == len(model.norm.weight) < 8
    assert list(model.state_dict()) == list(Residual().state_dict())


def test_dropout_and_frozen_parameters_stay_what_they_were(residual_task: ac.Task, tmp_path: Path) -> None:
    class Dropping(Residual):
        def __init__(self) -> None:
            super().__init__()
            self.head.bias.requires_grad_(False)

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return nn.functional.dropout(super().forward(x), 0.5, self.training)

    task = replace(residual_task, model=Dropping)
    ac.compress(task.model(), task, Alcn(initial_ratio=0.3)).save(tmp_path / "saved")
    model, inputs = ac.rebuild(Dropping(), tmp_path / "saved"), task.example(16)
    assert not torch.equal(model.train()(inputs), model(inputs))
    assert torch.equal(model.eval()(inputs), model(inputs))
    frozen = [name for name, parameter in model.named_parameters() if not parameter.requires_grad]
    assert frozen == ["head.bias"]


def test_a_fresh_process_that_has_the_class_rebuilds_it(
    residual_task: ac.Task, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "mine.py").write_text(MINE)
    (tmp_path / "fresh.py").write_text(FRESH)
    monkeypatch.syspath_prepend(tmp_path)
    task = replace(residual_task, model=importlib.import_module("mine").Net)
    compressed = ac.compress(task.model(), task, Alcn(initial_ratio=0.3))
    checkpoint = compressed.save(tmp_path / "saved")
    inputs = torch.randn(4, 3, 8, 8)
    with torch.no_grad():
        torch.save((inputs, compressed.model(inputs)), tmp_path / "expected.pt")
    done = subprocess.run(
        [sys.executable, "fresh.py", str(checkpoint.path), "expected.pt"],
        cwd=tmp_path,
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    assert int(done.stdout) == compressed.model.first.out_channels < 16


class Wider(Residual):
    def __init__(self) -> None:
        super().__init__()
        self.head = nn.Linear(14 * 16, 7)


class Deeper(Residual):
    def __init__(self) -> None:
        super().__init__()
        self.last = nn.Linear(5, 5)


class Flat(Residual):
    def __init__(self) -> None:
        super().__init__()
        self.branch = nn.Linear(8, 8)


@pytest.mark.parametrize(
    ("make", "reason"),
    [
        (lambda: nn.Sequential(nn.Flatten(), nn.Linear(192, 5)), "it has no tensor 'stem.weight'"),
        (Wider, "size mismatch for head.bias"),
        (Deeper, r'Missing key\(s\) in state_dict: "last.bias", "last.weight"'),
        (Flat, "branch.weight"),
    ],
    ids=["other", "wider", "deeper", "flat"],
)
def test_a_model_that_a_checkpoint_is_not_of_is_refused_in_one_line(
    make: type[nn.Module], reason: str, residual_task: ac.Task, tmp_path: Path
) -> None:
    ac.compress(residual_task.model(), residual_task, Alcn(initial_ratio=0.3)).save(tmp_path / "saved")
    with pytest.raises(CheckpointError, match=reason) as refused:
        ac.rebuild(make(), tmp_path / "saved")
    assert "\n" not in str(refused.value)
    assert str(tmp_path / "saved") in str(refused.value)


def test_edits_that_nobody_here_knows_are_refused(residual_task: ac.Task, tmp_path: Path) -> None:
    compressed = ac.compress(residual_task.model(), residual_task, Alcn(initial_ratio=0.3))
    checkpoint = replace(compressed, edits=(Unknown((), ()), *compressed.edits)).save(tmp_path / "saved")
    assert json.loads((checkpoint.path / "edits.json").read_text())[0]["edit"] == "unknown here"
    with pytest.raises(
        CheckpointError, match=r"got 'unknown here' \(a plug-in that is not installed here\?\)"
    ):
        ac.rebuild(Residual(), tmp_path / "saved")


class Unknown(KeepChannels):
    kind = "unknown here"


del KeepChannels.kinds["unknown here"]
