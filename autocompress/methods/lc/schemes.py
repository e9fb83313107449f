"""What a weight may be compressed to; each scheme's `solve` is the C step of learning-compression.

Codebook(k=4)                                   an adaptive codebook
EntropyCodebook(bits=0.5)                       levels, one of them 0, whose codes have so few bits of entropy
MixedPrecision(bits=3)                          codebooks of 3 bits on average, more where it counts
Budget(bits=1.5)                                levels, zeros or low ranks of 1.5 bits on average
Binary(), ScaledBinary(), Ternary(), FixedPoint(bits=8), HalfPrecision()
PruneL0(keep=0.05), PruneL1(share=0.1), PenaltyL0(alpha=1e-6), PenaltyL1(alpha=1e-6)
LowRank(rank=10), RankSelection(alpha=1e-8, cost="macs")
Codebook(k=2) + PruneL0(keep=0.01)              a sum
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import fields
from typing import Any

from autocompress.errors import SettingsError
from autocompress.methods.lc import low_rank, pruning, quantization
from autocompress.methods.lc.scheme import Scheme, Sum

SCHEMES: dict[str, type[Scheme]] = {
    str(next(f.default for f in fields(cls) if f.name == "kind")): cls
    for cls in (
        quantization.Codebook, quantization.EntropyCodebook, quantization.MixedPrecision,
        quantization.Budget,
        quantization.Binary, quantization.ScaledBinary, quantization.Ternary, quantization.FixedPoint,
        quantization.HalfPrecision,
        pruning.PruneL0, pruning.PruneL1, pruning.PenaltyL0, pruning.PenaltyL1,
        low_rank.LowRank, low_rank.RankSelection, Sum,
    )
}  # fmt: skip


def scheme_from(data: Scheme | Mapping[str, Any]) -> Scheme:
    """A scheme from what `dataclasses.asdict` made of it.

    Raises:
        SettingsError: the kind or a field is unknown or out of range.
    """
    if isinstance(data, Scheme):
        return data
    options = dict(data)
    kind = options.pop("kind", None)
    if kind not in SCHEMES:
        raise SettingsError(f"kind must be one of {', '.join(SCHEMES)} but got {kind!r}.")
    if kind == "sum":
        options["parts"] = tuple(scheme_from(part) for part in options["parts"])
    try:
        return SCHEMES[kind](**options)
    except TypeError as error:
        raise SettingsError(f"scheme {kind} is not usable: {error}") from error
