"""Translators: small modules that stand for the layers between two cut points, fitted in closed form."""

from __future__ import annotations

from typing import Literal

import torch
import torch.nn.functional as F
from torch import Tensor, nn

Kind = Literal["identity", "linear", "pooled", "residual"]
KINDS: tuple[Kind, ...] = ("identity", "linear", "pooled", "residual")
Shape = tuple[int, ...]


class Pool(nn.Module):
    """Max pooling to a size in one step: kernel = stride = ⌊in/out⌋, or stride ⌈r⌉ where r is no integer.

    Camacho et al., Neurocomputing 630 (2025) 129661, section 3; `(B, C, *in)` → `(B, C, *out)`.
    """

    def __init__(self, before: Shape, after: Shape) -> None:
        super().__init__()
        self.stride, self.kernel = [], []
        for size, wanted in zip(before, after, strict=True):
            # The last window must begin inside: stride is the greatest that leaves a kernel ≥ 1.
            stride = -(-size // wanted)
            if size - stride * (wanted - 1) < 1:
                stride = size // wanted
            self.stride.append(stride)
            self.kernel.append(size - stride * (wanted - 1))

    def forward(self, x: Tensor) -> Tensor:
        pool = {1: F.max_pool1d, 2: F.max_pool2d, 3: F.max_pool3d}[x.dim() - 2]
        pooled: Tensor = pool(x, self.kernel, self.stride)
        return pooled


class Translator(nn.Module):
    """Pools to the later tensor's size, then maps channels: x̂_B = act(W·pool(x_A) + b) [+ pool(x_A)].

    Args:
        start: shape of x_A without the batch, `(C, ...)`, or `(T, C)` for tokens.
        end: shape of x_B.
        kind: "identity" maps nothing; "linear" W and b; "pooled" a ReLU after them, as published;
            "residual" adds W and b to the pooled tensor, where both have as many channels.
        tokens: x_A is a sequence of tokens.
    """

    def __init__(self, start: Shape, end: Shape, kind: Kind, tokens: bool = False) -> None:
        super().__init__()
        self.tokens, self.flat = tokens, len(end) == 1 and len(start) > 1
        channels = [shape[-1 if tokens else 0] for shape in (start, end)]
        same = channels[0] == channels[1]
        self.kind: Kind = kind if same or kind in ("linear", "pooled") else "linear"
        shrinks = not tokens and len(end) > 1 and start[1:] != end[1:]
        self.pool = Pool(start[1:], end[1:]) if shrinks else nn.Identity()
        grid = 0 if tokens else len(end) - 1
        self.map = nn.Identity() if self.kind == "identity" else _channel_map(grid, *channels)

    def forward(self, x: Tensor) -> Tensor:
        x = self.features(x)
        if self.kind == "identity":
            return x
        mapped: Tensor = self.map(x)
        if self.kind == "pooled":
            return torch.relu(mapped)
        return x + mapped if self.kind == "residual" else mapped

    def features(self, x: Tensor) -> Tensor:
        """What W is applied to: x pooled to the later tensor's size."""
        if self.flat:
            return x.mean(1) if self.tokens else x.flatten(2).mean(2)
        pooled: Tensor = self.pool(x)
        return pooled


def _channel_map(grid: int, inputs: int, outputs: int) -> nn.Module:
    """W and b at each position of a grid of so many dimensions."""
    if not grid:
        return nn.Linear(inputs, outputs)
    convolutions: dict[int, type[nn.Module]] = {1: nn.Conv1d, 2: nn.Conv2d, 3: nn.Conv3d}
    return convolutions[grid](inputs, outputs, 1)


def ridge(a: Tensor, b: Tensor, strength: float) -> tuple[Tensor, Tensor]:
    """W, w₀ of min ‖(A − Ā)W − (B − B̄)‖² + λ‖W‖² with λ = strength · mean diagonal of AᵀA.

    Args:
        a: `(rows, in)`.
        b: `(rows, out)`.
        strength: at least 0.

    Returns:
        W `(out, in)` and w₀ `(out,)`, in the precision of `b`.
    """
    low = a.double() - a.double().mean(0)
    gram = low.T @ low
    damping = (strength * gram.diagonal().mean()).clamp_min(1e-12)
    identity = torch.eye(len(gram), dtype=gram.dtype, device=gram.device)
    weight = torch.linalg.solve(gram + damping * identity, low.T @ (b.double() - b.double().mean(0)))
    offset = b.double().mean(0) - a.double().mean(0) @ weight
    return weight.T.to(b.dtype), offset.to(b.dtype)


def rows_of(x: Tensor, tokens: bool) -> Tensor:
    """Every position as a row of its channels; `(B, C, *grid)`, `(B, T, C)` or `(B, C)` → `(rows, C)`."""
    return x.reshape(-1, x.shape[-1]) if tokens or x.dim() == 2 else x.movedim(1, -1).flatten(0, -2)


def fit(translator: Translator, a: Tensor, b: Tensor, strength: float = 1e-3) -> float:
    """Set a translator's W and b by ridge regression; the relative error ‖x̂_B − x_B‖ / ‖x_B‖.

    Args:
        translator: changed in place.
        a: the earlier tensor on calibration inputs, `(B, ...)`.
        b: the later one.
        strength: of the ridge penalty.
    """
    with torch.no_grad():
        if translator.kind != "identity":
            features = translator.features(a)
            target = b - features if translator.kind == "residual" else b
            tokens = translator.tokens
            weight, offset = ridge(rows_of(features, tokens), rows_of(target, tokens), strength)
            own = dict(translator.map.named_parameters())
            own["weight"].copy_(weight.reshape(own["weight"].shape))
            own["bias"].copy_(offset)
        return relative_error(translator(a), b)


def refine(translator: Translator, a: Tensor, b: Tensor, steps: int, seed: int = 0) -> float:
    """Train a translator alone on cached tensors, min ‖x̂_B − x_B‖²; the relative error at the end."""
    if steps and translator.kind != "identity":
        generator = torch.Generator().manual_seed(seed)
        optimizer = torch.optim.Adam(translator.parameters(), lr=1e-3)
        scale = b.square().mean().clamp_min(1e-12)
        for _ in range(steps):
            index = torch.randint(len(a), (min(64, len(a)),), generator=generator)
            loss = (translator(a[index]) - b[index]).square().mean() / scale
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
    with torch.no_grad():
        return relative_error(translator(a), b)


def relative_error(found: Tensor, wanted: Tensor) -> float:
    """‖x̂ − x‖ / ‖x‖ over all elements."""
    return float((found - wanted).norm() / wanted.norm().clamp_min(1e-12))
