"""Multiply-accumulates of whatever runs, counted by PyTorch, recurrent layers without their steps."""

from __future__ import annotations

import contextlib
import math
from collections.abc import Iterator, Sequence
from typing import Any

import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils.flop_counter import FlopCounterMode


def _recurrent_flops(rows: Sequence[int], *arguments: Any, out_shape: Any = None) -> int:
    """Every row of every step is multiplied with each weight once: 2 · rows · Σ numel(W).

    PyTorch's own counter knows neither oneDNN's nor cuDNN's operators, and takes milliseconds for each step
    of those that are made of products.

    Args:
        rows: shape of the sequences, whatever the order of steps and rows, or of packed rows.
        arguments: the operator's others, tensors as their shapes; the last list is that of the parameters.
        out_shape: what the counter passes besides.
    """
    lists = [a for a in arguments if isinstance(a, (list, tuple)) and not isinstance(a, torch.Size)]
    return 2 * math.prod(rows[:-1]) * sum(math.prod(shape) for shape in lists[-1] if len(shape) == 2)


_PACKETS = [getattr(torch.ops.aten, name) for name in ("lstm", "gru", "rnn_tanh", "rnn_relu")]
# By its overloads the counter knows that it need not take an operator apart; by the packet how to count it.
_RECURRENT = {
    operator: _recurrent_flops
    for packet in _PACKETS
    for operator in (packet, *(getattr(packet, overload) for overload in packet.overloads()))
}


class _WithoutSteps(TorchDispatchMode):  # type: ignore[no-untyped-call]
    """Gives what recurrent operators return for tensors without numbers, whose steps PyTorch would go through
    in Python, one by one."""

    def __torch_dispatch__(
        self, func: Any, types: Sequence[type], args: tuple[Any, ...] = (), kwargs: Any = None
    ) -> Any:
        if func not in _RECURRENT or not args[0].is_meta:
            return func(*args, **(kwargs or {}))
        named = {a.name: given for a, given in zip(func._schema.arguments, args, strict=False)}
        states = [named["hx"]] if isinstance(named["hx"], Tensor) else named["hx"]
        width = states[0].shape[-1] * (1 + named["bidirectional"])
        outputs = args[0].new_empty((*args[0].shape[:-1], width))
        return outputs, *(state.new_empty(state.shape) for state in states)


@contextlib.contextmanager
def counting() -> Iterator[FlopCounterMode]:
    """Count the floating point operations of all that runs inside, two of which are a multiply-accumulate.

    In inference mode, where operators arrive that are otherwise taken apart before.
    """
    counter = FlopCounterMode(display=False, custom_mapping=_RECURRENT)
    with torch.inference_mode(), _WithoutSteps(), counter:  # type: ignore[no-untyped-call]
        yield counter
