"""What is wrong with a task, found before any training."""

from __future__ import annotations

import copy
import sys
from collections.abc import Iterable, Iterator, Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils import _pytree as pytree
from torch.utils.data import BatchSampler, Dataset, IterableDataset

from autocompress.errors import TaskError, one_line
from autocompress.task.criterion import leaves_of, own_copy, trained_parameters
from autocompress.task.inputs import Inputs, call, described, rows, runs_over_batch, shapes, take, tensors
from autocompress.task.losses import ignored_label
from autocompress.task.opening import described_split, is_function, length_of
from autocompress.task.ready import ready
from autocompress.task.task import SPLITS, Task


def make_model(task: Task) -> nn.Module:
    """A new model of the task, on the CPU.

    Raises:
        TaskError: `model` does not make one.
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
    if any(parameter.device.type not in ("cpu", "meta") for parameter in model.parameters()):
        model.to("cpu")
    return ready(model, task.example)


def apply_prepare(task: Task, model: nn.Module) -> nn.Module:
    """What the task's `prepare` makes of a model, in the mode that the model was in.

    Args:
        task: which need not have one.
        model: with its weights; may be changed in place.

    Raises:
        TaskError: `prepare` fails, or gives no module.
    """
    if task.prepare is None:
        return model
    training = model.training
    try:
        result = task.prepare(model)
    except Exception as error:
        raise TaskError(
            f"prepare must take the model and return it prepared but: {one_line(error)}"
        ) from error
    if not isinstance(result, nn.Module):
        raise TaskError(f"prepare must return an nn.Module but returned {type(result).__name__}.")
    return result.train(training)


def called(function: Any) -> str:
    """What a user's function is called."""
    name: str = getattr(function, "__qualname__", type(function).__name__)
    return name


def fresh_model(task: Task) -> nn.Module:
    """A new model of the task, prepared by the user's own function: what checkpoints are rebuilt on.

    Raises:
        TaskError: `prepare` fails, or gives no module.
    """
    return apply_prepare(task, make_model(task))


def make_teacher(task: Task) -> nn.Module:
    """The task's own teacher in evaluation mode: a copy, or one that its function makes.

    Raises:
        TaskError: `teacher` is no module and makes none.
    """
    teacher = task.teacher
    if isinstance(teacher, nn.Module):
        return copy.deepcopy(teacher).eval()
    try:
        made = teacher() if callable(teacher) else teacher
    except Exception as error:
        raise TaskError(f"teacher could not be made: {one_line(error)}") from error
    if not isinstance(made, nn.Module):
        raise TaskError(f"teacher must be or make an nn.Module but got a {type(made).__name__}.")
    return made.eval()


def check_teacher(task: Task, outputs: Tensor) -> None:
    """Refuse a teacher of the task's own that no model of it can learn from.

    Args:
        task: of the teacher.
        outputs: that the model makes of the task's example.

    Raises:
        TaskError: the teacher fails on the example, or returns something else than the model does.
    """
    if task.teacher is None:
        return
    inputs, teacher = task.example(), make_teacher(task)
    try:
        with torch.no_grad():
            wanted = task.answer(call(teacher, inputs))
    except Exception as error:
        raise TaskError(
            f"teacher must accept inputs of shape {shapes(inputs)} as the model does "
            f"but its forward failed: {one_line(error)}"
        ) from error
    if wanted.shape != outputs.shape:
        raise TaskError(
            f"teacher must return what the model does, {tuple(outputs.shape)}, but returned "
            f"{tuple(wanted.shape)}."
        )


def check_forward(task: Task, model: nn.Module) -> Tensor:
    """Run two training inputs through the model and its loss, so that misfits show before training.

    A step of the task's own is tried where it can be taken.

    Returns:
        The model's answer, `(2, ...)`.

    Raises:
        TaskError: the data, the forward pass or the loss fails.
    """
    inputs = task.example()
    targets = _two_targets(task)
    try:
        with torch.no_grad():
            returned = call(model.eval(), inputs)
    except Exception as error:
        _refuse_fixed_batch(task, model, error)
        raise TaskError(
            f"model {task.model_name!r} must accept inputs of shape {shapes(inputs)} "
            f"but its forward failed: {one_line(error)}"
        ) from error
    outputs = task.answer(returned)
    if task.classes is not None and (outputs.dim() < 2 or outputs.shape[1] < len(task.classes)):
        raise TaskError(
            f"classes must name outputs of the model, which are of shape {tuple(outputs.shape)}, but are "
            f"{len(task.classes)} names."
        )
    if task.loss is None:
        return outputs
    criterion = own_copy(task.loss)
    # A copy, because what `torch.inference_mode` made can have no gradient.
    seen = outputs.detach().clone().requires_grad_(outputs.is_floating_point())
    if isinstance(criterion, nn.Module):
        criterion.to(seen.device)
    try:
        loss = criterion(seen, targets)
    except Exception as error:
        raise TaskError(
            f"loss must accept outputs {tuple(outputs.shape)} and targets {described(targets)} "
            f"but failed: {one_line(error)}"
        ) from error
    if not isinstance(loss, Tensor) or loss.numel() != 1:
        raise TaskError("loss must return a scalar tensor but did not (is its reduction 'none'?).")
    _refuse_no_classes(task, outputs, targets)
    if seen.requires_grad and not loss.requires_grad:
        raise TaskError("loss must have a gradient but what it returned does not depend on the outputs.")
    refuse_untrained("loss", loss, [seen, *trained_parameters(criterion).values()])
    return outputs


def _refuse_no_classes(task: Task, outputs: Tensor, targets: Any) -> None:
    """Refuse cross entropy, which is the default, where outputs or targets are of another kind of task."""
    other = (
        "(give a loss: torch.nn.functional.mse_loss for numbers, "
        "torch.nn.functional.binary_cross_entropy_with_logits for several labels, or yes and no)"
    )
    if not task.cross_entropy:
        return
    may_be_default = type(task.loss) is nn.CrossEntropyLoss
    # A loss of one's own may have its classes elsewhere, as those of tokens are.
    if outputs.dim() > 1 and outputs.shape[1] == 1 and (may_be_default or outputs.dim() == 2):
        raise TaskError(
            f"loss must not be cross entropy where the model has one output a row, {tuple(outputs.shape)}: "
            f"over one class it is always 0 {other}."
        )
    if may_be_default and isinstance(targets, Tensor) and targets.is_floating_point():
        sums = targets.sum(1 if targets.dim() > 1 else 0)
        if targets.min() < 0 or not torch.allclose(sums, torch.ones_like(sums), atol=1e-2):
            raise TaskError(
                "targets must be labels of classes, or the probability of each, for cross entropy, the "
                f"default loss, but are {described(targets)} of which a row sums to "
                f"{sums.flatten()[0]:.3g} {other}."
            )


def _two_targets(task: Task) -> Any:
    """The targets of the rows of `task.example()`."""
    batch = task.first_batch()
    targets = task.targets_of(batch)
    count = rows(task.inputs_of(batch))
    index = torch.arange(2) % count
    return pytree.tree_map_only(Tensor, lambda t: t[index] if runs_over_batch(t, count) else t, targets)


def _refuse_fixed_batch(task: Task, model: nn.Module, error: Exception) -> None:
    """Refuse a model that failed on two rows but runs on the whole first batch."""
    inputs = task.inputs_of(task.first_batch())
    try:
        with torch.no_grad():
            call(model, inputs)
    except Exception:
        # It is not the size: what it failed with on two rows tells why.
        return
    raise TaskError(
        f"model {task.model_name!r} must take batches of any size but runs on {rows(inputs)} rows alone: "
        f"{one_line(error)}"
    ) from error


def refuse_untrained(name: str, loss: Tensor, trained: Iterable[Tensor]) -> None:
    """Refuse a loss that depends on parameters which nobody would train.

    Args:
        name: of what the user gave.
        loss: that it returned, with its graph.
        trained: all that trains.

    Raises:
        TaskError: the graph ends in other tensors that require gradients.
    """
    known = {id(tensor) for tensor in trained}
    others = [leaf for leaf in leaves_of(loss) if id(leaf) not in known]
    if others:
        shapes = ", ".join(str(tuple(leaf.shape)) for leaf in others[:3])
        raise TaskError(
            f"{name} must be an nn.Module where it has parameters to train but uses {len(others)} of shape "
            f"{shapes} that are not its own (requires_grad_(False) says that they are not to be trained)."
        )


def check_splits(task: Task, names: Sequence[str] = SPLITS) -> None:
    """Refuse splits that do not yield batches, pass after pass, or may never end; nothing is drawn.

    Args:
        task: whose splits are looked at; those that are functions are left alone until it is opened.
        names: of the splits.

    Raises:
        TaskError: a split is an iterator or a data set; no length says what an epoch of `train` is; or that a
            pass over `val` or `test` has an end.
    """
    for name in names:
        split = getattr(task, name)
        if split is None or is_function(split):
            continue
        if isinstance(split, Iterator):
            raise TaskError(
                f"{name} must be iterable more than once but is a {type(split).__name__}, "
                "which is used up after once."
            )
        if _is_data_set(split):
            raise TaskError(
                f"{name} must yield batches but is a {type(split).__name__}, which holds rows "
                f"(wrap it: torch.utils.data.DataLoader({name}, batch_size=64))."
            )
        if name == "train":
            _ = task.batches_per_epoch
        elif length_of(split) is None:
            raise TaskError(
                f"{name} must have a length, as nothing else says that it ends, but is "
                f"{described_split(split)} without one (autocompress.FirstBatches({name}, 100) draws no more "
                "than its first 100 batches)."
            )


def _is_data_set(split: Any) -> bool:
    """Whether a split holds rows: a data set with an index, as those of PyTorch and Hugging Face are."""
    if isinstance(split, Dataset) and not isinstance(split, IterableDataset):
        return True
    # It takes seconds to import, and who has such data has imported it.
    hugging_face = getattr(sys.modules.get("datasets"), "Dataset", None)
    return isinstance(hugging_face, type) and isinstance(split, hugging_face)


def check_labels(task: Task, model: nn.Module) -> None:
    """Refuse class labels that the model has no output for, over every split.

    Raises:
        TaskError: a label is negative or not below the number of outputs.
    """
    if not task.cross_entropy:
        return
    with torch.no_grad():
        classes = task.answer(call(model.eval(), task.example())).shape[1]
    for split in ("train", "val", "test"):
        # An attribute `labels` may hold what the data set makes classes of when a row is drawn.
        labels = labels_of(getattr(task, split), ("targets",))
        if labels is None or labels.is_floating_point() or labels.dim() != 1 or len(labels) == 0:
            continue
        labels = labels[labels != ignored_label(task.loss)]
        low, high = (int(labels.min()), int(labels.max())) if len(labels) else (0, 0)
        if low < 0 or high >= classes:
            raise TaskError(
                f"labels of the {split} split must be in [0, {classes - 1}] "
                f"(the model has {classes} outputs) but range over [{low}, {high}]."
            )


def labels_of(batches: Any, attributes: Sequence[str] = ("targets", "labels")) -> Tensor | None:
    """All labels of a split where they can be had without loading its inputs.

    Args:
        batches: of a data set, which may be a subset of another one.
        attributes: of the data set that may hold them; else the last of a `TensorDataset`'s tensors.

    Returns:
        Numbers in the order of the data set; None where they are not known, are no numbers, or are changed
        when a row is drawn (`target_transform`).
    """
    return _labels_of_rows(getattr(batches, "dataset", batches), attributes)


def _labels_of_rows(dataset: Any, attributes: Sequence[str]) -> Tensor | None:
    if hasattr(dataset, "indices") and hasattr(dataset, "dataset"):
        labels = _labels_of_rows(dataset.dataset, attributes)
        return None if labels is None else labels[torch.as_tensor(dataset.indices)]
    if getattr(dataset, "target_transform", None) is not None:
        return None
    known = [getattr(dataset, name) for name in attributes if getattr(dataset, name, None) is not None]
    tensors = getattr(dataset, "tensors", None)
    if not known and isinstance(tensors, tuple) and len(tensors) >= 2:
        known = [tensors[-1]]
    if not known:
        return None
    try:
        labels = torch.as_tensor(known[0])
    except (TypeError, ValueError, RuntimeError):  # names of classes, boxes, masks of several sizes
        return None
    return labels if labels.dim() else None


def has_batch_of_one(batches: Any) -> bool:
    """Whether a batch of one row is among them, as far as that is known without drawing any."""
    if isinstance(batches, (list, tuple)):
        return any(tensors(batch) and rows(batch) == 1 for batch in batches)
    sampler = getattr(batches, "batch_sampler", None)
    if type(sampler) is not BatchSampler:
        return False
    if sampler.batch_size == 1:
        return True
    try:
        drawn = len(sampler.sampler)  # type: ignore[arg-type]
    except TypeError:  # a stream
        return False
    return not sampler.drop_last and drawn % sampler.batch_size == 1


def check_batches_of_one(task: Task, model: nn.Module) -> None:
    """Refuse batches of one row where the model cannot train on one, as batch norm over `(N, C)` cannot.

    Raises:
        TaskError: `train` has such a batch, and the model trains on two rows but not on one.
    """
    if not has_batch_of_one(task.train):
        return
    inputs = task.example()
    error = _training_error(model, take(inputs, slice(1)))
    if error is not None and _training_error(model, inputs) is None:
        raise TaskError(
            f"train must have no batch of one row where model {task.model_name!r} cannot train on one but it "
            f"has one (use drop_last=True or another batch_size): {one_line(error)}"
        )


def _training_error(model: nn.Module, inputs: Inputs) -> Exception | None:
    """What a copy of the model raises in training on inputs."""
    with torch.no_grad(), torch.random.fork_rng(devices=[]):
        try:
            call(copy.deepcopy(model).train(), inputs)
        except Exception as error:
            return error
    return None
