"""LC: learning-compression with every scheme, view and combination (arXiv 1707.01209)."""

from autocompress.methods.lc.assignment import Assignment
from autocompress.methods.lc.config import Config
from autocompress.methods.lc.low_rank import LowRank, RankSelection
from autocompress.methods.lc.pruning import PenaltyL0, PenaltyL1, PruneL0, PruneL1
from autocompress.methods.lc.quantization import (
    Binary,
    Budget,
    Codebook,
    EntropyCodebook,
    FixedPoint,
    HalfPrecision,
    MixedPrecision,
    ScaledBinary,
    Ternary,
)
from autocompress.methods.lc.scheme import Scheme, Sum
from autocompress.methods.lc.schemes import SCHEMES
from autocompress.methods.lc.session import Lc

__all__ = [
    "SCHEMES",
    "Assignment",
    "Binary",
    "Budget",
    "Codebook",
    "Config",
    "EntropyCodebook",
    "FixedPoint",
    "HalfPrecision",
    "Lc",
    "LowRank",
    "MixedPrecision",
    "PenaltyL0",
    "PenaltyL1",
    "PruneL0",
    "PruneL1",
    "RankSelection",
    "ScaledBinary",
    "Scheme",
    "Sum",
    "Ternary",
]
