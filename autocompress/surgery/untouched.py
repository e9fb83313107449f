"""The check that surgery left alone what is to stay as it is."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from itertools import chain

from torch import Tensor, nn

from autocompress.errors import TrialError
from autocompress.graph import Analysis
from autocompress.task import Limits


@dataclass(frozen=True)
class Untouched:
    """Tensors that stay as they are, which a model computes with.

    Args:
        limits: that say so.
        shapes: names of each tensor, one or several → its shape.
    """

    limits: Limits
    shapes: Mapping[tuple[str, ...], tuple[int, ...]]

    @staticmethod
    def of(model: nn.Module, analysis: Analysis, limits: Limits) -> Untouched:
        """What stays of a model.

        Args:
            model: before surgery.
            analysis: of this model, which tells what it computes with.
            limits: of it.
        """
        names: dict[int, list[str]] = {}
        tensors = _tensors(model)
        for name, tensor in tensors.items():
            if limits.why_tensor(name) is not None:
                names.setdefault(id(tensor), []).append(name)
        used = analysis.trace.shapes.keys()
        shapes = {tuple(own): tuple(tensors[own[0]].shape) for own in names.values() if used & set(own)}
        return Untouched(limits, shapes)

    def check(self, model: nn.Module, what: str) -> None:
        """Compare names and shapes after surgery.

        Args:
            model: after it.
            what: the surgery, for the message.

        Raises:
            TrialError: a tensor is gone, under all of its names, or of another shape.
        """
        left = {name: tuple(tensor.shape) for name, tensor in _tensors(model).items()}
        for names, shape in self.shapes.items():
            if shape not in [left.get(name) for name in names]:
                raise TrialError(
                    f"{what} must leave {names[0]!r} as it is ({self.limits.why_tensor(names[0])}) but it is "
                    f"{'gone' if left.get(names[0]) is None else 'cut'}."
                )


def _tensors(model: nn.Module) -> dict[str, Tensor]:
    return dict(
        chain(model.named_parameters(remove_duplicate=False), model.named_buffers(remove_duplicate=False))
    )
