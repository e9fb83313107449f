"""Augmentation of training batches of images, drawn anew for each input from PyTorch's generator."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor


def augmented(inputs: Tensor, name: str) -> Tensor:
    """A batch as it is trained on, `(B, C, H, W)`; other shapes and "none" come back as they are."""
    if name == "none" or inputs.dim() != 4:
        return inputs
    return random_flip(random_crop(inputs, max(1, inputs.shape[-1] // 8)))


def random_crop(inputs: Tensor, padding: int) -> Tensor:
    """Each image shifted by up to `padding` pixels, zeros moving in; `(B, C, H, W)`."""
    count, _, height, width = inputs.shape
    padded = F.pad(inputs, (padding,) * 4)
    offsets = torch.randint(0, 2 * padding + 1, (2, count, 1), device=inputs.device)
    rows = offsets[0] + torch.arange(height, device=inputs.device)
    columns = offsets[1] + torch.arange(width, device=inputs.device)
    images = torch.arange(count, device=inputs.device)[:, None, None]
    # Indexed dimensions come first: (B, H, W, C).
    return padded[images, :, rows[:, :, None], columns[:, None, :]].permute(0, 3, 1, 2).contiguous()


def random_flip(inputs: Tensor) -> Tensor:
    """Every second image, on average, mirrored left to right; `(B, C, H, W)`."""
    mirrored = torch.rand(len(inputs), 1, 1, 1, device=inputs.device) < 0.5
    return torch.where(mirrored, inputs.flip(-1), inputs)
