"""Another method, an installed package of two files: searched, stored, rebuilt, exported and reported."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from autocompress.checkpoint.reload import reload_faults
from autocompress.data import load_task

ROOT = Path(__file__).parent.parent.parent

METHOD = '''
"""2:4 sparsity: of each four weights that follow one another the two greatest stay."""

import copy
import math
from dataclasses import dataclass
from typing import Any, ClassVar

import torch
from torch import Tensor, nn

from autocompress.errors import SettingsError
from autocompress.methods.base import Finished, Method, Session, Stage
from autocompress.surgery import Encode
from autocompress.weights.decoders import WeightCode
from autocompress.weights.encoded import install_code


class TwoOfFourCode(WeightCode):
    """Two values of each four, and their positions, two bits each: four positions to a byte."""

    kind = "two_of_four"

    def __init__(self, values: Tensor, packed: Tensor, shape: tuple[int, ...]) -> None:
        super().__init__(shape)
        self.values = nn.Parameter(values)
        self.register_buffer("packed", packed)

    @classmethod
    def of(cls, weight: Tensor) -> "TwoOfFourCode":
        fours = weight.detach().reshape(-1, 4)
        positions = fours.abs().topk(2).indices.sort().values
        bits = nn.functional.pad(positions.reshape(-1), (0, -positions.numel() % 4)).reshape(-1, 4)
        packed = (bits << torch.tensor([0, 2, 4, 6])).sum(1).to(torch.uint8)
        return cls(fours.gather(1, positions), packed, tuple(weight.shape))

    def sizes(self) -> dict[str, Any]:
        return {}

    @classmethod
    def empty(cls, shape: tuple[int, ...], **sizes: Any) -> "TwoOfFourCode":
        fours = math.prod(shape) // 4
        return cls(torch.zeros(fours, 2), torch.zeros(-(-fours // 2), dtype=torch.uint8), shape)

    @property
    def numbers(self) -> int:
        return self.values.numel()

    def forward(self) -> Tensor:
        positions = torch.stack([(self.packed >> shift) & 3 for shift in (0, 2, 4, 6)], 1)
        positions = positions.reshape(-1)[: self.values.numel()].reshape(-1, 2).to(torch.int64)
        fours = torch.zeros(len(positions), 4, dtype=self.values.dtype, device=self.values.device)
        return fours.scatter(1, positions, self.values).reshape(self.shape)


@dataclass(frozen=True)
class Config:
    strength: float = 1.0

    def __post_init__(self) -> None:
        if not self.strength >= 0:
            raise SettingsError(f"strength must be at least 0 but got {self.strength}.")


class TwoOfFour(Method):
    Config: ClassVar[type[Config]] = Config
    stage = Stage.STORAGE

    def start(self, model: nn.Module, task: Any) -> "TwoOfFourSession":
        return TwoOfFourSession(self.config, model)


class TwoOfFourSession(Session):
    """Pulls the two weights that will go towards zero, ever harder."""

    def __init__(self, config: Config, model: nn.Module) -> None:
        self.config, self.model, self.progress = config, model, 0.0
        self.layers = [
            name for name, layer in model.named_modules()
            if isinstance(layer, (nn.Linear, nn.Conv2d)) and layer.weight.numel() % 4 == 0
        ]

    def penalty(self) -> Tensor:
        small = [self._fours(name).square().topk(2, largest=False).values.sum() for name in self.layers]
        return self.config.strength * self.progress * torch.stack(small).sum()

    def after_step(self, progress: float) -> None:
        self.progress = progress

    def finish(self) -> Finished:
        with torch.no_grad():
            for name in self.layers:
                fours = self._fours(name)
                fours.scatter_(1, fours.abs().topk(2, largest=False).indices, 0.0)
        compact, edits = copy.deepcopy(self.model), []
        for name in self.layers:
            layer = compact.get_submodule(name)
            code = TwoOfFourCode.of(layer.weight)
            install_code(layer, code)
            edits.append(Encode(name, code.spec))
        return Finished(compact, tuple(edits), self.model)

    def _fours(self, name: str) -> Tensor:
        return self.model.get_submodule(name).weight.view(-1, 4)
'''

SPACE = '''
"""What may vary in 2:4 sparsity."""

from two_of_four import Config


def suggest(trial, profile):
    return Config(strength=trial.suggest_float("two_of_four.strength", 1e-3, 1.0, log=True))
'''

SEARCH = """
import json, sys
import autocompress as ac

if __name__ == "__main__":
    result = ac.search(
        "digits", model="mlp", spaces=["two_of_four_space"], trials=2, epochs=2, workers=1, constraints=[],
        out=sys.argv[1], progress=ac.Progress(),
    )
    point = [point for point in result.front if point.trial][0]
    point.export(sys.argv[2])
    print(json.dumps({"path": str(point.path), "config": dict(point.config), "ratios": dict(point.ratios)}))
"""

REBUILD = """
import sys
import torch
import autocompress as ac

point = next(p for p in ac.load_run(sys.argv[1]).front if str(p.path) == sys.argv[2])
module, inputs = point.module(), torch.randn(4, 1, 8, 8)
for layer in module.modules():
    if hasattr(layer, "encoded_weight"):
        assert type(layer.encoded_weight).__module__ == "two_of_four"
        assert ((layer.weight.reshape(-1, 4) != 0).sum(1) <= 2).all()
with torch.no_grad():
    assert torch.allclose(module.eval()(inputs), point.load()(inputs), atol=1e-5)
weights = [p.detach().clone() for p in module.parameters()]
module.train()(inputs).square().sum().backward()
torch.optim.SGD(module.parameters(), 0.1).step()
print(sum(hasattr(layer, "encoded_weight") for layer in module.modules()))
print(all(not torch.equal(a, b) for a, b in zip(module.parameters(), weights)))
"""


@pytest.fixture
def site(tmp_path: Path) -> Path:
    """A folder of installed packages that holds the plug-in, as pip would leave it."""
    site = tmp_path / "site"
    info = site / "two_of_four-1.0.dist-info"
    info.mkdir(parents=True)
    (info / "METADATA").write_text("Metadata-Version: 2.1\nName: two-of-four\nVersion: 1.0\n")
    (info / "entry_points.txt").write_text("[autocompress.methods]\ntwo_of_four = two_of_four:TwoOfFour\n")
    (site / "two_of_four.py").write_text(METHOD)
    (site / "two_of_four_space.py").write_text(SPACE)
    return site


def test_a_method_of_another_package_is_one_like_any_other(site: Path, tmp_path: Path) -> None:
    def python(code: str, *arguments: object) -> list[str]:
        script = tmp_path / "script.py"
        script.write_text(code)
        path = os.pathsep.join([str(site), str(ROOT)])
        done = subprocess.run(
            [sys.executable, str(script), *map(str, arguments)],
            capture_output=True,
            text=True,
            check=False,
            cwd=tmp_path,
            env={**os.environ, "PYTHONPATH": path},
        )
        assert done.returncode == 0, done.stderr
        return done.stdout.splitlines()

    run, exported = tmp_path / "run", tmp_path / "model.pt2"
    searched = json.loads(python(SEARCH, run, exported)[-1])
    (stage,) = searched["config"]["stages"]
    assert stage["method"] == "two_of_four"
    # Half of the weights; each two of them take 68 bits where the four took 128.
    assert searched["ratios"]["params"] == pytest.approx(0.5, abs=0.02)
    assert searched["ratios"]["bytes"] < 0.7
    edits = json.loads((Path(searched["path"]) / "edits.json").read_text())
    assert {edit["code"]["kind"] for edit in edits} == {"two_of_four"}
    report = (run / "report.html").read_text()
    assert "two_of_four" in report
    assert "strength" in report
    layers, trained = python(REBUILD, run, searched["path"])
    assert int(layers) == len(edits) > 1
    assert trained == "True"
    # The exported file needs neither this package nor the plug-in.
    assert reload_faults([exported], load_task("digits").example(3)) == {}
    assert torch.export.load(str(exported)) is not None
