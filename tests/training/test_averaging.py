"""Averages of weights: what a training ends with, and what a rung sees of it."""

from __future__ import annotations

import copy
from dataclasses import replace
from pathlib import Path

import numpy as np
import torch
from safetensors.torch import load_file
from torch import nn

import autocompress as ac
from autocompress.methods.base import Session
from autocompress.training.averaging import Averaging
from autocompress.training.loop import Trainer, reestimate_batch_norm
from autocompress.trial import Measuring, train_reference


def test_an_average_is_that_of_the_weights_after_each_step_and_follows_soon() -> None:
    model = nn.Linear(1, 1, bias=False)
    nn.init.zeros_(model.weight)
    averaging, wanted = Averaging(model, 0.3), 0.0
    for update, value in enumerate((1.0, 2.0, 4.0, 8.0, 16.0, 32.0), 1):
        nn.init.constant_(model.weight, value)
        averaging.after_step(update / 6)
        decay = min(0.3, update / (9 + update))
        wanted = decay * wanted + (1 - decay) * value
    finished = averaging.finish()
    assert finished.model is model
    assert np.isclose(model.weight.item(), wanted)


def test_frozen_weights_and_codes_are_not_averaged() -> None:
    model = nn.Linear(2, 2)
    model.bias.requires_grad_(False)
    model.register_buffer("codes", torch.tensor([3, 250], dtype=torch.uint8))
    averaging = Averaging(model, 0.9)
    bias = model.bias.clone()
    for _ in range(20):
        averaging.after_step(1.0)
    averaging.finish()
    assert torch.equal(model.bias, bias)
    assert model.codes.tolist() == [3, 250]


def test_a_training_ends_with_the_average_and_its_own_batch_norm_statistics(residual_task: ac.Task) -> None:
    task = replace(residual_task, train=replace(residual_task.train, shuffle=False))
    live: list[list[torch.Tensor]] = []

    def watch(epoch: int, session: Session) -> dict[str, float]:
        live.append([p.detach().clone() for p in session.model.parameters()])
        return {}

    trained = []
    for decay in (0.0, 0.9):
        torch.manual_seed(0)
        Trainer(task.with_recipe(ema=decay), 2, watch=watch).fit(model := task.model(), 2)
        trained.append(model)
    plain, averaged = trained
    # Training itself is the same; what it ends with is not.
    assert all(map(torch.equal, live[1], live[3]))
    assert not torch.equal(plain.head.weight, averaged.head.weight)
    again = task.model()
    again.load_state_dict(averaged.state_dict())
    reestimate_batch_norm(again, task, 50)
    assert torch.equal(again.norm.running_mean, averaged.norm.running_mean)


def test_a_method_is_not_averaged_and_what_follows_it_is(residual_task: ac.Task) -> None:
    task = residual_task.with_recipe(ema=0.9)
    sessions: list[type[Session]] = []

    def watch(epoch: int, session: Session) -> dict[str, float]:
        sessions.append(type(session))
        return {}

    trainer = Trainer(task, 2, watch=watch)
    session = ac.Alcn().start(task.model(), task)
    trainer.fit(session.model, 1, session)
    trainer.fit(session.finish().model, 1)
    assert sessions == [type(session), Averaging]


def test_what_is_stored_of_the_reference_is_its_average(residual_task: ac.Task, tmp_path: Path) -> None:
    weights = []
    for decay in (0.0, 0.9):
        task = residual_task.with_recipe(ema=decay, epochs=1)
        path = train_reference(task, tmp_path / str(decay), Measuring()).path
        weights.append(load_file(path / "weights.safetensors")["head.weight"])
    assert not torch.equal(*weights)


def test_a_rung_sees_the_average_and_leaves_the_weights(residual_task: ac.Task) -> None:
    model = residual_task.model()
    averaging = Averaging(model, 0.9)
    averaging.after_step(0.5)
    nn.init.ones_(model.head.weight)
    twin = copy.deepcopy(averaging).finish().model
    assert not torch.equal(twin.head.weight, model.head.weight)
    assert (model.head.weight == 1).all()
