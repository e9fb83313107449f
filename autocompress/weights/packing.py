"""Small integers as bytes: as many codes to a byte as fit, in base k.

Within a byte, codes stay whole digits of one number. So a table of 256 rows at most decodes several codes
at a time, and the compression of the archive that holds the bytes codes them near their joint entropy: on
the published ResNet-20 at 4 levels 55.7 kB, where a byte for each code leaves 64.2 kB, and at 5 levels
62.8 kB, where 3 bits for each leave 76.7 kB.
"""

from __future__ import annotations

import zlib
from collections.abc import Sequence
from functools import cache

import numpy as np
import torch
from torch import Tensor

MOST_CODES = 256
# Fewer codes have a byte each: what packing saves is less than what the program needs more to unpack it.
_FEW_CODES = 1024
# Bytes that are made at a time, from codes of 8 bytes each.
_AT_ONCE = 1 << 16
# With repetitions, and without; and bytes up to which several ways are tried.
_STRATEGIES, _MOST_TRIED = (zlib.Z_DEFAULT_STRATEGY, zlib.Z_HUFFMAN_ONLY), 1 << 22


def codes_per_byte(k: int, count: int = _FEW_CODES) -> int:
    """The greatest m with k^m ≤ 256, for codes in [0, k); 1 where there are few codes.

    Args:
        k: how many values a code may have.
        count: of codes.
    """
    assert 1 <= k <= MOST_CODES
    if count < _FEW_CODES:
        return 1
    return next(m for m in range(8, 0, -1) if k**m <= 256)


def deflated(parts: Sequence[bytes | bytearray]) -> bytes:
    """One deflate stream of several parts, each coded by its own statistics where that takes less.

    zlib codes some 16,000 bytes by one table, and looks for repetitions, which codes and gaps hardly have:
    what it finds of them costs more than the bytes themselves. LeNet300's tensors at 0.245 bits a weight
    take 8,973 bytes as zlib codes them by default, and 7,951 here.

    Args:
        parts: tensors of a record, in order.
    """
    if sum(map(len, parts)) > _MOST_TRIED:
        return _stream(b"".join(parts), zlib.Z_FINISH, _STRATEGIES[:1])
    runs: list[bytes] = []
    for part in parts:
        joined = runs[-1] + part if runs else b""
        if runs and _size(joined) <= _size(runs[-1]) + _size(part):
            runs[-1] = joined
        else:
            runs.append(bytes(part))
    *earlier, last = runs or [b""]
    return b"".join([*(_stream(run, zlib.Z_SYNC_FLUSH) for run in earlier), _stream(last, zlib.Z_FINISH)])


def deflated_size(content: bytes | bytearray) -> int:
    """Bytes that a tensor takes in the archive of a program, at least nearly."""
    return len(deflated([content]))


def _size(run: bytes | bytearray) -> int:
    return len(_stream(run, zlib.Z_SYNC_FLUSH))


def _stream(content: bytes | bytearray, flush: int, strategies: Sequence[int] = _STRATEGIES) -> bytes:
    """The shortest stream of some bytes, which ends there or can be gone on with."""
    streams = []
    for strategy in strategies:
        deflate = zlib.compressobj(9, zlib.DEFLATED, -zlib.MAX_WBITS, zlib.DEF_MEM_LEVEL, strategy)
        streams.append(deflate.compress(content) + deflate.flush(flush))
    return min(streams, key=len)


def pack(codes: Tensor, k: int, m: int) -> Tensor:
    """Integers `(n,)` in [0, k) as bytes, `(⌈n/m⌉,)`, m codes in each, the first one most significant."""
    numbers, powers = codes.cpu().numpy(), k ** np.arange(m - 1, -1, -1)
    packed = np.empty(-(-len(numbers) // m), np.uint8)
    for start in range(0, len(packed), _AT_ONCE):
        part = numbers[start * m : (start + _AT_ONCE) * m].astype(np.int64)
        rows = np.concatenate([part, np.zeros(-len(part) % m, np.int64)]).reshape(-1, m)
        packed[start : start + _AT_ONCE] = rows @ powers
    return torch.from_numpy(packed)


@cache
def digits(k: int, m: int, device: torch.device) -> Tensor:
    """The m codes that each byte stands for, one byte after the other: uint8, `(k^m · m,)`."""
    return torch.cartesian_prod(*[torch.arange(k)] * m).reshape(-1).to(device, torch.uint8)
