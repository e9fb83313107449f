"""Half precision for the vectors of models whose weights are codes."""

from __future__ import annotations

import copy
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from torch import Tensor, nn
from torch.utils.data import DataLoader, TensorDataset

import autocompress as ac
from autocompress.checkpoint import export_program, load_program
from autocompress.checkpoint.archive import least_tensor_bytes, tensor_bytes
from autocompress.checkpoint.program import load_module
from autocompress.trial.halves import round_vectors
from autocompress.weights.encoded import encode_weight
from autocompress.weights.encodings import Quantized

WIDTH = 64


def network() -> nn.Sequential:
    """Trained as far as a batch norm's statistics go, its first layer's weight stored as codes."""
    torch.manual_seed(0)
    model = nn.Sequential(
        nn.Conv2d(3, WIDTH, 3, bias=False),
        nn.BatchNorm2d(WIDTH),
        nn.ReLU(),
        nn.AdaptiveAvgPool2d(1),
        nn.Flatten(),
        nn.LayerNorm(WIDTH),
        nn.Linear(WIDTH, 4),
    )
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.copy_(torch.randn(parameter.shape))
    for _ in range(3):
        model(torch.randn(8, 3, 6, 6) + 1)
    return coded(model).eval()


def coded(model: nn.Sequential) -> nn.Sequential:
    encode_weight(model[0], Quantized(torch.randn(4), torch.randint(4, (model[0].weight.numel(),))))
    return model


def task_of(model: Callable[[], nn.Module], x: Tensor, y: Tensor) -> ac.Task:
    return ac.Task(model=model, train=DataLoader(TensorDataset(x, y), batch_size=16))


@pytest.fixture
def task() -> ac.Task:
    return task_of(network, torch.randn(32, 3, 6, 6), torch.randint(4, (32,)))


def vectors(model: nn.Module) -> dict[str, Tensor]:
    return {name: p.detach().clone() for name, p in model.named_parameters() if p.dim() == 1}


def has_half_precision(numbers: Tensor) -> bool:
    numbers = numbers.detach()
    return torch.allclose(numbers.half().to(numbers.dtype), numbers, 1e-5, 1e-6 * float(numbers.abs().max()))


def test_vectors_are_rounded_and_of_a_batch_norm_what_its_file_holds(task: ac.Task) -> None:
    model = network()
    expected = model(torch.ones(2, 3, 6, 6))
    rounded = round_vectors(model, task)
    assert sorted(rounded) == sorted(vectors(model))
    norm = model[1]
    scale = norm.weight.double() / (norm.running_var.double() + norm.eps).sqrt()
    assert not has_half_precision(norm.weight)
    for numbers in (scale, norm.bias.double() - scale * norm.running_mean, model[5].weight, model[6].bias):
        assert has_half_precision(numbers)
    difference = (model(torch.ones(2, 3, 6, 6)) - expected).abs().max() / expected.abs().max()
    assert 0 < difference < 5e-3
    assert all(parameter.dtype == torch.float32 for parameter in model.parameters())


def test_what_was_rounded_is_stored_as_halves_and_computes_the_same(task: ac.Task, tmp_path: Path) -> None:
    model, x = network(), torch.randn(5, 3, 6, 6)
    export_program(model, x[:2], tmp_path / "floats.pt2")
    round_vectors(model, task)
    export_program(model, x[:2], tmp_path / "halves.pt2")
    stored = load_module(tmp_path / "halves.pt2").state_dict()
    # Levels, two of the batch norm, two of the other norm, and the last layer's bias.
    assert stored["halves"].shape == (4 + 4 * WIDTH + 4,)
    assert {name for name, tensor in stored.items() if tensor.dtype == torch.float32} == {"6.weight"}
    with torch.no_grad():
        assert torch.allclose(load_program(tmp_path / "halves.pt2")(x), model(x), rtol=1e-5, atol=1e-5)
    sizes = [tensor_bytes(tmp_path / f"{name}.pt2") for name in ("floats", "halves")]
    assert sizes[1] < sizes[0] - WIDTH
    assert least_tensor_bytes(model) <= sizes[1]
    assert (tmp_path / "halves.pt2").stat().st_size < (tmp_path / "floats.pt2").stat().st_size - WIDTH


def test_a_buffer_of_that_name_keeps_it_and_empty_ones_stay(task: ac.Task, tmp_path: Path) -> None:
    class Own(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.inner = network()
            self.register_buffer("halves", torch.full((4,), 3.1))
            self.empty = nn.Parameter(torch.empty(0))

        def forward(self, x: Tensor) -> Tensor:
            return self.inner(x) + self.halves + self.empty.sum()

    model, x = Own().eval(), torch.randn(2, 3, 6, 6)
    round_vectors(model, task)
    export_program(model, x, tmp_path / "model.pt2")
    assert {"halves", "halves_1"} <= load_module(tmp_path / "model.pt2").state_dict().keys()
    with torch.no_grad():
        assert torch.allclose(load_program(tmp_path / "model.pt2")(x), model(x), rtol=1e-5, atol=1e-5)


def test_frozen_and_excluded_layers_stay(task: ac.Task) -> None:
    model = network()
    model[5].requires_grad_(False)
    before = vectors(model)
    limits = replace(task, model=lambda: model).limits_of(model)
    assert limits.why_layer("5") is not None
    rounded = round_vectors(model, replace(task, limits=limits))
    assert not any(name.startswith("5.") for name in rounded)
    assert "6.bias" in rounded
    after = vectors(model)
    changed = {name for name in before if not torch.equal(before[name], after[name])}
    assert not changed & {"5.weight", "5.bias"}


def test_models_without_codes_stay(task: ac.Task) -> None:
    model = nn.Sequential(nn.Flatten(), nn.Linear(108, 4)).eval()
    before = vectors(model)
    assert round_vectors(model, task) == []
    assert all(torch.equal(before[name], after) for name, after in vectors(model).items())


def test_outputs_that_vary_little_around_a_large_number_keep_their_floats() -> None:
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(8, 32), nn.ReLU(), nn.Linear(32, 1))
    with torch.no_grad():
        model[2].bias.fill_(5001.3)
    coded(model).eval()
    before = copy.deepcopy(model)
    x = torch.randn(32, 8)
    task = task_of(lambda: model, x, torch.randn(32, 1) + 5000)
    assert round_vectors(model, replace(task, loss=nn.MSELoss())) == []
    assert all(torch.equal(a, b) for a, b in zip(model.parameters(), before.parameters(), strict=True))


def test_each_of_several_outputs_counts() -> None:
    class Two(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.inner, self.offset = network(), nn.Parameter(torch.full((1,), 5001.3))

        def forward(self, x: Tensor) -> dict[str, Tensor]:
            y = self.inner(x)
            return {"logits": y, "values": y[:, :1] + self.offset}

    model = Two().eval()
    task = task_of(lambda: model, torch.randn(32, 3, 6, 6), torch.randint(4, (32,)))
    assert round_vectors(model, task) == []
    with torch.no_grad():
        model.offset.fill_(5.0)
    assert "offset" in round_vectors(model, task)


def test_numbers_that_half_precision_cannot_hold_keep_their_floats(task: ac.Task) -> None:
    model = network()
    with torch.no_grad():
        model[6].bias.fill_(1e6)
    assert round_vectors(model, task) == []


def test_a_compressed_model_is_its_file_and_trains_on(task: ac.Task, tmp_path: Path) -> None:
    def plain() -> nn.Sequential:
        return nn.Sequential(
            nn.Conv2d(3, 128, 3, bias=False), nn.BatchNorm2d(128), nn.ReLU(), nn.AdaptiveAvgPool2d(1),
            nn.Flatten(), nn.Linear(128, 4),
        )  # fmt: skip

    torch.manual_seed(0)
    wide = replace(task, model=plain).with_recipe(epochs=2)
    done = ac.compress(plain(), wide, ac.Lc(schemes={"*": ac.Codebook(k=4)}))
    path, x = done.export(tmp_path / "model.pt2"), torch.randn(4, 3, 6, 6)
    assert "halves" in load_module(path).state_dict()
    with torch.no_grad():
        assert torch.allclose(load_program(path)(x), done.model.eval()(x), rtol=1e-4, atol=1e-5)
    before = vectors(done.model)
    loss = done.model.train()(x).square().sum()
    loss.backward()
    torch.optim.SGD(done.model.parameters(), 0.1).step()
    assert any(not torch.equal(before[name], after) for name, after in vectors(done.model).items())
