"""Deployed programs: batch norms are folded where they alone read a layer, and nothing else changes."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import onnx
import pytest
import torch
from torch import Tensor, nn

from autocompress.checkpoint import export_onnx, export_program, load_program
from autocompress.checkpoint.program import load_module
from autocompress.weights.encoded import encode_weight
from autocompress.weights.encodings import Quantized


def with_statistics(model: nn.Module) -> nn.Module:
    """As if it had been trained: no statistic is what it began with."""
    generator = torch.Generator().manual_seed(0)
    for module in model.modules():
        if isinstance(module, nn.modules.batchnorm._BatchNorm):
            for tensor in (module.weight, module.bias, module.running_mean):
                if tensor is not None:
                    tensor.data.copy_(torch.randn(tensor.shape, generator=generator))
            if module.running_var is not None:
                module.running_var.copy_(torch.rand(module.running_var.shape, generator=generator) + 0.1)
    return model.eval()


def norms(module: nn.Module) -> int:
    graph = module.graph
    return sum("batch_norm" in str(node.target) for node in graph.nodes)  # type: ignore[union-attr]


FOLDED: dict[str, tuple[Callable[[], nn.Module], tuple[int, ...]]] = {
    "conv1d": (lambda: nn.Sequential(nn.Conv1d(3, 4, 3), nn.BatchNorm1d(4)), (3, 9)),
    "conv2d": (lambda: nn.Sequential(nn.Conv2d(3, 4, 3, bias=False), nn.BatchNorm2d(4)), (3, 6, 6)),
    "same padding": (
        lambda: nn.Sequential(nn.Conv2d(3, 4, 3, padding="same"), nn.BatchNorm2d(4)),
        (3, 6, 6),
    ),
    "grouped": (lambda: nn.Sequential(nn.Conv2d(4, 8, 3, groups=4), nn.BatchNorm2d(8)), (4, 6, 6)),
    "conv3d": (lambda: nn.Sequential(nn.Conv3d(2, 4, 2), nn.BatchNorm3d(4)), (2, 4, 4, 4)),
    "linear": (lambda: nn.Sequential(nn.Linear(5, 4), nn.BatchNorm1d(4), nn.Linear(4, 2)), (5,)),
}


@pytest.mark.parametrize("name", FOLDED)
def test_a_batch_norm_after_a_layer_is_part_of_it(name: str, tmp_path: Path) -> None:
    make, shape = FOLDED[name]
    torch.manual_seed(0)
    model, x = with_statistics(make()), torch.randn(5, *shape)
    export_program(model, x[:2], tmp_path / "model.pt2")
    export_onnx(model, x[:2], tmp_path / "model.onnx")
    loaded = load_module(tmp_path / "model.pt2")
    assert norms(loaded) == 0
    assert len(loaded.state_dict()) == 2 * sum(
        isinstance(m, (nn.Linear, nn.modules.conv._ConvNd)) for m in model
    )
    assert "BatchNormalization" not in {
        node.op_type for node in onnx.load(tmp_path / "model.onnx").graph.node
    }
    with torch.no_grad():
        assert torch.allclose(loaded(x), model(x), rtol=1e-5, atol=1e-5)
        assert torch.allclose(load_program(tmp_path / "model.onnx")(x), model(x), rtol=1e-4, atol=1e-4)


def test_codes_stay_codes_and_are_scaled_where_they_are_read(tmp_path: Path) -> None:
    torch.manual_seed(0)
    model = with_statistics(nn.Sequential(nn.Conv2d(8, 16, 3, bias=False), nn.BatchNorm2d(16)))
    before = model(torch.ones(1, 8, 3, 3)).shape
    encode_weight(model[0], Quantized(torch.randn(4), torch.randint(4, (16 * 8 * 9,))))
    x = torch.randn(3, 8, 5, 5)
    export_program(model, x, tmp_path / "model.pt2")
    loaded = load_module(tmp_path / "model.pt2")
    assert norms(loaded) == 0
    assert before == (1, 16, 1, 1)
    assert max(t.numel() for t in loaded.state_dict().values() if t.is_floating_point()) == 16
    with torch.no_grad():
        assert torch.allclose(loaded(x), model(x), rtol=1e-5, atol=1e-5)


class Shared(nn.Module):
    """A layer that is read twice, one whose weight is tied, a norm of images behind a linear layer, and one
    that normalises by its batch."""

    def __init__(self) -> None:
        super().__init__()
        self.twice, self.norm = nn.Linear(6, 6), nn.BatchNorm1d(6)
        self.tied, self.tied_norm = nn.Linear(6, 6), nn.BatchNorm1d(6)
        self.other = nn.Linear(6, 6)
        self.other.weight = self.tied.weight
        self.lines = nn.BatchNorm1d(2)
        self.batch, self.own = nn.Linear(6, 6), nn.BatchNorm1d(6, track_running_stats=False)

    def forward(self, x: Tensor) -> Tensor:
        y = self.twice(x)
        y = y + self.norm(y)
        y = self.other(self.tied_norm(self.tied(y)))
        lines = self.lines(self.other(torch.stack([y, -y], 1)))
        return self.own(self.batch(lines.sum(1)))


def test_what_others_read_too_stays_as_it_is(tmp_path: Path) -> None:
    torch.manual_seed(0)
    model, x = with_statistics(Shared()), torch.randn(4, 6)
    export_program(model, x, tmp_path / "model.pt2")
    with torch.no_grad():
        assert torch.allclose(load_module(tmp_path / "model.pt2")(x), model(x), rtol=1e-4, atol=1e-4)


def test_the_model_itself_is_not_changed(residual: nn.Module, images: Tensor, tmp_path: Path) -> None:
    before = {name: tensor.clone() for name, tensor in residual.state_dict().items()}
    graph = export_program(residual, images[:2], tmp_path / "model.pt2")
    assert all(torch.equal(tensor, before[name]) for name, tensor in residual.state_dict().items())
    assert norms(graph) == 1  # that is what the model is analysed by


class InPlace(nn.Module):
    """Reads the same twice, with a change in place between."""

    def __init__(self) -> None:
        super().__init__()
        self.layer = nn.Linear(4, 4)
        self.register_buffer("count", torch.zeros(4))

    def forward(self, x: Tensor) -> Tensor:
        y = self.layer(x)
        before = y + 1
        y.mul_(2)
        count = self.count * 1
        count += 1
        return before + (y + 1) + self.count * 1 + count


def test_what_is_changed_in_place_is_read_anew(tmp_path: Path) -> None:
    torch.manual_seed(0)
    model, x = InPlace().eval(), torch.randn(3, 4)
    export_program(model, x, tmp_path / "model.pt2")
    export_onnx(model, x, tmp_path / "model.onnx")
    with torch.no_grad():
        expected = model(x)
        assert torch.allclose(load_module(tmp_path / "model.pt2")(x), expected)
        assert torch.allclose(load_program(tmp_path / "model.onnx")(x), expected, atol=1e-5)


def test_layers_with_as_many_levels_decode_by_one_table(tmp_path: Path) -> None:
    model = nn.Sequential(nn.Linear(32, 32), nn.Linear(32, 32)).eval()
    for layer in model:
        encode_weight(layer, Quantized(torch.randn(16), torch.randint(16, (1024,))))
    export_program(model, torch.zeros(2, 32), tmp_path / "model.pt2")
    casts = [n for n in load_module(tmp_path / "model.pt2").graph.nodes if "aten.to" in str(n.target)]
    assert len(casts) == 3  # of the table, and of each layer's bytes
