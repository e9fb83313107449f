"""Blocks under autocast or another gradient mode are analysed as the operators in them."""

from __future__ import annotations

import copy
import io
from collections.abc import Callable

import pytest
import torch
from torch import Tensor, nn

from autocompress.errors import TraceError
from autocompress.graph import analyse
from autocompress.graph.exporting import export
from autocompress.graph.proof import relative_difference
from tests.graph.test_analysis import removal_is_exact


class Block(nn.Module):
    """Two convolutions, the first of them in a block, whose result is returned from it too."""

    def __init__(self, block: Callable[[], object]) -> None:
        super().__init__()
        self.first, self.second, self.block = nn.Conv2d(3, 8, 3), nn.Conv2d(8, 6, 3), block
        self.head = nn.Linear(6, 4)

    def forward(self, x: Tensor) -> Tensor:
        with self.block():
            x = torch.relu(self.first(x))
        return self.head(self.second(x.float()).mean((2, 3)))


class Nested(Block):
    @torch.no_grad()
    def forward(self, x: Tensor) -> Tensor:
        with self.block():
            x = torch.relu(self.first(x))
            with torch.enable_grad():
                x = x * 2
        return self.head(self.second(x).mean((2, 3)))


def autocast_off() -> object:
    return torch.autocast("cpu", enabled=False)


BLOCKS = [autocast_off, lambda: torch.autocast("cuda", enabled=False), torch.no_grad, torch.enable_grad]


@pytest.mark.parametrize("block", BLOCKS)
@pytest.mark.parametrize("kind", [Block, Nested])
@pytest.mark.filterwarnings("ignore:User provided device_type of 'cuda'")
def test_channels_in_and_around_a_block_are_removed(
    kind: type[Block], block: Callable[[], object], images: Tensor
) -> None:
    assert removal_is_exact(kind(block), images) == 2


@pytest.mark.parametrize("kind", [Block, Nested])
def test_a_program_of_a_model_with_blocks_computes_what_it_does_and_is_stored(
    kind: type[Block], images: Tensor
) -> None:
    model = kind(autocast_off).eval()
    program, stored = export(model, images), io.BytesIO()
    torch.export.save(program, stored)
    stored.seek(0)
    with torch.no_grad():
        outputs = torch.export.load(stored).module()(images[:3])
        assert relative_difference(model(images[:3]), outputs) < 1e-6


@pytest.mark.parametrize(("block", "trained"), [(torch.no_grad, False), (autocast_off, True)])
def test_a_graph_lets_gradients_pass_where_the_model_does(
    block: Callable[[], object], trained: bool, images: Tensor
) -> None:
    model = Block(block)
    graph = analyse(model, images).trace.module(copy.deepcopy(model))
    for module in (model, graph):
        module(images).sum().backward()
    gradients = graph.get_parameter("first.weight").grad, model.first.weight.grad
    assert all((gradient is not None) is trained for gradient in gradients)
    assert torch.allclose(graph.get_parameter("second.weight").grad, model.second.weight.grad)


def test_a_block_in_half_precision_is_refused(images: Tensor) -> None:
    model = Block(lambda: torch.autocast("cpu", torch.bfloat16))
    with pytest.raises(
        TraceError, match=r"forward enters torch.autocast\('cpu', torch.bfloat16\): enable it on"
    ):
        analyse(model, images)


class Conditional(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.conv = nn.Conv2d(3, 4, 1)

    def forward(self, x: Tensor) -> Tensor:
        return torch.cond(x.sum() > 0, lambda x: self.conv(x) + 1, lambda x: self.conv(x) - 1, (x,))


def test_functions_that_are_called_on_a_condition_are_refused(images: Tensor) -> None:
    with pytest.raises(TraceError, match="its forward has functions that are called by cond"):
        analyse(Conditional(), images)
