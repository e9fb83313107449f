"""What is wrong with a task, found before any training."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor, nn

from autocompress.errors import TaskError, one_line
from autocompress.losses import ignored_label
from autocompress.task import MetricFn, Task


def make_model(task: Task) -> nn.Module:
    """A new model of the task.

    Raises:
        TaskError: `model` does not make one, or one in half precision.
    """
    if isinstance(task.model, nn.Module):
        raise TaskError("model must be a function that makes a new nn.Module but is a module itself.")
    try:
        model = task.model()
    except Exception as error:
        raise TaskError(f"model {task.model_name!r} could not be made: {one_line(error)}") from error
    if not isinstance(model, nn.Module):
        raise TaskError(
            f"model {task.model_name!r} must make an nn.Module but made a {type(model).__name__}."
        )
    half = {p.dtype for p in model.parameters()} & {torch.float16, torch.bfloat16}
    if half:
        # Equality to 1e-4 could not be proven; `Recipe.mixed_precision` trains in bfloat16 all the same.
        raise TaskError(
            f"model {task.model_name!r} must hold parameters in single precision but has {half.pop()}."
        )
    return model


def check_forward(task: Task, model: nn.Module) -> Tensor:
    """Run two training inputs through the model and its loss, so that misfits show before training.

    Returns:
        The outputs, `(2, ...)`.

    Raises:
        TaskError: the data, the forward pass or the loss fails.
    """
    inputs = task.example()
    targets = next(iter(task.train))[1]
    targets = targets[torch.arange(2) % len(targets)]
    try:
        with torch.no_grad():
            outputs = model.eval()(inputs)
    except Exception as error:
        raise TaskError(
            f"model {task.model_name!r} must accept inputs of shape {tuple(inputs.shape)} "
            f"but its forward failed: {one_line(error)}"
        ) from error
    if not isinstance(outputs, Tensor):
        raise TaskError(
            f"model {task.model_name!r} must return one tensor but returned {type(outputs).__name__}."
        )
    try:
        loss = task.loss(outputs, targets)
    except Exception as error:
        raise TaskError(
            f"loss must accept outputs {tuple(outputs.shape)} and targets {tuple(targets.shape)} "
            f"but failed: {one_line(error)}"
        ) from error
    if not isinstance(loss, Tensor) or loss.numel() != 1:
        raise TaskError("loss must return a scalar tensor but did not (is its reduction 'none'?).")
    return outputs


def check_splits(task: Task) -> None:
    """Refuse splits that can be gone through but once; each is, every epoch and for every model.

    Raises:
        TaskError: a split is an iterator.
    """
    for name in ("train", "val", "test"):
        split = getattr(task, name)
        if split is not None and iter(split) is split:
            raise TaskError(
                f"{name} must be iterable more than once but is a {type(split).__name__}, "
                "which is used up after once."
            )


def check_metrics(task: Task, model: nn.Module, metrics: Mapping[str, MetricFn]) -> None:
    """Run the first batch of validation and test through the model and the metrics.

    Args:
        task: whose splits are tried.
        model: in evaluation.
        metrics: the task's, or the default ones.

    Raises:
        TaskError: a split is empty or does not suit the model, or a metric its outputs.
    """
    for split in ("val", "test"):
        batches = getattr(task, split)
        if batches is None:
            continue
        batch = next(iter(batches), None)
        if batch is None:
            raise TaskError(f"{split} must yield at least one batch but it is empty.")
        inputs, targets = batch
        try:
            with torch.no_grad():
                outputs = model.eval()(inputs).float()
        except Exception as error:
            raise TaskError(
                f"{split} must yield inputs for the model but its forward failed on "
                f"{tuple(inputs.shape)}: {one_line(error)}"
            ) from error
        if task.metrics is None and (
            outputs.dim() < 2 or outputs.shape[1] < 2 or targets.is_floating_point()
        ):
            raise TaskError(
                "metrics must be given where outputs are not (N, classes, ...) of two classes or more but "
                f"they are {tuple(outputs.shape)} and targets {targets.dtype} {tuple(targets.shape)}."
            )
        for name, metric in metrics.items():
            try:
                float(metric(outputs, targets))
            except Exception as error:
                raise TaskError(
                    f"metric {name!r} must accept outputs {tuple(outputs.shape)} and targets "
                    f"{tuple(targets.shape)} but failed: {one_line(error)}"
                ) from error


def check_labels(task: Task, model: nn.Module) -> None:
    """Refuse class labels that the model has no output for, over every split.

    Raises:
        TaskError: a label is negative or not below the number of outputs.
    """
    if not task.cross_entropy:
        return
    with torch.no_grad():
        classes = model.eval()(task.example()).shape[1]
    for split in ("train", "val", "test"):
        labels = _labels_of(getattr(task, split))
        if labels is None or labels.is_floating_point() or labels.dim() != 1 or len(labels) == 0:
            continue
        labels = labels[labels != ignored_label(task.loss)]
        low, high = (int(labels.min()), int(labels.max())) if len(labels) else (0, 0)
        if low < 0 or high >= classes:
            raise TaskError(
                f"labels of the {split} split must be in [0, {classes - 1}] "
                f"(the model has {classes} outputs) but range over [{low}, {high}]."
            )


def _labels_of(batches: Any) -> Tensor | None:
    """All labels of a split where they can be had without loading its inputs."""
    dataset = getattr(batches, "dataset", batches)
    index = None
    if hasattr(dataset, "indices") and hasattr(dataset, "dataset"):
        index, dataset = torch.as_tensor(dataset.indices), dataset.dataset
    if getattr(dataset, "target_transform", None) is not None:
        return None
    labels = getattr(dataset, "targets", None)
    tensors = getattr(dataset, "tensors", None)
    if labels is None and isinstance(tensors, tuple) and len(tensors) == 2:
        labels = tensors[1]
    if labels is None:
        return None
    labels = torch.as_tensor(labels)
    return labels if index is None or labels.dim() == 0 else labels[index]
