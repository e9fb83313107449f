"""Losses with tensors of their own: copied, trained along, and handed on."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from functools import partial
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file
from torch import Tensor, nn

import autocompress as ac
from autocompress.checkpoint.store import LOSS, open_checkpoint
from autocompress.engine.identity import identity
from autocompress.engine.prepare import prepare
from autocompress.engine.settings import Settings
from autocompress.errors import TaskError
from autocompress.task.criterion import changed_tensors, load_changed, own_copy, trained_parameters
from autocompress.training.loop import Trainer
from autocompress.trial import Measuring, Reference, TrialConfig, run_trial, train_reference
from tests.conftest import Residual


class Margin(nn.Module):
    """A cosine margin head with classes of its own, a frozen projection, and a count of its batches."""

    def __init__(self) -> None:
        super().__init__()
        self.classes = nn.Parameter(torch.randn(5, 5, generator=torch.Generator().manual_seed(3)))
        self.frozen = nn.Parameter(torch.eye(5), requires_grad=False)
        self.register_buffer("batches", torch.zeros((), dtype=torch.long))

    def forward(self, outputs: Tensor, targets: Tensor) -> Tensor:
        self.batches += 1
        outputs, classes = (nn.functional.normalize(x, dim=1) for x in (outputs @ self.frozen, self.classes))
        return nn.functional.cross_entropy(8 * outputs @ classes.T, targets)


@pytest.fixture
def task(residual_task: ac.Task) -> ac.Task:
    norm = {"norm": lambda outputs, targets: float(outputs.norm())}
    return replace(residual_task, loss=Margin(), metrics=norm).with_recipe(epochs=1)


def test_functions_are_used_as_they_are_and_objects_in_copies() -> None:
    class Counted:
        def __init__(self) -> None:
            self.calls = 0

        def loss(self, outputs: Tensor, targets: Tensor) -> Tensor:
            self.calls += 1
            return outputs.mean()

    counted, weighted = Counted(), nn.CrossEntropyLoss(weight=torch.ones(5))
    own_copy(counted.loss)(torch.ones(2), torch.ones(2))
    assert counted.calls == 0
    assert own_copy(weighted) is not weighted
    assert own_copy(torch.nn.functional.mse_loss) is torch.nn.functional.mse_loss
    assert trained_parameters(weighted) == trained_parameters(torch.nn.functional.mse_loss) == {}
    with pytest.raises(TaskError, match=r"^loss and step must be copyable, one for each training, but: Type"):
        own_copy(partial(torch.nn.functional.mse_loss, reduction=(n for n in "mean")))


def test_only_what_training_changed_is_handed_on() -> None:
    given = Margin()
    trained = own_copy(given)
    trained(torch.randn(4, 5), torch.zeros(4, dtype=torch.long))
    assert changed_tensors(given, trained).keys() == {"batches"}
    with torch.no_grad():
        trained.classes += 1
    changed = changed_tensors(given, trained)
    assert changed.keys() == {"batches", "classes"}
    load_changed(another := Margin(), changed)
    assert torch.equal(another.classes, trained.classes)
    assert given.batches == 0
    assert changed_tensors(nn.functional.mse_loss, nn.functional.mse_loss) == {}


def test_a_training_trains_the_loss_along_and_leaves_the_users_own(task: ac.Task) -> None:
    trainer, before = Trainer(task, 2), task.loss.classes.clone()
    trainer.fit(model := task.model(), 1)
    first = trainer.criterion.classes.clone()
    trainer.fit(model, 1)
    assert not torch.equal(first, before)
    assert not torch.equal(first, trainer.criterion.classes)
    assert torch.equal(task.loss.classes, before)
    assert torch.equal(trainer.criterion.frozen, torch.eye(5))
    assert (trainer.criterion.batches, task.loss.batches) == (6, 0)


def test_the_norm_that_is_clipped_is_that_of_the_loss_too(task: ac.Task) -> None:
    task = replace(task, train=list(task.train)[:1])
    task = task.with_recipe(
        optimizer="sgd", momentum=0.0, weight_decay=0.0, warmup=0.0, lr=1.0, grad_clip=0.01
    )
    trainer, model = Trainer(task, 1), task.model()
    before = [p.detach().clone() for p in (*model.parameters(), task.loss.classes)]
    trainer.fit(model, 1)
    after = [p.detach() for p in (*model.parameters(), trainer.criterion.classes)]
    moved = torch.cat([(a - b).flatten() for a, b in zip(after, before, strict=True)])
    assert moved.norm() == pytest.approx(0.01, rel=1e-3)


def test_compress_trains_the_users_own_along_with_the_model(task: ac.Task) -> None:
    before = task.loss.classes.clone()
    ac.compress(task.model(), task, ac.Alcn(initial_ratio=0.5))
    assert not torch.equal(task.loss.classes, before)
    assert isinstance(task.loss.classes, nn.Parameter)


def test_trials_begin_where_the_loss_of_their_parent_ended(task: ac.Task, tmp_path: Path) -> None:
    begun: list[Mapping[str, Tensor]] = []

    class Recorded(Margin):
        def forward(self, outputs: Tensor, targets: Tensor) -> Tensor:
            if self.training and outputs.requires_grad:
                begun.append({name: t.detach().clone() for name, t in self.state_dict().items()})
            return super().forward(outputs, targets)

    task = replace(task, loss=Recorded())
    measuring, trials = Measuring(("norm", "bytes")), tmp_path / "trials"
    stored = train_reference(task, tmp_path / "reference", measuring)
    reference = Reference.of(stored, task.model())
    of_reference = load_file(stored.path / LOSS)
    assert of_reference.keys() == {"batches", "classes"}
    for number, parent in ((1, 0), (2, 1)):
        begun.clear()
        config = TrialConfig(parent=parent, epochs=1)
        run_trial(task, reference, config, trials / f"{number:04d}", measuring, trials=trials)
        wanted = of_reference if parent == 0 else load_file(trials / "0001" / LOSS)
        assert all(torch.equal(begun[0][name], tensor) for name, tensor in wanted.items())
    assert LOSS in open_checkpoint(trials / "0002").manifest["sha256"]


def test_parameters_that_a_loss_uses_and_nobody_trains_are_refused(task: ac.Task) -> None:
    head = Margin()
    for loss in (lambda outputs, targets: head(outputs, targets), head.forward):
        with pytest.raises(
            TaskError, match=r"^loss must be an nn.Module where it has parameters to train bu"
        ):
            prepare(replace(task, loss=loss), Settings(objectives=("bytes",)))
    head.requires_grad_(False)
    prepare(replace(task, loss=head.forward), Settings(objectives=("bytes",)))


def test_what_a_loss_begins_with_is_no_other_run_and_a_trained_one_is(task: ac.Task) -> None:
    def loss_digest(values: float, frozen: float = 1.0, **changes: object) -> str:
        loss = Margin()
        nn.init.constant_(loss.classes, values)
        nn.init.constant_(loss.frozen, frozen)
        prepared = prepare(replace(task, loss=loss, **changes), Settings(objectives=("bytes",)))
        digest = identity(prepared)["digests"]["loss"]
        assert torch.equal(loss.classes, torch.full((5, 5), values))
        return str(digest)

    weights = Residual().state_dict()
    assert loss_digest(0.5) == loss_digest(0.25)
    assert loss_digest(0.5) != loss_digest(0.5, frozen=2.0)
    assert loss_digest(0.5, weights=weights) != loss_digest(0.25, weights=weights)
