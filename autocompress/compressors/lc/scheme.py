"""What a scheme is: a set of weights, and how the nearest of them is found; and sums of schemes."""

from __future__ import annotations

from abc import ABC, abstractmethod
from dataclasses import dataclass, field

import torch
from torch import Tensor

from autocompress.errors import SettingsError
from autocompress.weights.encodings import Encoding, Summed

_ALTERNATIONS = 30


@dataclass(frozen=True)
class View:
    """What is compressed together: one layer, or several as one vector.

    Args:
        shapes: of the layers' weights.
        groups: of each layer's convolution.
        macs: multiply-accumulates of each layer.
        reference_l1: Σ|w| before training.
    """

    shapes: tuple[tuple[int, ...], ...]
    groups: tuple[int, ...] = (1,)
    macs: tuple[int, ...] = (0,)
    reference_l1: float = 0.0


@dataclass(frozen=True)
class Scheme(ABC):
    """A set of weights Δ(Θ), and how the nearest of them to given weights is found."""

    kind: str = field(init=False, default="")

    @abstractmethod
    def solve(self, x: Tensor, mu: float, view: View, previous: Encoding | None = None) -> Encoding:
        """Θ that minimises μ/2·‖x − Δ(Θ)‖² plus the scheme's own cost.

        Args:
            x: the weights, `(n,)`.
            mu: of the penalty; schemes without a cost of their own do not depend on it.
            view: whose weights they are.
            previous: the last Θ, to start from.
        """

    def penalty(self, encoding: Encoding, view: View) -> float:
        """What Θ costs by the scheme itself, beside the distance; constraints cost nothing."""
        return 0.0

    @property
    def penalised(self) -> bool:
        """Whether Θ costs anything, so that μ also says what an error is worth."""
        return False

    def __add__(self, other: Scheme) -> Sum:
        return Sum((*_parts(self), *_parts(other)))


@dataclass(frozen=True)
class Sum(Scheme):
    """A sum of schemes, solved by turns; each turn lowers what the sum minimises or leaves it."""

    kind: str = field(init=False, default="sum")
    parts: tuple[Scheme, ...] = ()

    def __post_init__(self) -> None:
        if len(self.parts) < 2:
            raise SettingsError(f"parts must be at least two schemes but got {len(self.parts)}.")

    def solve(self, x: Tensor, mu: float, view: View, previous: Encoding | None = None) -> Encoding:
        starts = [[torch.zeros_like(x) for _ in self.parts]]
        if isinstance(previous, Summed):
            starts.append([part.dense() for part in previous.parts])
        found = [self._alternate(x, mu, view, start) for start in starts]
        return min(found, key=lambda pair: pair[0])[1]

    def penalty(self, encoding: Encoding, view: View) -> float:
        assert isinstance(encoding, Summed)
        return sum(
            scheme.penalty(part, view) for scheme, part in zip(self.parts, encoding.parts, strict=True)
        )

    @property
    def penalised(self) -> bool:
        return any(part.penalised for part in self.parts)

    def _alternate(self, x: Tensor, mu: float, view: View, dense: list[Tensor]) -> tuple[float, Summed]:
        """By turns from such parts: μ/2·‖x − Σ Δ(Θᵢ)‖² + Σ penalties, and Θ."""
        parts: list[Encoding | None] = [None] * len(self.parts)
        objective = float("inf")
        for _ in range(_ALTERNATIONS):
            for i, scheme in enumerate(self.parts):
                rest = x - sum((d for j, d in enumerate(dense) if j != i), torch.zeros_like(x))
                solved = scheme.solve(rest, mu, view, parts[i])
                parts[i], dense[i] = solved, solved.dense()
            found = Summed(tuple(part for part in parts if part is not None))
            error = float((x - torch.stack(dense).sum(0)).double().square().sum())
            reached = mu / 2 * error + self.penalty(found, view)
            if reached >= objective * (1 - 1e-5):
                break
            objective = reached
        return reached, found


def _parts(scheme: Scheme) -> tuple[Scheme, ...]:
    return scheme.parts if isinstance(scheme, Sum) else (scheme,)
