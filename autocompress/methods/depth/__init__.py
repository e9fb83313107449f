"""Depth pruning with fitted translators (Camacho et al., Neurocomputing 630, 2025)."""

from autocompress.methods.depth.session import Config, Depth

__all__ = ["Config", "Depth"]
