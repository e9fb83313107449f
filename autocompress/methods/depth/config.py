"""Settings of depth pruning."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from autocompress.errors import SettingsError
from autocompress.methods.shared.settings import at_least_0
from autocompress.surgery.translators import KINDS, Kind

Freeze = Literal["none", "backbone"]


@dataclass(frozen=True)
class Config:
    """Settings of depth pruning.

    Args:
        cuts: (A, B) pairs, positions in the model's list of cut points: the layers between are
            deleted. Disjoint and increasing.
        translator: "identity", "linear", "pooled" (with a ReLU, as published) or "residual".
        refine_steps: steps of local training after the closed-form fit.
        freeze: "backbone" trains translators and a new head only, to the end of the trial, as in
            transfer learning; batch norms go on following their inputs' statistics.
        head_width: hidden width of a new head in place of all layers after the last cut point; 0
            keeps the model's own.
        calibration: training inputs that translators are fitted on, fewer where their tensors are large.
        ridge: strength of the ridge penalty, relative to the features' mean square.
    """

    cuts: tuple[tuple[int, int], ...] = ((0, 1),)
    translator: Kind = "linear"
    refine_steps: int = 0
    freeze: Freeze = "none"
    head_width: int = 0
    calibration: int = 256
    ridge: float = 1e-3

    def __post_init__(self) -> None:
        # From a JSON file the pairs come as lists.
        object.__setattr__(self, "cuts", tuple((int(a), int(b)) for a, b in self.cuts))
        ends = [end for pair in self.cuts for end in pair]
        if any(a >= b for a, b in self.cuts) or ends != sorted(ends) or (ends and ends[0] < 0):
            raise SettingsError(f"cuts must be disjoint, increasing pairs A < B but got {self.cuts}.")
        if self.translator not in KINDS:
            raise SettingsError(f"translator must be one of {', '.join(KINDS)} but got {self.translator!r}.")
        if self.freeze not in ("none", "backbone"):
            raise SettingsError(f"freeze must be 'none' or 'backbone' but got {self.freeze!r}.")
        if self.freeze == "backbone" and self.translator == "identity" and not self.head_width:
            raise SettingsError("freeze must be 'none' where nothing else could be trained.")
        for name in ("refine_steps", "head_width", "ridge"):
            at_least_0(name, getattr(self, name))
        if self.calibration < 2:
            raise SettingsError(f"calibration must be at least 2 but got {self.calibration}.")
