"""Autoplastic: gates on residual branches, channels and mixing blocks (Korban, Youngs, Acton, 2025)."""

from autocompress.methods.autoplastic.config import Config
from autocompress.methods.autoplastic.session import Autoplastic

__all__ = ["Autoplastic", "Config"]
