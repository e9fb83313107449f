"""Programs with several inputs and outputs, sizes that vary, and where they are run."""

from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from autocompress.checkpoint import export_onnx, export_program
from autocompress.checkpoint.program import load_program
from autocompress.checkpoint.quantize import quantize_onnx
from autocompress.checkpoint.reload import reload_faults
from autocompress.measure.latency import LatencySettings, measure_latency
from autocompress.task.inputs import Varying, call, repeated_rows

X, C = torch.randn(4, 12, generator=torch.Generator().manual_seed(0)), torch.tensor([3, 0, 7, 7])


class Pair(nn.Module):
    """Takes numbers and a category; with `several`, returns features too, and what is no tensor."""

    def __init__(self, several: bool = False) -> None:
        super().__init__()
        self.several = several
        self.numbers, self.category, self.head = nn.Linear(12, 32), nn.Embedding(8, 4), nn.Linear(36, 3)

    def forward(self, numbers: Tensor, category: Tensor, scale: float = 1.0, **unused: Any) -> Any:
        features = scale * torch.cat([self.numbers(numbers).relu(), self.category(category)], 1)
        logits = self.head(features)
        return (
            {"features": features, "logits": (logits, [logits + 1]), "cache": object()}
            if self.several
            else logits
        )


class Pooled(nn.Module):
    """A convolution, whose images may have any size."""

    def __init__(self) -> None:
        super().__init__()
        self.conv, self.head = nn.Conv2d(3, 8, 3), nn.Linear(8, 2)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.conv(x).relu().mean((2, 3)))


INPUTS = [(X, C), {"category": C, "numbers": X}, {"numbers": X, "category": C, "scale": 2.0}]


@pytest.mark.parametrize("inputs", INPUTS, ids=["arguments", "keywords", "constant"])
@pytest.mark.parametrize("several", [False, True], ids=["tensor", "containers"])
@pytest.mark.parametrize("name", ["model.pt2", "model.onnx"])
def test_a_program_with_several_inputs_runs_in_a_fresh_process(
    inputs: Any, several: bool, name: str, tmp_path: Path
) -> None:
    model, path = Pair(several).eval(), tmp_path / name
    (export_onnx if path.suffix == ".onnx" else export_program)(model, repeated_rows(inputs, 2), path)
    with torch.no_grad():
        expected, seen = call(model, inputs), load_program(path)(inputs)
    if several:
        assert list(seen) == ["features", "logits"]
        torch.testing.assert_close(seen["logits"][1][0], expected["logits"][1][0])
        torch.testing.assert_close(seen["features"], expected["features"])
    else:
        torch.testing.assert_close(seen, expected)
    assert reload_faults([path], repeated_rows(inputs, 3)) == {}


def test_int8_is_calibrated_on_several_inputs(tmp_path: Path) -> None:
    model, path = Pair().eval(), tmp_path / "model.onnx"
    export_onnx(model, (X[:2], C[:2]), path)
    quantize_onnx(path, [(X, C)])
    seen = load_program(path)((X, C))
    torch.testing.assert_close(seen, model(X, C).detach(), atol=0.1, rtol=0.1)
    assert not torch.equal(seen, model(X, C))


@pytest.mark.parametrize("name", ["model.pt2", "model.onnx"])
def test_latency_is_measured_with_several_inputs(name: str, tmp_path: Path) -> None:
    path = tmp_path / name
    export = export_onnx if path.suffix == ".onnx" else export_program
    inputs = {"numbers": X, "category": C}
    export(Pair(), repeated_rows(inputs, 2), path)
    settings = LatencySettings(batch_size=6, pairs=2, least_ms=0.1)
    assert measure_latency(path, None, inputs, settings).milliseconds > 0


@pytest.mark.parametrize("name", ["model.pt2", "model.onnx"])
def test_sizes_that_vary_stay_free(name: str, tmp_path: Path) -> None:
    model, path = Pooled().eval(), tmp_path / name
    export = export_onnx if path.suffix == ".onnx" else export_program
    export(model, Varying(torch.zeros(2, 3, 16, 16), {2: "height", 3: "width"}), path)
    other = torch.randn(1, 3, 20, 13)
    torch.testing.assert_close(load_program(path)(other), model(other).detach(), atol=1e-5, rtol=1e-5)
