"""Schemes whose weights are mostly zero: constraints on their number or sum, and penalties."""

from __future__ import annotations

from dataclasses import dataclass, field

from torch import Tensor

from autocompress.errors import SettingsError
from autocompress.methods.lc import projections
from autocompress.methods.lc.scheme import Scheme, View
from autocompress.methods.shared.settings import at_least_0
from autocompress.weights.encodings import Encoding, Pruned


@dataclass(frozen=True)
class PruneL0(Scheme):
    """At most κ = keep·n weights that are not zero (CVPR 2018)."""

    kind: str = field(init=False, default="prune_l0")
    keep: float = 0.1

    def __post_init__(self) -> None:
        if not 0 <= self.keep <= 1:
            raise SettingsError(f"keep must be in [0, 1] but got {self.keep}.")

    def solve(self, x: Tensor, mu: float, view: View, previous: Encoding | None = None) -> Encoding:
        """Keep the share of weights, `(n,)`, that are largest in absolute value; exact for any μ."""
        return Pruned(projections.keep_largest(x, round(self.keep * len(x))))


@dataclass(frozen=True)
class PruneL1(Scheme):
    """Σ|w| at most `share` of what it was before training."""

    kind: str = field(init=False, default="prune_l1")
    share: float = 0.1

    def __post_init__(self) -> None:
        at_least_0("share", self.share)

    def solve(self, x: Tensor, mu: float, view: View, previous: Encoding | None = None) -> Encoding:
        """Project the weights, `(n,)`, on the ball of the allowed Σ|w|; exact for any μ."""
        return Pruned(projections.l1_ball(x, self.share * view.reference_l1))


@dataclass(frozen=True)
class PenaltyL0(Scheme):
    """α for each weight that is not zero: those with x² ≤ 2α/μ are."""

    kind: str = field(init=False, default="penalty_l0")
    alpha: float = 1e-6

    def __post_init__(self) -> None:
        at_least_0("alpha", self.alpha)

    @property
    def penalised(self) -> bool:
        """Say that it costs something: α for each weight that is not zero."""
        return True

    def solve(self, x: Tensor, mu: float, view: View, previous: Encoding | None = None) -> Encoding:
        """Set weights, `(n,)`, with x² ≤ 2α/μ to zero and leave the others."""
        return Pruned(projections.hard_threshold(x, (2 * self.alpha / mu) ** 0.5))

    def penalty(self, encoding: Encoding, view: View) -> float:
        """Charge α for each weight that is not zero."""
        return self.alpha * int(encoding.dense().count_nonzero())


@dataclass(frozen=True)
class PenaltyL1(Scheme):
    """α·Σ|w|: weights shrink by α/μ."""

    kind: str = field(init=False, default="penalty_l1")
    alpha: float = 1e-6

    def __post_init__(self) -> None:
        at_least_0("alpha", self.alpha)

    @property
    def penalised(self) -> bool:
        """Say that it costs something: α times Σ|w|."""
        return True

    def solve(self, x: Tensor, mu: float, view: View, previous: Encoding | None = None) -> Encoding:
        """Shrink the weights, `(n,)`, towards zero by α/μ."""
        return Pruned(projections.soft_threshold(x, self.alpha / mu))

    def penalty(self, encoding: Encoding, view: View) -> float:
        """Charge α times Σ|w|."""
        return self.alpha * float(encoding.dense().abs().double().sum())
