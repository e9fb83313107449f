"""Weights are levels while they train, and gradients move what they stand for."""

from __future__ import annotations

import copy

import pytest
import torch
from torch import Tensor, nn

import autocompress as ac
from autocompress.errors import DivergedError
from autocompress.methods.lc import Lc, Scheme
from autocompress.methods.lc.session import LcSession
from autocompress.methods.lc.straight_through import Hidden
from autocompress.training.loop import Trainer
from autocompress.weights.encodings import Quantized


@pytest.fixture
def task() -> ac.Task:
    """Which of two sums is the greater."""
    generator = torch.Generator().manual_seed(0)
    x = torch.randn(256, 8, generator=generator)
    y = (x[:, :4].sum(1) > x[:, 4:].sum(1)).long()
    batches = torch.utils.data.DataLoader(torch.utils.data.TensorDataset(x, y), batch_size=32, shuffle=True)
    return ac.Task(model=network, train=batches, val=batches, recipe=ac.Recipe(epochs=4, lr=0.02))


def network() -> nn.Module:
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(8, 32), nn.ReLU(), nn.Linear(32, 2))


def session(task: ac.Task, scheme: Scheme, layers: str | tuple[str, ...] = "*") -> LcSession:
    return Lc(schemes={layers: scheme}, straight_through=True, steps=4, spacing=1).start(task.model(), task)


def test_small_steps_add_up_until_a_number_has_another_level() -> None:
    numbers = torch.tensor([-1.1, -0.9, 0.1, 0.9, 1.2])
    encoding = Quantized(torch.tensor([0.0, 1.0, -1.0]), torch.tensor([2, 2, 0, 1, 1]))
    hidden = Hidden(numbers, encoding, encoding.dense())
    step = torch.tensor([0.0, 0.3, 0.0, 0.0, -0.3])
    # Half-way between −0.9 and 0.1 is −0.4, between 0.1 and 0.9 0.5.
    assert hidden.follow(encoding.dense() + step).codes.tolist() == [2, 2, 0, 1, 1]
    assert hidden.follow(encoding.dense() + step).codes.tolist() == [2, 0, 0, 1, 1]
    hidden.shown = hidden.encoding.dense()
    assert hidden.follow(hidden.shown + step).codes.tolist() == [2, 0, 0, 1, 0]


@pytest.mark.parametrize("scheme", [ac.Codebook(k=3), ac.Ternary(), ac.EntropyCodebook(bits=1.0, k=5)])
@pytest.mark.parametrize("layers", ["*", ("0", "2")])
def test_the_model_computes_with_levels_at_all_times(
    task: ac.Task, scheme: Scheme, layers: str | tuple[str, ...]
) -> None:
    training = session(task, scheme, layers)
    most = 5 if isinstance(scheme, ac.EntropyCodebook) else 3
    assert training.penalty() == 0

    def levels() -> int:
        weights = [training.model[place].weight.flatten() for place in (0, 2)]
        return max(len(part.unique()) for part in ([torch.cat(weights)] if layers != "*" else weights))

    optimizer = torch.optim.SGD(training.model.parameters(), lr=0.5)
    for number, (x, y) in enumerate(task.train, 1):
        assert levels() <= most
        nn.functional.cross_entropy(training.model(x), y).backward()
        optimizer.step()
        optimizer.zero_grad()
        training.after_step(number / len(task.train))
    twin = copy.deepcopy(training).finish()
    done = training.finish()
    x = torch.randn(4, 8)
    assert torch.allclose(done.model(x), done.expected(x), atol=1e-5)
    assert torch.equal(done.model(x), twin.model(x))


def test_it_learns_at_the_levels(task: ac.Task) -> None:
    """One bit for each weight, from weights that were not trained."""

    @torch.no_grad()
    def loss(model: nn.Module) -> float:
        batches = [(model(x), y) for x, y in task.train]
        outputs, targets = (torch.cat(part) for part in zip(*batches, strict=True))
        return float(nn.functional.cross_entropy(outputs, targets))

    training = session(task, ac.ScaledBinary())
    before = loss(training.model)
    Trainer(task, 4).fit(training.model, 4, training)
    assert loss(training.finish().model) < 0.5 * before


def test_what_has_no_levels_is_pulled_by_a_penalty(task: ac.Task) -> None:
    schemes = {"0": ac.PruneL0(keep=0.2), "2": ac.Codebook(k=2)}
    training = Lc(schemes=schemes, straight_through=True).start(task.model(), task)
    assert [constraint.hidden is None for constraint in training.compressions] == [True, False]
    assert training.penalty() > 0


def test_numbers_that_are_not_finite_are_named(task: ac.Task) -> None:
    training = session(task, ac.Codebook(k=2))
    with torch.no_grad():
        weight: Tensor = training.model[0].weight
        weight.fill_(torch.inf)
    with pytest.raises(DivergedError, match=r"the weights of 0 became NaN or infinite"):
        training.after_step(1.0)
