"""Settings of quantisation-aware fine-tuning."""

from __future__ import annotations

from dataclasses import dataclass

from autocompress.errors import SettingsError


@dataclass(frozen=True)
class Config:
    """Settings of quantisation-aware fine-tuning.

    Args:
        activations: whether what layers are given is rounded too, and not their weights alone: right where
            the file computes in int8, and too much where it only stores weights so.
        start: share of the steps after which activations are rounded, in [0, 1]; their ranges are followed
            from the first step on.
        freeze: share of the steps after which ranges stay as they are, in [0, 1]; 1 follows to the end, as
            published.
        averaging: what a batch's least and greatest number count in the moving averages of them, in (0, 1].
    """

    activations: bool = True
    start: float = 0.0
    freeze: float = 1.0
    averaging: float = 0.01  # as torch.ao's MovingAverageMinMaxObserver has it

    def __post_init__(self) -> None:
        for name in ("start", "freeze"):
            if not 0 <= getattr(self, name) <= 1:
                raise SettingsError(f"{name} must be in [0, 1] but got {getattr(self, name)}.")
        if not 0 < self.averaging <= 1:
            raise SettingsError(f"averaging must be in (0, 1] but got {self.averaging}.")
