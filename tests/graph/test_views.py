"""Channels through operators that arrange elements anew."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from autocompress.graph import analyse, compact

# What is done with `(B, 8, 8, 8)`, and how many channels and units of the 8 then are.
Arrangement = Callable[[Tensor], Tensor]
ARRANGEMENTS: dict[str, tuple[Arrangement, int, int]] = {
    "reshape_as": (lambda x: torch.relu(x.flatten(0, 1)).reshape_as(x), 8, 8),
    "view_as": (lambda x: torch.relu(x.flatten(2)).view_as(x), 8, 8),
    "movedim": (lambda x: torch.relu(x.movedim(1, -1)).movedim((3, 1), (1, 2)), 8, 8),
    "mT": (lambda x: torch.relu(x.mT), 8, 8),
    "pixel_shuffle": (lambda x: F.pixel_shuffle(x, 2), 2, 2),
    "pixel_unshuffle": (lambda x: F.pixel_unshuffle(x, 4), 128, 8),
    "glu": (lambda x: F.glu(x, 1), 4, 4),
    "glu along another dimension": (lambda x: F.glu(x, -1), 8, 8),
}


class Arranged(nn.Module):
    """Two convolutions with an arrangement between them."""

    def __init__(self, arrange: Arrangement, channels: int) -> None:
        super().__init__()
        self.first, self.second = nn.Conv2d(3, 8, 1), nn.Conv2d(channels, 5, 1)
        self.arrange = arrange

    def forward(self, x: Tensor) -> Tensor:
        return self.second(self.arrange(self.first(x))).mean((2, 3))


@pytest.mark.parametrize("name", ARRANGEMENTS)
def test_channels_are_followed(name: str, images: Tensor) -> None:
    arrange, channels, width = ARRANGEMENTS[name]
    model = Arranged(arrange, channels).eval()
    analysis = analyse(model, images)
    assert {group.name: group.width for group in analysis.groups} == {"first": width}
    keep = {"first": range(0, width, 2)}
    smaller, difference = compact(model, analysis, keep, images)
    assert difference < 1e-5
    assert smaller.first.out_channels == 4
    assert smaller.second.in_channels == channels // 2
