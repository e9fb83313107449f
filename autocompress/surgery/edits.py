"""Edits: every structural change from a model to a smaller one, as data that a fresh copy can be put through.

A list of edits and the tensors of the edited model rebuild it exactly (`rebuild`): edits say which layers,
channels, ranks and codes there are, tensors what is in them. An edit is carried out on a model as the edits
before it left that, by names of tensors, modules and graph nodes; it never looks at values.
"""

from __future__ import annotations

import dataclasses
import typing
from abc import ABC, abstractmethod
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import cache
from typing import Any, ClassVar

from torch import nn

from autocompress.errors import CheckpointError, one_line
from autocompress.task import Inputs


@dataclass(frozen=True)
class Edit(ABC):
    """One structural change; a frozen dataclass of JSON-able fields, known by its class's `kind`."""

    kind: ClassVar[str]
    kinds: ClassVar[dict[str, type[Edit]]] = {}

    def __init_subclass__(cls, **options: Any) -> None:
        super().__init_subclass__(**options)
        Edit.kinds[cls.kind] = cls

    @abstractmethod
    def apply(self, model: nn.Module, example: Inputs) -> nn.Module:
        """Carry the edit out on a model.

        Args:
            model: as the edits before this one left it; may be changed in place.
            example: inputs that its graph can be traced with, `(B, ...)`; their values do not matter.

        Returns:
            The edited model, in the mode (training or evaluation) of the one given.
        """

    def then(self, later: Edit) -> Edit | None:
        """One edit that does what this one and a later one do, carried out one after the other.

        Args:
            later: of the model that this one leaves.

        Returns:
            The edit; None where there is none, which is the default.
        """
        return None

    def to_json(self) -> dict[str, Any]:
        """The edit as JSON-able data; `edits_from_json` reads it back."""
        return {"edit": self.kind, **dataclasses.asdict(self)}


def joined(edits: Iterable[Edit]) -> tuple[Edit, ...]:
    """The same changes in as few edits as neighbours can be joined to."""
    shorter: list[Edit] = []
    for edit in edits:
        both = shorter[-1].then(edit) if shorter else None
        if both is None:
            shorter.append(edit)
        else:
            shorter[-1] = both
    return tuple(shorter)


def edits_from_json(data: Iterable[Mapping[str, Any]]) -> tuple[Edit, ...]:
    """The edits that `to_json` wrote.

    Raises:
        CheckpointError: an edit is of an unknown kind, or lacks a field.
    """
    edits = []
    for item in data:
        fields = dict(item)
        kind = fields.pop("edit", None)
        if kind not in Edit.kinds:
            raise CheckpointError(
                f"edit must be one of {', '.join(sorted(Edit.kinds))} but got {kind!r} "
                "(a plug-in that is not installed here?)."
            )
        try:
            edits.append(_read(Edit.kinds[kind], fields))
        except (TypeError, KeyError) as error:
            raise CheckpointError(f"edit {kind!r} is not readable: {one_line(error)}") from error
    return tuple(edits)


def _read(cls: Any, fields: Mapping[str, Any]) -> Any:
    """A dataclass from what `asdict` made of it and JSON of that: tuples, and dataclasses in them, again."""
    hints = _hints(cls)
    return cls(**{name: _value(hints[name], value) for name, value in fields.items()})


@cache
def _hints(cls: Any) -> Mapping[str, Any]:
    """The types of a dataclass' fields, evaluated once: a checkpoint has hundreds of entries."""
    return typing.get_type_hints(cls)


def _value(hint: Any, value: Any) -> Any:
    if dataclasses.is_dataclass(hint):
        return _read(hint, value)
    if isinstance(value, list):
        inner = typing.get_args(hint)[:1] if typing.get_origin(hint) is tuple else ()
        return tuple(_value(inner[0] if inner else Any, item) for item in value)
    return value


def apply(model: nn.Module, edits: Sequence[Edit], example: Inputs) -> nn.Module:
    """Carry edits out on a model, one after the other.

    Args:
        model: as it was before the first of them; may be changed in place.
        edits: in the order in which they came about.
        example: inputs, `(B, ...)` with B ≥ 2, on the CPU.
    """
    for edit in edits:
        training = model.training
        model = edit.apply(model, example).train(training)
    return model
