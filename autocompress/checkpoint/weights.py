"""`weights.safetensors`: the compact model's tensors as stored."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

from safetensors.torch import load_file, load_model, save_file, save_model
from torch import Tensor, nn


def save_weights(model: nn.Module, path: Path) -> None:
    """Write parameters and buffers; shared tensors are stored once."""
    save_model(model, str(path))


def load_weights_into(model: nn.Module, path: Path) -> None:
    """Read what `save_weights` wrote into a model of the same shapes, in place."""
    load_model(model, str(path))


def save_loss(tensors: Mapping[str, Tensor], path: Path) -> None:
    """Write what training changed of a loss; no file where that is nothing."""
    if tensors:
        save_file({name: tensor.contiguous().clone() for name, tensor in tensors.items()}, str(path))


def load_loss(path: Path) -> dict[str, Tensor]:
    """Read what `save_loss` wrote, which may be nothing."""
    return load_file(str(path)) if path.is_file() else {}
