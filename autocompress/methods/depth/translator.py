"""Translators are fitted in closed form: ridge regression of the later tensor on the pooled earlier one."""

from __future__ import annotations

import torch
from torch import Tensor

from autocompress.methods.shared.ridge import ridge
from autocompress.surgery.translators import Translator


def affine_ridge(a: Tensor, b: Tensor, strength: float) -> tuple[Tensor, Tensor]:
    """W, w₀ of min ‖(A − Ā)Wᵀ − (B − B̄)‖² + λ‖W‖², λ as in `ridge`.

    Args:
        a: `(rows, in)`.
        b: `(rows, out)`.
        strength: at least 0.

    Returns:
        W `(out, in)` and w₀ `(out,)`, in the precision of `b`.
    """
    centre_a, centre_b = a.double().mean(0), b.double().mean(0)
    weight = ridge(a.double() - centre_a, b.double() - centre_b, strength)
    return weight.to(b.dtype), (centre_b - weight @ centre_a).to(b.dtype)


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
            weight, offset = affine_ridge(rows_of(features, tokens), rows_of(target, tokens), strength)
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


def relative_error(actual: Tensor, wanted: Tensor) -> float:
    """‖x̂ − x‖ / ‖x‖ over all elements."""
    return float((actual - wanted).norm() / wanted.norm().clamp_min(1e-12))
