"""Top-1 accuracy and its standard error, counted batch by batch."""

from __future__ import annotations

import functools
import math
from typing import Any

import torch
from torch import Tensor

from autocompress.errors import TaskError
from autocompress.measure.resampling import REPLICATES, Score, score_of
from autocompress.task import LossFn

# What `torch.nn.functional.cross_entropy` and `nll_loss` ignore unless they are told otherwise.
IGNORED = -100


def ignored_target(loss: LossFn | None) -> int:
    """The target that a loss leaves out: its `ignore_index`, as of `nn.CrossEntropyLoss`, `nn.NLLLoss` or a
    `functools.partial` of a function; PyTorch's default where it has none, or there is no loss."""
    given: Any = getattr(loss, "ignore_index", None)
    if isinstance(loss, functools.partial):
        given = loss.keywords.get("ignore_index")
    return given if isinstance(given, int) else IGNORED


class Accuracy:
    """Share of the targets whose output is the greatest of its classes; ignored targets do not count.

    Only sums are kept, exactly, so memory does not grow with the split, and the value is the quotient of two
    integers in double precision. (`torchmetrics`' has float32 noise, and neither replicates nor rows.)

    A row is what may or may not be drawn again: one target, or all pixels of an image. With c_i of n_i
    targets right in row i, a replicate is Σ w_i c_i / Σ w_i n_i. The error is no less than that of the ratio
    Σ c_i / Σ n_i by linearisation (Cochran, *Sampling Techniques*, 1977, section 6.4), smoothed by four more
    rows of one target, two of them right:

        p = (Σ c_i + 2) / (Σ n_i + 4),    s² = (Σ (c_i − p n_i)² + 2 (1 − p)² + 2 p²) / (Σ n_i + 4)²

    which for rows of one target is p (1 − p) / (n + 4) of Agresti & Coull (*The American Statistician* 52(2),
    1998), and is not 0 where all rows are right.
    """

    def __init__(self, ignored: int = IGNORED) -> None:
        self.ignored = ignored
        self.rows = 0
        self.correct, self.counted = 0, 0
        # Σ c², Σ c·n and Σ n² over rows.
        self.squares = torch.zeros(3, dtype=torch.float64)
        # Σ w·c and Σ w·n of each resample.
        self.resampled = torch.zeros(2, REPLICATES, dtype=torch.float64)

    def fresh(self) -> Accuracy:
        """The same metric, of no rows yet."""
        return Accuracy(self.ignored)

    def update(self, outputs: Any, targets: Any, weights: Tensor | None) -> None:
        """Count a batch.

        Args:
            outputs: `(N, classes, ...)`.
            targets: `(N, ...)`.
            weights: of the rows in each resample, `(N, REPLICATES)`; None counts no replicates.

        Raises:
            TaskError: these are not the shapes, or targets are no labels.
        """
        tensors = isinstance(outputs, Tensor) and isinstance(targets, Tensor)
        if not tensors:
            raise TaskError(
                "metrics must be given where outputs and targets are not tensors but they are "
                f"{type(outputs).__name__} and {type(targets).__name__}."
            )
        classes = outputs.dim() >= 2 and outputs.shape[1] >= 2 and not targets.is_floating_point()
        if not classes or (len(outputs), *outputs.shape[2:]) != tuple(targets.shape):
            raise TaskError(
                "metrics must be given where outputs are not (N, classes, ...) of two classes or more and "
                f"targets not (N, ...) of labels but they are {tuple(outputs.shape)} and {targets.dtype} "
                f"{tuple(targets.shape)}."
            )
        counts = targets != self.ignored
        right = (outputs.argmax(1) == targets) & counts
        n = counts.reshape(len(targets), -1).sum(1).double()
        c = right.reshape(len(targets), -1).sum(1).double()
        self.rows += len(targets)
        self.correct += int(c.sum())
        self.counted += int(n.sum())
        self.squares += torch.stack([c @ c, c @ n, n @ n])
        if weights is not None:
            self.resampled += torch.stack([c, n]) @ weights.double()

    def score(self) -> Score:
        """The accuracy over all batches so far.

        Raises:
            TaskError: no target counts.
        """
        if not self.counted:
            raise TaskError(
                f"metric 'accuracy' must have targets to count but all of the {self.rows} rows are "
                f"{self.ignored}, which the loss ignores."
            )
        correct, counted = self.resampled
        return score_of(self.correct / self.counted, (correct / counted).tolist(), self._least_error())

    def _least_error(self) -> float:
        p = (self.correct + 2) / (self.counted + 4)
        cc, cn, nn = self.squares.tolist()
        residuals = max(cc - 2 * p * cn + p * p * nn, 0.0)
        return math.sqrt(residuals + 2 * (1 - p) ** 2 + 2 * p**2) / (self.counted + 4)
