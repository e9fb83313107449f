"""LC: learning-compression with every scheme, view and combination (arXiv 1707.01209)."""

from autocompress.compressors.lc.assignment import Assignment
from autocompress.compressors.lc.compressor import Config, Lc, LcState
from autocompress.compressors.lc.low_rank import LowRank, RankSelection
from autocompress.compressors.lc.pruning import PenaltyL0, PenaltyL1, PruneL0, PruneL1
from autocompress.compressors.lc.quantization import Binary, Codebook, FixedPoint, ScaledBinary, Ternary
from autocompress.compressors.lc.scheme import Scheme, Sum
from autocompress.compressors.lc.schemes import SCHEMES

__all__ = [
    "SCHEMES",
    "Assignment",
    "Binary",
    "Codebook",
    "Config",
    "FixedPoint",
    "Lc",
    "LcState",
    "LowRank",
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
