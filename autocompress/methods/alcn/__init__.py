"""ALCN: learnable ratios of coupled channel groups (Jana, TechRxiv 2026)."""

from autocompress.methods.alcn.config import Config
from autocompress.methods.alcn.session import Alcn

__all__ = ["Alcn", "Config"]
