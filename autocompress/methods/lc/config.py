"""Settings of LC."""

from __future__ import annotations

from dataclasses import dataclass

from autocompress.errors import SettingsError
from autocompress.methods.lc.assignment import Assignment, Schemes, assignments
from autocompress.methods.lc.quantization import Codebook
from autocompress.methods.shared.settings import at_least_0


@dataclass(frozen=True)
class Config:
    """Settings of LC.

    Args:
        schemes: by layer: `{"fc1": Codebook(k=4), ("fc2", "fc3"): PruneL0(keep=0.05)}`. Keys are
            names, patterns ("layer1.*", "*"), classes ("Conv2d") or parts ("1/3", the first third);
            layers of a tuple are compressed jointly, those of one string each by itself.
        mu0: μ of the first L step.
        growth: factor on μ from one L step to the next; under SGD μ ends at 0.5 / lr, where that is stable.
        steps: L steps that the compressing epochs are divided into; a C step ends each.
        multipliers: an augmented Lagrangian; otherwise a quadratic penalty.
        straight_through: schemes of levels train at these, without a penalty: gradients pass to the numbers
            that are rounded (`straight_through.py`), and each C step finds new levels for them.
        mu_exponent: μ of a constraint is μ times this power of its weights' root mean square relative to
            that of all. 0 makes all alike; with 1 late layers, whose weights are few and large, settle
            before the early ones, which can still adapt. Penalties and rank selection share one μ.
        spacing: optimiser steps from one C step to the next at least, times the parts of the longest sum, or
            an eighth of all where those are few; an L step that would end earlier goes on until then.
    """

    schemes: Schemes = (Assignment(("*",), Codebook(k=4)),)
    mu0: float = 1e-3
    growth: float = 1.2
    steps: int = 30
    multipliers: bool = True
    straight_through: bool = False
    mu_exponent: float = 1.0
    # Errors on validation (%, mean ± standard error) after LC and fine-tuning with 4, 16 and 64:
    #   digits, 126 steps (so that 64 are 16), 8 seeds: k = 2 plus 1 % 4.3 ± 0.4, 1.6 ± 0.2, 1.6 ± 0.2;
    #   pruning jointly to 3 % 2.6 ± 0.4, 3.5 ± 0.2, 3.5 ± 0.2;
    #   fashion_mnist, mlp, 12,000 rows, 376 steps, 5 seeds: 18.1 ± 0.6, 14.8 ± 0.2, 15.2 ± 0.1; 15.1 ± 0.1,
    #   15.0 ± 0.0, 16.9 ± 0.1. A sum alone waits for as many times 16 as it has parts.
    spacing: int = 16

    def __post_init__(self) -> None:
        object.__setattr__(self, "schemes", assignments(self.schemes))
        if not self.mu0 > 0:
            raise SettingsError(f"mu0 must be greater than 0 but got {self.mu0}.")
        if not self.growth >= 1:
            raise SettingsError(f"growth must be at least 1 but got {self.growth}.")
        if self.steps < 1:
            raise SettingsError(f"steps must be at least 1 but got {self.steps}.")
        at_least_0("mu_exponent", self.mu_exponent)
        if self.spacing < 1:
            raise SettingsError(f"spacing must be at least 1 but got {self.spacing}.")
