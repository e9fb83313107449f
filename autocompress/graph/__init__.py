"""Analysis of a model's `torch.export` graph: which channels are coupled, and what is left alone."""

from autocompress.graph.analysis import analyse
from autocompress.graph.limits import CutPairs, within
from autocompress.graph.masking import mask_channels
from autocompress.graph.proof import TOLERANCE, compact
from autocompress.graph.removal import remove_channels
from autocompress.graph.structure import Analysis, Group, Keep, Member
from autocompress.graph.topology import CutPoint, ResidualBranch, why_illegal

__all__ = [
    "TOLERANCE",
    "Analysis",
    "CutPairs",
    "CutPoint",
    "Group",
    "Keep",
    "Member",
    "ResidualBranch",
    "analyse",
    "compact",
    "mask_channels",
    "remove_channels",
    "why_illegal",
    "within",
]
