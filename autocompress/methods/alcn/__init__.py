"""ALCN: learnable ratios of coupled channel groups (Jana, TechRxiv 2026)."""

from autocompress.methods.alcn.session import Alcn, Config

__all__ = ["Alcn", "Config"]
