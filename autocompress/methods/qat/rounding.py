"""Numbers rounded to those that an int8 file can hold, as ONNX Runtime's quantiser rounds them.

Jacob et al., arXiv 1712.05877, equation 12, for a range [a, b] and n levels:

    s = (b − a) / (n − 1),    q(r) = round((min(max(r, a), b) − a) / s) · s + a
"""

from __future__ import annotations

import torch
from torch import Tensor

# Codes of weights go from −127 to 127, or to 64 where layers compute in int8 (see `checkpoint.quantize`),
# those of activations from 0 to 255.
STORED_CODES, COMPUTED_CODES, _ACTIVATION_CODES = 127, 64, 255


def round_weight(weight: Tensor, dim: int, codes: int = COMPUTED_CODES) -> Tensor:
    """A weight at levels of its own for each output: a = −max|w|, b = max|w|, n = 2 · codes + 1; without
    gradient.

    Folding a batch norm multiplies all weights of an output, and so its scale, by one number: the codes stay,
    but for their sign. So what is rounded before it is folded is what the file has, whatever the norm.

    Args:
        weight: as its layer keeps it.
        dim: dimension that the outputs stand along.
        codes: the greatest of them.
    """
    others = [other for other in range(weight.dim()) if other != dim]
    scale = weight.detach().abs().amax(others, keepdim=True) / codes
    scale = torch.where(scale > 0, scale, 1.0)
    return (weight.detach() / scale).round() * scale


def round_activations(activations: Tensor, low: Tensor, high: Tensor) -> Tensor:
    """Activations at 256 levels over a range, of which 0 is one; gradients pass where they are within it.

    Args:
        activations: of any shape and precision.
        low: a, `()`; where it is greater, 0.
        high: b, `()`; where it is less, 0.
    """
    low, high = low.float().clamp_max(0), high.float().clamp_min(0)
    scale = ((high - low) / _ACTIVATION_CODES).clamp_min(torch.finfo(torch.float32).tiny)
    zero = (-low / scale).round()
    rounded: Tensor = torch.fake_quantize_per_tensor_affine(activations, scale, zero, 0, _ACTIVATION_CODES)
    return rounded
