"""Augmentation of training batches of images, drawn anew for each input from PyTorch's generator."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from autocompress.errors import TaskError
from autocompress.task import Inputs


def augmented(inputs: Inputs, name: str) -> Inputs:
    """A batch as it is trained on, `(B, C, H, W)`; other shapes, several inputs and "none" come back as they
    are."""
    if name == "none" or not isinstance(inputs, Tensor) or inputs.dim() != 4:
        return inputs
    moved = random_flip(random_crop(inputs, max(1, inputs.shape[-1] // 8)))
    return random_erase(moved) if name == "crop-flip-erase" else moved


def random_crop(inputs: Tensor, padding: int) -> Tensor:
    """Each image shifted by up to `padding` pixels, zeros moving in; `(B, C, H, W)`."""
    count, _, height, width = inputs.shape
    padded = F.pad(inputs, (padding,) * 4)
    offsets = torch.randint(0, 2 * padding + 1, (2, count, 1), device=inputs.device)
    rows = offsets[0] + torch.arange(height, device=inputs.device)
    columns = offsets[1] + torch.arange(width, device=inputs.device)
    images = torch.arange(count, device=inputs.device)[:, None, None]
    # Indexed dimensions come first: (B, H, W, C), so that channels-last images need no further copy.
    shifted = padded[images, :, rows[:, :, None], columns[:, None, :]].permute(0, 3, 1, 2)
    return shifted.contiguous(memory_format=_layout(inputs))


def _layout(inputs: Tensor) -> torch.memory_format:
    """How images lie in memory; channels first where both would do."""
    if inputs.is_contiguous() or not inputs.is_contiguous(memory_format=torch.channels_last):
        return torch.contiguous_format
    return torch.channels_last


def random_flip(inputs: Tensor) -> Tensor:
    """Every second image, on average, mirrored left to right; `(B, C, H, W)`."""
    mirrored = torch.rand(len(inputs), 1, 1, 1, device=inputs.device) < 0.5
    return torch.where(mirrored, inputs.flip(-1), inputs)


def random_erase(inputs: Tensor) -> Tensor:
    """A rectangle of up to half the height and width of every second image, on average, set to 0.

    Zhong et al., *Random Erasing Data Augmentation*, arXiv 1708.04896; `(B, C, H, W)`.
    """
    count, _, height, width = inputs.shape
    rows, columns = (_interval(count, size, inputs.device) for size in (height, width))
    erased = torch.rand(count, 1, 1, 1, device=inputs.device) < 0.5
    return inputs.masked_fill(erased & rows[:, None, :, None] & columns[:, None, None, :], 0.0)


def _interval(count: int, size: int, device: torch.device) -> Tensor:
    """Which of `size` positions lie in a random interval of at most half of them; `(count, size)`."""
    length = (torch.rand(count, 1, device=device) * size / 2).ceil()
    start = (torch.rand(count, 1, device=device) * (size - length + 1)).floor()
    position = torch.arange(size, device=device)
    return (position >= start) & (position < start + length)


def mixed(inputs: Inputs, alpha: float) -> tuple[Tensor, Tensor, float]:
    """Each input mixed with another one's: λ·x + (1 − λ)·x[order], λ from Beta(α, α).

    Zhang et al., *mixup: Beyond Empirical Risk Minimization*, arXiv 1710.09412.

    Returns:
        The mixed inputs, `order` `(B,)`, and λ.

    Raises:
        TaskError: the inputs are not one tensor of floating-point numbers.
    """
    if not isinstance(inputs, Tensor):
        raise TaskError(f"mixup must be 0 where a model has several inputs but is {alpha}.")
    if not inputs.is_floating_point():
        raise TaskError(f"mixup must be 0 where inputs are not floating-point but they are {inputs.dtype}.")
    share = float(torch.distributions.Beta(alpha, alpha).sample())
    order = torch.randperm(len(inputs), device=inputs.device)
    return share * inputs + (1 - share) * inputs[order], order, share
