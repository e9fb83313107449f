"""Torchvision's kinds of classifiers, and every kind of model: removed, trained, stored, re-loaded.

All of torchvision's architectures run in `examples/benchmarks/every_architecture.py`.
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest
import torch
import torchvision.models as tv
from torch import Tensor, nn
from torchvision.models.convnext import CNBlockConfig, ConvNeXt
from torchvision.models.maxvit import MaxVit
from torchvision.models.swin_transformer import PatchMergingV2, SwinTransformer, SwinTransformerBlockV2
from torchvision.models.vision_transformer import VisionTransformer

from autocompress.checkpoint import export_program, load_program
from autocompress.graph import analyse, compact
from autocompress.graph.proof import TOLERANCE, relative_difference
from tests.graph.zoo import MODELS


def named(name: str, **options: object) -> Callable[[], nn.Module]:
    return lambda: tv.get_model(name, weights=None, num_classes=7, **options)


# A small model of each kind, and the side of the images that it takes.
FAMILIES: dict[str, tuple[Callable[[], nn.Module], int]] = {
    "convnext": (
        lambda: ConvNeXt([CNBlockConfig(16, 24, 2), CNBlockConfig(24, None, 1)], num_classes=7),
        32,
    ),
    "densenet": (
        lambda: tv.DenseNet(8, (2, 3), 16, num_classes=7),
        32,
    ),
    "maxvit": (
        lambda: MaxVit((32, 32), 16, 4, [16, 32], [1, 1], 8, 0.1, num_classes=7),
        32,
    ),
    "mobilenet_v3": (named("mobilenet_v3_small"), 32),
    "resnet": (named("resnet18"), 32),
    "shufflenet": (named("shufflenet_v2_x0_5"), 32),
    "squeezenet": (named("squeezenet1_1"), 64),
    "swin_v2": (
        lambda: SwinTransformer(
            [4, 4],
            24,
            [2, 2],
            [2, 4],
            [4, 4],
            num_classes=7,
            block=SwinTransformerBlockV2,
            downsample_layer=PatchMergingV2,
        ),
        32,
    ),
    "vit": (lambda: VisionTransformer(32, 8, 2, 4, 32, 48, num_classes=7), 32),
}
FAMILIES |= {name: (make, 8) for name, make in MODELS.items()}


@pytest.mark.parametrize("family", FAMILIES)
def test_half_of_every_group_goes_and_the_rest_trains_and_is_stored(family: str, tmp_path: Path) -> None:
    make, side = FAMILIES[family]
    torch.manual_seed(0)
    model = make().eval()
    with torch.no_grad():
        for parameter in model.parameters():
            # As trained models are: nothing at zero, where it would hide what is removed.
            parameter.add_(0.02 * torch.randn_like(parameter))
    images = torch.randn(3, 3, side, side)
    analysis = analyse(model, images[:2])
    assert analysis.groups
    keep = {g.name: sorted(torch.randperm(g.width)[: max(1, g.width // 2)].tolist()) for g in analysis.groups}
    smaller, difference = compact(model, analysis, keep, images)
    assert difference < 1e-4
    assert sum(p.numel() for p in smaller.parameters()) < sum(p.numel() for p in model.parameters())
    train_one_step(smaller, images)
    export_program(smaller, images[:2], tmp_path / "model.pt2")
    loaded = load_program(tmp_path / "model.pt2")
    with torch.no_grad():
        # Folded batch norms round otherwise, which these random networks of up to 100 layers amplify.
        assert relative_difference(smaller.eval()(images), loaded(images)) < TOLERANCE


def train_one_step(model: nn.Module, images: Tensor) -> None:
    """Every parameter that matters gets a gradient, and what is computed changes."""
    model.train()
    optimizer = torch.optim.SGD(model.parameters(), lr=1e-4)
    with torch.no_grad():
        before = model.eval()(images)
    outputs = model.train()(images)
    targets = torch.zeros((len(images), *outputs.shape[2:]), dtype=torch.long)
    nn.functional.cross_entropy(outputs, targets).backward()
    assert sum(p.grad is not None for p in model.parameters()) > 0.9 * len(list(model.parameters()))
    optimizer.step()
    with torch.no_grad():
        after = model.eval()(images)
    assert torch.isfinite(after).all()
    assert not torch.equal(before, after)
