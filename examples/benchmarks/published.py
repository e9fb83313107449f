"""The published resnet20 for CIFAR-10 (91.7 % test accuracy), which several benchmarks start from."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

from torch import nn

import autocompress as ac
from autocompress.data import load_task, with_validation
from autocompress.measure import measure_split
from autocompress.task.pretrained import load_weights, read_weights
from autocompress.trial import seed_everything


def resnet20(root: str) -> ac.Task:
    """CIFAR-10 with a validation split, and the weights in ROOT/pretrained.

    Validation is carved from train although the weights have seen it: no benchmark chooses by it, and all
    report on the test split as published, not on half of it.
    """
    task, _ = with_validation(load_task("cifar10", model="resnet20", root=root))
    return replace(task, weights=read_weights(Path(root) / "pretrained" / "resnet20-12fca82f.th"))


def reference(task: ac.Task) -> nn.Module:
    """The task's model with its weights, if it has any; everything random starts anew."""
    seed_everything(0, task)
    model = task.model()
    if task.weights is not None:
        load_weights(model, task.weights)
    return model.eval()


def accuracy(model: nn.Module, task: ac.Task) -> float:
    """Of a model on the test split, in [0, 1]."""
    assert task.test is not None
    return measure_split(model.eval(), task.test, task).values["accuracy"]
