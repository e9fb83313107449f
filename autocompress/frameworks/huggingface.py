"""`from_transformers`: a task of a Hugging Face model and its data set of rows by name."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Mapping
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.utils.data import DataLoader

from autocompress.errors import TaskError
from autocompress.frameworks.copies import Copies
from autocompress.task import Recipe, Task
from autocompress.task.batches import TARGET_NAMES

# What the names of model classes end with → what they are judged by.
_OF_ROWS = ("ForSequenceClassification", "ForImageClassification", "ForAudioClassification")
_OF_TOKENS = ("ForTokenClassification", "ForMaskedLM")
_OF_NEXT_TOKENS = ("ForCausalLM", "LMHeadModel")


def from_transformers(
    model: Any,
    train: Any,
    val: Any = None,
    test: Any = None,
    *,
    tokenizer: Any = None,
    collate: Callable[[list[Any]], Any] | None = None,
    batch_size: int = 16,
    recipe: Recipe | None = None,
    trained: bool = True,
    **options: Any,
) -> Task:
    """A task of a Hugging Face model that classifies rows or tokens, predicts numbers, or models language.

    The loss is computed from the logits, as the model's own is, so that it serves graphs of the model's class
    too. Of a batch the model is called with what its `forward` names, but for the labels. Outputs that are
    classes of tokens reach metrics as `(N, classes, tokens)`, those of next tokens beside the labels that
    follow.

    Args:
        model: a `PreTrainedModel` with a head; not changed.
        train: data set of mappings, with labels, as `datasets.Dataset`; or a `DataLoader` of such batches.
        val: batches that candidates are compared on, as `train`.
        test: that the final front alone is reported on, as `train`.
        tokenizer: pads the rows of a batch to one length; None takes them to be of one length.
        collate: makes a batch of rows in its place.
        batch_size: of loaders that are made.
        recipe: how it is trained.
        trained: whether the model's weights are the reference's as they are; otherwise the reference is
            trained from them, once per run, as a head must be that is new.
        options: further arguments of `Task`, such as `metrics`, `loss`, `inputs` or `name`.

    Raises:
        TaskError: the model is of a kind whose loss is not known, and none is given.
    """
    if not isinstance(model, nn.Module) or not hasattr(model, "config"):
        raise TaskError(f"model must be a Hugging Face model but is a {type(model).__name__}.")
    kind = type(model).__name__
    made = _judged_by(model) if "loss" not in options and "step" not in options else {}
    names = tuple(name for name in inspect.signature(model.forward).parameters if name not in TARGET_NAMES)
    copies = Copies(model)
    loaded = {
        name: _loader(split, collate or _collator(tokenizer), batch_size, shuffle=name == "train")
        for name, split in (("train", train), ("val", val), ("test", test))
        if split is not None
    }
    made |= {"inputs": Named(names), "name": kind.lower(), "model_name": kind, **loaded}
    made |= {"weights": copies.model if trained else None, "recipe": recipe or Recipe()}
    return Task(model=copies, **{**made, **options})


def _judged_by(model: Any) -> dict[str, Any]:
    """Loss, and what it and metrics see, for the kind of a model."""
    kind, config = type(model).__name__, model.config
    if kind.endswith(_OF_TOKENS):
        return {"loss": TokenLoss(), "outputs": classes_first}
    if kind.endswith(_OF_NEXT_TOKENS):
        return {"loss": TokenLoss(), "outputs": classes_first, "targets": following}
    if not kind.endswith(_OF_ROWS):
        raise TaskError(
            f"loss must be given for a {kind}: loss(logits, labels), or a step that calls the model with its "
            "labels."
        )
    problem = getattr(config, "problem_type", None)
    if problem == "multi_label_classification":
        return {"loss": nn.BCEWithLogitsLoss()}
    if problem == "regression" or config.num_labels == 1:
        return {"loss": NumberLoss()}
    return {"loss": LabelLoss(), "classes": _class_names(config)}


def _class_names(config: Any) -> list[str] | None:
    """The names that a configuration has of its labels; None where it has none of its own."""
    names = [str(config.id2label.get(label, "")) for label in range(config.num_labels)]
    placeholders = [f"LABEL_{label}" for label in range(config.num_labels)]
    return None if names == placeholders or "" in names else names


def _collator(tokenizer: Any) -> Callable[[list[Any]], Any]:
    from transformers import DataCollatorWithPadding, default_data_collator

    collate: Callable[[list[Any]], Any] = default_data_collator
    return collate if tokenizer is None else DataCollatorWithPadding(tokenizer)


def _loader(split: Any, collate: Callable[[list[Any]], Any], batch_size: int, shuffle: bool) -> Any:
    """Batches of a data set; loaders and functions that make them as they are."""
    if callable(split) or not hasattr(split, "__getitem__") or isinstance(split, (list, tuple)):
        return split
    return DataLoader(split, batch_size, shuffle=shuffle, collate_fn=collate)


class Named:
    """What of a batch a model is called with, by name; a class, because closures have no name.

    Args:
        names: of its arguments, without labels.
    """

    def __init__(self, names: tuple[str, ...]) -> None:
        self.names = names

    def __call__(self, batch: Mapping[str, Any]) -> dict[str, Any]:
        """The entries of these names."""
        return {name: value for name, value in batch.items() if name in self.names}


class LabelLoss(nn.CrossEntropyLoss):
    """Cross entropy of one label a row."""

    def forward(self, logits: Tensor, labels: Tensor) -> Tensor:
        """Refuse labels of several classes, which cross entropy would take for their probabilities."""
        if labels.is_floating_point():
            raise ValueError(
                "labels of several classes at once need config.problem_type = 'multi_label_classification'"
            )
        return super().forward(logits, labels)


class NumberLoss(nn.Module):
    """Mean squared error of one number a row, or of several."""

    def forward(self, logits: Tensor, labels: Tensor) -> Tensor:
        """The error of `(N, numbers)` and `(N,)` or `(N, numbers)`."""
        return F.mse_loss(logits.reshape(labels.shape), labels.to(logits.dtype))


class TokenLoss(nn.Module):
    """Cross entropy of a class for each token, but for those that are labelled −100."""

    ignore_index = -100

    def forward(self, logits: Tensor, labels: Tensor) -> Tensor:
        """The mean over the tokens of `(N, tokens, classes)` and `(N, tokens)`."""
        # Of other shapes it would be the cross entropy of classes in the second dimension.
        rows, tokens, classes = logits.shape
        return F.cross_entropy(logits.reshape(rows * tokens, classes), labels.reshape(rows * tokens))


def classes_first(outputs: Any) -> Tensor:
    """`(N, tokens, classes)` → `(N, classes, tokens)`, as metrics take them."""
    logits: Tensor = outputs.logits
    return logits.transpose(1, 2)


def following(batch: Mapping[str, Any]) -> Tensor:
    """The token that follows each; none follows the last."""
    labels: Tensor = batch["labels"]
    return torch.cat([labels[:, 1:], torch.full_like(labels[:, :1], TokenLoss.ignore_index)], 1)
