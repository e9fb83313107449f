"""How many targets of each class are right, counted batch by batch."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor


class ClassCounts:
    """Targets of each class, and those of them whose output is the greatest; ignored ones do not count.

    Args:
        ignored: the target that the loss leaves out.
    """

    def __init__(self, ignored: int) -> None:
        self.ignored = ignored
        self.right, self.counted = torch.zeros(0, dtype=torch.int64), torch.zeros(0, dtype=torch.int64)

    def update(self, outputs: Any, targets: Any) -> None:
        """Count a batch; one whose outputs are not those of classes is left out.

        Args:
            outputs: `(N, classes, ...)`.
            targets: labels, `(N, ...)`.
        """
        if not _are_classes(outputs, targets):
            return
        classes = outputs.shape[1]
        counts = (targets != self.ignored) & (targets >= 0) & (targets < classes)
        labels, right = targets[counts], (outputs.argmax(1) == targets)[counts]
        self.counted = _added(self.counted, torch.bincount(labels, minlength=classes))
        self.right = _added(self.right, torch.bincount(labels[right], minlength=classes))

    def counts(self) -> list[tuple[int, int]]:
        """Of each class, the targets that are right and all that count; none where no batch was counted."""
        return list(zip(self.right.tolist(), self.counted.tolist(), strict=True))


def _are_classes(outputs: Any, targets: Any) -> bool:
    if not (isinstance(outputs, Tensor) and isinstance(targets, Tensor)) or targets.is_floating_point():
        return False
    classes = outputs.dim() >= 2 and outputs.shape[1] >= 2
    return classes and (len(outputs), *outputs.shape[2:]) == tuple(targets.shape)


def _added(total: Tensor, more: Tensor) -> Tensor:
    """Two counts by class, of which one may know more classes."""
    length = max(len(total), len(more))
    padded = [torch.nn.functional.pad(part, (0, length - len(part))) for part in (total, more)]
    return padded[0] + padded[1]
