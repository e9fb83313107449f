"""Recurrent layers cost what PyTorch counts step by step, in no time that depends on their steps."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import nn
from torch.utils.flop_counter import FlopCounterMode

from autocompress.graph.counting import counting

LAYERS = [
    (nn.LSTM, {"num_layers": 2, "batch_first": True}),
    (nn.LSTM, {"num_layers": 2, "bidirectional": True, "bias": False}),
    (nn.LSTM, {"proj_size": 3}),
    (nn.GRU, {"bias": False}),
    (nn.GRU, {"num_layers": 2, "bidirectional": True, "batch_first": True}),
    (nn.RNN, {"nonlinearity": "relu", "bias": False}),
]


@pytest.mark.parametrize("device", ["cpu", "meta"])
@pytest.mark.parametrize(("kind", "options"), LAYERS)
@pytest.mark.filterwarnings("ignore:LSTM with projections")
def test_a_recurrent_layer_costs_what_its_steps_do(
    kind: type[nn.Module], options: dict[str, Any], device: str
) -> None:
    layer, sequences = kind(5, 8, **options), torch.randn(3, 7, 5)
    with torch.no_grad(), FlopCounterMode(display=False) as by_steps:
        made = layer.to("meta")(sequences.to("meta"))
    with counting() as counter:
        counted = kind(5, 8, **options).to(device)(sequences.to(device))
    assert counter.get_total_flops() == by_steps.get_total_flops() > 0
    shapes, expected = ([part.shape for part in torch.utils._pytree.tree_leaves(x)] for x in (counted, made))
    assert shapes == expected


def test_packed_sequences_cost_the_steps_that_they_have() -> None:
    layer = nn.GRU(5, 8)
    packed = nn.utils.rnn.pack_padded_sequence(torch.randn(7, 3, 5), torch.tensor([7, 4, 2]))
    with counting() as counter:
        layer(packed)
    assert counter.get_total_flops() == 2 * (7 + 4 + 2) * (3 * 8 * 5 + 3 * 8 * 8)


def test_a_long_sequence_takes_no_longer_on_tensors_without_numbers() -> None:
    """A million steps, each of which takes PyTorch a tenth of a millisecond at the least."""
    layer = nn.LSTM(4, 4, batch_first=True, device="meta")
    with counting() as counter:
        outputs, _ = layer(torch.empty(1, 10**6, 4, device="meta"))
    assert outputs.shape == (1, 10**6, 4)
    assert counter.get_total_flops() == 2 * 10**6 * (16 * 4 + 16 * 4)
