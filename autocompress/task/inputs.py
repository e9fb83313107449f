"""What a model is called with and what it returns: one tensor, or several in plain containers."""

from __future__ import annotations

import dataclasses
import inspect
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils import _pytree as pytree

from autocompress.errors import TaskError


@dataclass(frozen=True)
class Varying:
    """Inputs some of whose sizes vary beside the batch.

    Args:
        inputs: a tensor, a tuple of arguments or a mapping of keyword arguments.
        dynamic: of the same structure, with a mapping from dimension to a name or a `torch.export.Dim` in
            each tensor's place; what is missing is fixed.
    """

    inputs: Any
    dynamic: Any


pytree.register_pytree_node(
    Varying,
    lambda varying: ([varying.inputs], varying.dynamic),
    lambda children, dynamic: Varying(next(iter(children)), dynamic),
)

# What a model is called with: one tensor, a tuple of arguments, or a mapping of keyword arguments.
Inputs = Tensor | tuple[Any, ...] | Mapping[str, Any] | Varying


def arguments(inputs: Inputs) -> tuple[tuple[Any, ...], dict[str, Any]]:
    """The positional and the keyword arguments that a model is called with."""
    if isinstance(inputs, Varying):
        return arguments(inputs.inputs)
    if isinstance(inputs, Mapping):
        return (), dict(inputs)
    return (inputs if isinstance(inputs, tuple) else (inputs,)), {}


def call(model: Any, inputs: Inputs) -> Any:
    """Run a model; its outputs are a tensor, or tensors in tuples, lists and dictionaries.

    Args:
        model: a module or a function.
        inputs: where it is.
    """
    args, kwargs = arguments(inputs)
    return plain(model(*args, **kwargs))


class Returned(dict[str, Any]):
    """Outputs by name, which may be asked for as attributes and by their position too, as those of a Hugging
    Face model may."""

    def __getattr__(self, name: str) -> Any:
        try:
            return self[name]
        except KeyError as error:
            raise AttributeError(name) from error

    def __getitem__(self, name: Any) -> Any:
        return list(self.values())[name] if isinstance(name, (int, slice)) else super().__getitem__(name)


_NOTHING = object()


def plain(outputs: Any) -> Any:
    """Outputs without the classes of who made them: tensors in tuples, lists and dictionaries.

    What is no tensor, such as a cache of keys and values, is left out; so are names without one.
    """
    kept = _plain(outputs)
    return None if kept is _NOTHING else kept


def _plain(outputs: Any) -> Any:
    if isinstance(outputs, Tensor):
        return outputs
    if dataclasses.is_dataclass(outputs) and not isinstance(outputs, (type, Mapping)):
        outputs = {field.name: getattr(outputs, field.name) for field in dataclasses.fields(outputs)}
    if isinstance(outputs, Mapping):
        named = {str(name): _plain(value) for name, value in outputs.items()}
        kept = {name: value for name, value in named.items() if value is not _NOTHING}
        return kept or _NOTHING
    if isinstance(outputs, (tuple, list)):
        entries = [entry for entry in map(_plain, outputs) if entry is not _NOTHING]
        return type_of_sequence(outputs)(entries) if entries else _NOTHING
    return _NOTHING


def type_of_sequence(sequence: Sequence[Any]) -> type[tuple[Any, ...]] | type[list[Any]]:
    """`tuple`, also of a named one, or `list`."""
    return list if isinstance(sequence, list) else tuple


def returned(outputs: Any) -> Any:
    """Plain outputs as a user's own function may ask for them: those by name also as attributes."""
    return Returned(outputs) if isinstance(outputs, Mapping) else outputs


def tensors(tree: Any) -> list[Tensor]:
    """The tensors of inputs or outputs, in order."""
    return [leaf for leaf in pytree.tree_leaves(tree) if isinstance(leaf, Tensor)]


def leaves(inputs: Inputs) -> list[Any]:
    """What the placeholders of a model's graph stand for, in order; also what is no tensor."""
    return pytree.tree_leaves(arguments(inputs))


def answer(outputs: Any) -> Tensor:
    """The tensor that is a model's answer: its only output, `logits`, or the first of several.

    Raises:
        TaskError: there is no tensor among the outputs.
    """
    if isinstance(outputs, Tensor):
        return outputs
    logits = outputs.get("logits") if isinstance(outputs, Mapping) else getattr(outputs, "logits", None)
    if isinstance(logits, Tensor):
        return logits
    every = tensors(plain(outputs))
    if not every:
        raise TaskError(
            f"the model must return a tensor, or several in a tuple or a dict, but returned "
            f"{type(outputs).__name__}."
        )
    return every[0]


def moved(tree: Any, device: torch.device | str) -> Any:
    """Inputs or targets whose tensors are on a device; what else there is stays."""
    return pytree.tree_map_only(Tensor, lambda tensor: tensor.to(device, non_blocking=True), tree)


def device_of_inputs(inputs: Inputs) -> torch.device:
    """Where the first tensor is."""
    return tensors(inputs)[0].device


def rows(inputs: Inputs) -> int:
    """How many rows a batch of inputs has: the first dimension of its first tensor.

    Raises:
        TaskError: there is no tensor with a dimension.
    """
    for tensor in tensors(inputs):
        if tensor.dim():
            return len(tensor)
    raise TaskError("inputs must hold a tensor whose first dimension is the batch but hold none.")


def take(inputs: Any, index: Tensor | slice) -> Any:
    """Some rows of a batch; tensors that do not run over the batch stay.

    Args:
        inputs: of `rows(inputs)` rows.
        index: positions, or a slice.
    """
    count = rows(inputs)
    return pytree.tree_map_only(
        Tensor, lambda tensor: tensor[index] if runs_over_batch(tensor, count) else tensor, inputs
    )


def runs_over_batch(tensor: Tensor, count: int) -> bool:
    """Whether a tensor's first dimension is the batch of `count` rows."""
    return tensor.dim() > 0 and len(tensor) == count


def repeated_rows(inputs: Inputs, count: int) -> Any:
    """Exactly `count` rows: the first ones, from the beginning again where there are fewer."""
    return take(inputs, torch.arange(count) % rows(inputs))


def split_rows(inputs: Inputs, size: int) -> Iterator[Any]:
    """Parts of at most `size` rows, in order."""
    for start in range(0, rows(inputs), size):
        yield take(inputs, slice(start, start + size))


def concatenated(batches: Sequence[Any]) -> Any:
    """Batches of the first one's structure and sizes as one batch; those of other sizes are left out."""
    first = batches[0]
    alike = [batch for batch in batches if sizes(batch) == sizes(first)]
    counts = [rows(batch) for batch in alike]
    leaves = [pytree.tree_leaves(batch) for batch in alike]
    structure = pytree.tree_structure(first)
    merged = [
        torch.cat(same) if isinstance(same[0], Tensor) and runs_over_batch(same[0], counts[0]) else same[0]
        for same in map(list, zip(*leaves, strict=True))
    ]
    return pytree.tree_unflatten(merged, structure)


def sizes(inputs: Any) -> list[tuple[int, ...]]:
    """The shapes of a batch's tensors, those that run over the batch without it."""
    count = rows(inputs)
    return [
        tuple(tensor.shape[1:] if runs_over_batch(tensor, count) else tensor.shape)
        for tensor in tensors(inputs)
    ]


def shapes(inputs: Any) -> str:
    """The shapes of all tensors, for a message."""
    every = [str(tuple(tensor.shape)) for tensor in tensors(inputs)]
    return every[0] if len(every) == 1 else f"({', '.join(every)})"


def described(targets: Any) -> str:
    """What targets are, for a message: a tensor's shape, else the type."""
    return str(tuple(targets.shape)) if isinstance(targets, Tensor) else type(targets).__name__


def dynamic_shapes(model: nn.Module, inputs: Inputs, least: int) -> dict[str, Any]:
    """What `torch.export` is to know of sizes: the batch is free, and so are those that vary.

    Args:
        model: whose `forward` names the arguments.
        inputs: `(B, ...)` with B ≥ 2.
        least: of the batch sizes that must be taken.
    """
    batch, count = torch.export.Dim("batch", min=least), rows(inputs)

    def free(leaf: Any, dynamic: Any) -> Any:
        if not isinstance(leaf, Tensor):
            return None
        sized = {int(dim): _dimension(size) for dim, size in dict(dynamic or {}).items() if size is not None}
        return sized | ({0: batch} if runs_over_batch(leaf, count) else {})

    dynamic = inputs.dynamic if isinstance(inputs, Varying) else None
    args, kwargs = arguments(inputs)
    own_args, own_kwargs = _spread(dynamic, args, kwargs)
    free_args = tuple(_along(free, arg, own) for arg, own in zip(args, own_args, strict=True))
    free_kwargs = {name: _along(free, value, own_kwargs.get(name)) for name, value in kwargs.items()}
    bound: dict[str, Any] = dict(inspect.signature(model.forward).bind(*free_args, **free_kwargs).arguments)
    return bound


def _dimension(size: Any) -> Any:
    # PyTorch finds by itself which free sizes are equal, and multiples of what the model needs.
    return size if isinstance(size, type(torch.export.Dim("size"))) else torch.export.Dim.DYNAMIC


def _spread(dynamic: Any, args: tuple[Any, ...], kwargs: Mapping[str, Any]) -> tuple[Any, Mapping[str, Any]]:
    """The part of `dynamic` that is of each argument."""
    if not dynamic:
        return (None,) * len(args), {}
    if kwargs:
        return (), dynamic
    if isinstance(dynamic, Mapping):
        if len(args) > 1:
            raise TaskError(
                f"dynamic must be a tuple of {len(args)} entries, one for each input, but is a mapping."
            )
        return (dynamic,), {}
    if len(dynamic) != len(args):
        raise TaskError(f"dynamic must have an entry for each of {len(args)} inputs but has {len(dynamic)}.")
    return tuple(dynamic), {}


def _along(function: Any, value: Any, dynamic: Any) -> Any:
    """A function of each tensor of an argument and its part of `dynamic`."""
    if isinstance(value, Mapping):
        return {name: _along(function, part, (dynamic or {}).get(name)) for name, part in value.items()}
    if isinstance(value, (tuple, list)):
        parts = dynamic or [None] * len(value)
        return type_of_sequence(value)(
            _along(function, part, own) for part, own in zip(value, parts, strict=True)
        )
    return function(value, dynamic)


def to_json(inputs: Inputs) -> dict[str, Any]:
    """Inputs as JSON-able data, without their numbers, of which `from_json` makes inputs again."""
    payload = inputs.inputs if isinstance(inputs, Varying) else inputs
    data = {"structure": _described(payload, rows(payload))}
    return data | ({"dynamic": _named(inputs.dynamic)} if isinstance(inputs, Varying) else {})


def _described(value: Any, count: int) -> Any:
    if isinstance(value, Tensor):
        shape = [None, *value.shape[1:]] if runs_over_batch(value, count) else [*value.shape]
        # A number that is there is surely one that the model takes, as an embedding's index must be.
        fill = 0 if value.is_floating_point() or not value.numel() else int(value.flatten()[0])
        return {"tensor": {"shape": shape, "dtype": str(value.dtype).removeprefix("torch."), "fill": fill}}
    if isinstance(value, Mapping):
        return {"mapping": {name: _described(part, count) for name, part in value.items()}}
    if isinstance(value, (tuple, list)):
        kind = "list" if isinstance(value, list) else "tuple"
        return {kind: [_described(part, count) for part in value]}
    return {"value": value}


def _named(dynamic: Any) -> Any:
    if isinstance(dynamic, Mapping):
        return {str(name): _named(part) for name, part in dynamic.items()}
    if isinstance(dynamic, (tuple, list)):
        return [_named(part) for part in dynamic]
    return (
        dynamic if isinstance(dynamic, str) or dynamic is None else str(getattr(dynamic, "__name__", "size"))
    )


def from_json(data: Mapping[str, Any], batch_size: int = 2) -> Any:
    """Inputs of the described shapes and types; the values mean nothing.

    Args:
        data: what `to_json` or `InputSpec.to_json` made.
        batch_size: rows.
    """
    if "structure" in data:
        made: Any = _made(data["structure"], batch_size)
    else:
        made = torch.zeros((batch_size, *data["shape"][1:]), dtype=getattr(torch, data["dtype"]))
    return Varying(made, data["dynamic"]) if "dynamic" in data else made


def _made(described_input: Mapping[str, Any], batch_size: int) -> Any:
    ((kind, content),) = described_input.items()
    if kind == "tensor":
        shape = [batch_size if size is None else size for size in content["shape"]]
        return torch.full(shape, content["fill"], dtype=getattr(torch, content["dtype"]))
    if kind == "mapping":
        return {name: _made(part, batch_size) for name, part in content.items()}
    if kind in ("tuple", "list"):
        parts = [_made(part, batch_size) for part in content]
        return parts if kind == "list" else tuple(parts)
    return content
