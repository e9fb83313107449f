"""Settings of ALDS."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from autocompress.errors import SettingsError
from autocompress.methods.alds.spectra import MEASURES, Measure
from autocompress.methods.shared.settings import at_least_0

Cost = Literal["macs", "params"]
Schemes = Literal["first", "all"]


@dataclass(frozen=True)
class Config:
    """Settings of ALDS.

    Args:
        keep: share of the model's cost that is left, without what must stay of it (layers that are excluded
            or frozen, least ranks), in (0, 1).
        cost: in which cost is counted, "macs" or "params". Embeddings, and weights in whose layer's place no
            two others can stand, such as those of recurrent layers, are factorised for "params" alone.
        epsilon: greatest relative error of any layer, in place of `keep`; 0 goes by `keep`.
        measure: of a layer's error: "slices" (the greatest over its slices, as published),
            "operator" (of the whole residual), "frobenius", or "data" (of its outputs on
            calibration inputs; exact with one slice and the first scheme, otherwise slices count as
            if their outputs were uncorrelated; "frobenius" for embeddings and weights that are no layer's).
        max_slices: most parts that a layer's input channels are cut into. "operator" takes long
            with more than one, and gains little.
        schemes: "first" folds f × (c·k1·k2) alone, "all" every way; transposed convolutions are always folded
            (f·k1·k2) × c.
        rank_caps: highest rank relative to full rank; spread over the layers from first to last.
        lambda_rank: weight of the penalty on what the allocated ranks would cut off; 0 decomposes
            before the training and trains the factors.
        cascade: budgets that lead to `keep` in equal factors, one after the other, while training.
        refit: second factors are fitted, by least squares, to what the dense layers make of the
            calibration inputs; where the model is decomposed before the training.
        calibration: training inputs that "data" measures on and factors are refitted on.
    """

    keep: float = 0.5
    cost: Cost = "macs"
    epsilon: float = 0.0
    measure: Measure = "slices"
    max_slices: int = 16
    schemes: Schemes = "all"
    rank_caps: tuple[float, ...] = (1.0,)
    lambda_rank: float = 0.0
    cascade: int = 1
    refit: bool = True
    calibration: int = 256

    def __post_init__(self) -> None:
        object.__setattr__(self, "rank_caps", tuple(self.rank_caps))
        if not 0 < self.keep < 1:
            raise SettingsError(f"keep must be in (0, 1) but got {self.keep}.")
        if self.cost not in ("macs", "params"):
            raise SettingsError(f"cost must be 'macs' or 'params' but got {self.cost!r}.")
        if not 0 <= self.epsilon < 1:
            raise SettingsError(f"epsilon must be in [0, 1) but got {self.epsilon}.")
        if self.measure not in MEASURES:
            raise SettingsError(f"measure must be one of {', '.join(MEASURES)} but got {self.measure!r}.")
        if self.schemes not in ("first", "all"):
            raise SettingsError(f"schemes must be 'first' or 'all' but got {self.schemes!r}.")
        if not self.rank_caps or not all(0 < cap <= 1 for cap in self.rank_caps):
            raise SettingsError(f"rank_caps must be in (0, 1] but got {self.rank_caps}.")
        if self.epsilon and self.cascade != 1:
            raise SettingsError(f"cascade must be 1 where epsilon is given but got {self.cascade}.")
        at_least_0("lambda_rank", self.lambda_rank)
        for name in ("max_slices", "cascade", "calibration"):
            if getattr(self, name) < 1:
                raise SettingsError(f"{name} must be at least 1 but got {getattr(self, name)}.")
