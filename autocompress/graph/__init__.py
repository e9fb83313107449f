"""Analysis of a model's `torch.export` graph: which channels are coupled, and what is left alone."""

from autocompress.graph.analysis import Analysis, Group, Member, analyse
from autocompress.graph.removal import mask_channels, remove_channels

__all__ = ["Analysis", "Group", "Member", "analyse", "mask_channels", "remove_channels"]
