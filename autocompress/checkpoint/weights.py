"""`weights.safetensors`: the compact model's tensors as stored."""

from __future__ import annotations

from pathlib import Path

from safetensors.torch import load_model, save_model
from torch import nn


def save_weights(model: nn.Module, path: Path) -> None:
    """Write parameters and buffers; shared tensors are stored once."""
    save_model(model, str(path))


def load_weights_into(model: nn.Module, path: Path) -> None:
    """Read what `save_weights` wrote into a model of the same shapes, in place."""
    load_model(model, str(path))
