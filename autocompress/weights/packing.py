"""Small integers as a bit stream: n codes of b bits take ⌈n·b/8⌉ bytes, rounded up to b.

Unpacking uses additions, divisions and remainders of int32 alone, because ONNX Runtime refuses
shifts of uint8.
"""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor

MOST_BITS = 16


def bits_for(count: int) -> int:
    """Bits of a code that tells `count` values apart, at least 1."""
    return max(1, (count - 1).bit_length())


def pack(codes: Tensor, bits: int) -> Tensor:
    """Integers `(n,)` in [0, 2^bits) as bytes, `(⌈n/8⌉ · bits,)`."""
    assert 1 <= bits <= MOST_BITS
    numbers = codes.cpu().numpy().astype(np.int64)
    padded = np.concatenate([numbers, np.zeros(-len(numbers) % 8, np.int64)])
    stream = (padded[:, None] >> np.arange(bits)) & 1
    return torch.from_numpy(np.packbits(stream.astype(np.uint8).reshape(-1), bitorder="little"))


def unpack(packed: Tensor, bits: int, count: int) -> Tensor:
    """The inverse of `pack`: int64, `(count,)`, as ONNX wants of what looks something up."""
    rows = packed.to(torch.int32).reshape(-1, bits)
    # Eight codes fill `bits` bytes; a code of up to 16 bits lies in at most three of them.
    padded = torch.nn.functional.pad(rows, (0, 2))
    start = torch.arange(8, device=packed.device) * bits
    first = start // 8
    window = padded[:, first] + 256 * padded[:, first + 1]
    if bits > 8:
        window = window + 65536 * padded[:, first + 2]
    divisor = (2 ** (start % 8)).to(torch.int32)
    codes: Tensor = torch.div(window, divisor, rounding_mode="floor") % (2**bits)
    return codes.reshape(-1)[:count].long()
