"""Cut points and residual branches of graphs whose shape is known."""

from __future__ import annotations

import pytest
import torch
import torchvision.models as tv
from torch import Tensor, nn

from autocompress.graph import analyse
from autocompress.graph.costs import layer_macs, node_macs, profile
from autocompress.models.registry import model_factory
from tests.graph.zoo import UNet


@pytest.fixture(scope="module")
def resnet20() -> nn.Module:
    return model_factory("resnet20", (3, 32, 32), 10)().eval()


def test_cut_points_of_a_resnet_are_the_ends_of_its_blocks(resnet20: nn.Module) -> None:
    cuts = analyse(resnet20, torch.randn(2, 3, 32, 32)).cut_points
    blocks = [f"layer{stage}.{block}" for stage in (1, 2, 3) for block in (0, 1, 2)]
    assert [cut.name for cut in cuts] == ["conv1", *blocks[:-1], "layer3.2.conv2"]
    assert cuts[0].shape == (16, 32, 32)
    assert cuts[4].shape == (32, 16, 16)
    assert cuts[-1].shape == (64,)


def test_residual_branches_are_told_from_their_shortcuts(resnet20: nn.Module) -> None:
    residuals = analyse(resnet20, torch.randn(2, 3, 32, 32)).residuals
    assert len(residuals) == 9
    assert residuals[0].branch == ("layer1.0.conv1", "layer1.0.bn1", "layer1.0.conv2", "layer1.0.bn2")
    assert not any(residual.shortcut for residual in residuals)
    projected = analyse(tv.resnet18().eval(), torch.randn(2, 3, 32, 32)).residuals
    assert [r.shortcut for r in projected if r.shortcut] == [
        (f"layer{stage}.0.downsample.0", f"layer{stage}.0.downsample.1") for stage in (2, 3, 4)
    ]


@pytest.mark.parametrize(
    ("layers", "shape", "tokens"),
    [
        ((nn.Conv1d(2, 6, 3), nn.BatchNorm1d(6), nn.ReLU(), nn.Conv1d(6, 4, 3)), (2, 9), False),
        ((nn.Linear(9, 6), nn.LayerNorm(6), nn.ReLU(), nn.Linear(6, 4)), (5, 9), True),
    ],
    ids=["signal", "tokens"],
)
def test_signals_and_tokens_are_told_apart(
    layers: tuple[nn.Module, ...], shape: tuple[int, int], tokens: bool
) -> None:
    model = nn.Sequential(*layers, nn.Flatten(), nn.Linear(20, 3)).eval()
    cuts = analyse(model, torch.randn(2, *shape)).cut_points
    assert [len(cut.shape) for cut in cuts] == [2, 1]
    assert cuts[0].tokens == tokens


def test_a_long_skip_leaves_cut_points_outside_it_alone() -> None:
    cuts = analyse(UNet().eval(), torch.randn(2, 3, 8, 8)).cut_points
    # Before the fork, after the join with the skip, and before the last layer.
    assert [cut.name for cut in cuts] == ["enter", "up", "join"]
    assert cuts[1].shape == (32, 8, 8)


def test_every_block_of_a_transformer_ends_in_a_cut_point() -> None:
    model = tv.VisionTransformer(32, 8, 3, 4, 32, 48).eval()
    cuts = analyse(model, torch.randn(2, 3, 32, 32)).cut_points
    tokens = [cut for cut in cuts if cut.shape == (17, 32)]
    # After each of attention and MLP, in three blocks; the last one goes through the final norm.
    assert len(tokens) >= 6


class _SequenceFirst(nn.Module):
    """`(B, 4, T)` → classes, with its attention between two transpositions to `(T, B, 12)`."""

    def __init__(self) -> None:
        super().__init__()
        self.stem, self.attention = nn.Conv1d(4, 12, 3, padding=1), nn.MultiheadAttention(12, 3)
        self.middle, self.head = nn.Linear(12, 12), nn.Linear(12, 3)

    def forward(self, x: Tensor) -> Tensor:
        x = torch.relu(self.stem(x)).permute(2, 0, 1)
        x = self.attention(x, x, x, need_weights=False)[0]
        y: Tensor = self.head(self.middle(x).relu().permute(1, 2, 0).mean(2))
        return y


def test_a_tensor_whose_first_dimension_is_not_the_batch_is_no_cut_point() -> None:
    cuts = analyse(_SequenceFirst().eval(), torch.randn(2, 4, 10)).cut_points
    # What the heads make is (B, 3, T, 4); what their attention returns is (T, B, 12).
    assert [cut.shape for cut in cuts] == [(12, 10), (3, 10, 4), (12,)]


def test_macs_before_a_cut_point_add_up(residual: nn.Module, images: Tensor) -> None:
    analysis = analyse(residual, images)
    counts = node_macs(residual, images, analysis)
    assert sum(counts.values()) == layer_macs(residual, images)[""]
    cuts = profile(residual, images, analysis).cut_points
    assert cuts[0].macs == layer_macs(residual, images)["stem"]
    assert [cut.macs for cut in cuts] == sorted(cut.macs for cut in cuts)


def test_of_a_sum_of_three_each_branch_is_gated_and_never_the_stream() -> None:
    class Parallel(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.long = nn.Sequential(nn.Linear(8, 8), nn.ReLU(), nn.Linear(8, 8))
            self.short, self.head = nn.Linear(8, 8), nn.Linear(8, 3)

        def forward(self, x: Tensor) -> Tensor:
            return self.head(x + self.long(x) + self.short(x))

    branches = analyse(Parallel().eval(), torch.randn(2, 8)).residuals
    assert [branch.branch for branch in branches] == [("long.0", "long.2"), ("short",)]


def test_sums_with_a_factor_are_no_residuals() -> None:
    class Scaled(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.branch, self.head = nn.Linear(8, 8), nn.Linear(8, 3)

        def forward(self, x: Tensor) -> Tensor:
            return self.head(torch.add(self.branch(x), x, alpha=2))

    assert not analyse(Scaled().eval(), torch.randn(2, 8)).residuals
