"""ALDS: layer-wise low rank, exactly allocated (Liebenwein et al., arXiv 2107.11442)."""

from autocompress.methods.alds.session import Alds, Config

__all__ = ["Alds", "Config"]
