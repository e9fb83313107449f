"""Autoplastic: gates on residual branches, channels and mixing blocks (Korban, Youngs, Acton, 2025)."""

from autocompress.methods.autoplastic.session import Autoplastic, Config

__all__ = ["Autoplastic", "Config"]
