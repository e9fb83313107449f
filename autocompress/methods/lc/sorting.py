"""Order of many numbers; on the CPU by NumPy, whose sort and partition are vectorised."""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor


def increasing(x: Tensor) -> Tensor:
    """The numbers in increasing order, `(n,)`."""
    if x.device.type != "cpu":
        return x.sort().values
    return torch.from_numpy(np.sort(x.detach().numpy()))


def kth_largest(x: Tensor, k: int) -> Tensor:
    """The k-th largest number, `()`; k from 1 to n."""
    place = len(x) - k
    if x.device.type != "cpu":
        return x.kthvalue(place + 1).values
    return torch.from_numpy(np.partition(x.detach().numpy(), place)[place : place + 1])[0]
