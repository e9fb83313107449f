"""Coupled channel groups of small models, each proven by removal."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from autocompress.errors import TraceError
from autocompress.graph import analyse, mask_channels, remove_channels
from autocompress.graph.proof import relative_difference


class GroupedChain(nn.Module):
    def __init__(self, groups: int) -> None:
        super().__init__()
        self.first = nn.Conv2d(3, 16, 1)
        self.grouped = nn.Conv2d(16, 32, 3, padding=1, groups=groups)
        self.last = nn.Conv2d(32, 4, 1)

    def forward(self, x: Tensor) -> Tensor:
        return self.last(F.gelu(self.grouped(F.silu(self.first(x))))).mean((2, 3))


class SqueezeExcite(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Conv2d(3, 8, 3)
        self.down = nn.Conv2d(8, 4, 1)
        self.up = nn.Conv2d(4, 8, 1)
        self.head = nn.Linear(8, 5)

    def forward(self, x: Tensor) -> Tensor:
        x = torch.relu(self.stem(x))
        scale = torch.sigmoid(self.up(torch.relu(self.down(x.mean((2, 3), keepdim=True)))))
        return self.head((x * scale).mean((2, 3)))


class Shared(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.first = nn.Linear(192, 12)
        self.middle = nn.Linear(12, 12)
        self.head = nn.Linear(12, 5)

    def forward(self, x: Tensor) -> Tensor:
        x = torch.relu(self.first(x.flatten(1)))
        x = torch.relu(self.middle(torch.relu(self.middle(x))))
        return self.head(x)


class Functional(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.randn(6, 3, 3, 3))
        self.head = nn.Linear(6, 5)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(F.conv2d(x, self.weight).relu().mean((2, 3)))


class Burned(nn.Module):
    """Its forward pass names the width, so nothing can be removed."""

    def __init__(self) -> None:
        super().__init__()
        self.first = nn.Conv2d(3, 8, 1)
        self.head = nn.Linear(8 * 64, 5)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.first(x).reshape(-1, 8 * 64))


class Upsampling(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.down = nn.Conv2d(3, 8, 3, 2, 1)
        self.up = nn.ConvTranspose2d(8, 6, 2, 2)
        self.head = nn.Conv2d(14, 2, 1)

    def forward(self, x: Tensor) -> Tensor:
        low = torch.relu(self.down(x))
        high = torch.cat([self.up(low), F.interpolate(low, scale_factor=2.0)], 1)
        return self.head(high)


class OneDimensional(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.conv = nn.Conv1d(3, 8, 3)
        self.norm = nn.BatchNorm1d(8)
        self.head = nn.Linear(8 * 62, 5)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(F.relu(self.norm(self.conv(x.flatten(2)))).flatten(1))


def removal_is_exact(model: nn.Module, images: Tensor) -> int:
    """Remove two of three units of every group and compare; the number of groups."""
    model = model.eval()
    analysis = analyse(model, images)
    keep = {group.name: range(0, group.width, 3) for group in analysis.groups}
    compact = remove_channels(model, analysis, keep)
    masked = mask_channels(model, analysis, keep)
    with torch.no_grad():
        assert relative_difference(masked(images), compact(images)) < 1e-5
    before = sum(p.numel() for p in model.parameters())
    assert not keep or sum(p.numel() for p in compact.parameters()) < before
    return len(analysis.groups)


@pytest.mark.parametrize(
    ("model", "groups"),
    [
        (GroupedChain(16), 1),
        (GroupedChain(2), 2),
        (SqueezeExcite(), 2),
        (Shared(), 1),
        (Functional(), 1),
        (Upsampling(), 2),
        (OneDimensional(), 1),
    ],
    ids=lambda value: type(value).__name__ if isinstance(value, nn.Module) else str(value),
)
def test_removed_channels_leave_outputs_unchanged(model: nn.Module, groups: int, images: Tensor) -> None:
    torch.manual_seed(0)
    assert removal_is_exact(model, images) == groups


def test_residual_add_concat_depthwise_and_flatten_couple_channels(
    residual: nn.Module, images: Tensor
) -> None:
    analysis = analyse(residual, images)
    by_name = {group.name: set(group.layers) for group in analysis.groups}
    assert by_name == {
        "stem": {"stem", "norm", "branch", "depthwise", "side", "head"},
        "side": {"side", "head"},
    }
    head = next(m for m in analysis.group("side").members if m.layer == "head")
    assert (head.unit_of[: 8 * 16] == -1).all()
    assert head.unit_of[8 * 16 :].tolist() == [unit for unit in range(6) for _ in range(16)]
    assert removal_is_exact(residual, images) == 2


def test_every_parametric_layer_is_in_a_group_or_frozen_with_a_reason(
    residual: nn.Module, images: Tensor
) -> None:
    analysis = analyse(residual, images)
    free = {m.layer for g in analysis.groups for m in g.members if m.role != "in"}
    assert free | set(analysis.frozen) == set(analysis.layers)
    assert analysis.frozen == {"head": "it makes the model's outputs"}


def test_sizes_burned_into_the_code_freeze_their_group(images: Tensor) -> None:
    analysis = analyse(Burned().eval(), images)
    assert analysis.groups == ()
    assert "does not run without these channels" in analysis.frozen["first"]


def test_unknown_operators_freeze_what_they_touch(images: Tensor) -> None:
    class Unknown(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.first = nn.Conv2d(3, 8, 1)
            self.second = nn.Conv2d(8, 8, 1)
            self.head = nn.Linear(8, 5)

        def forward(self, x: Tensor) -> Tensor:
            x = torch.flip(self.first(x), (1,))
            return self.head(torch.relu(self.second(x)).mean((2, 3)))

    analysis = analyse(Unknown().eval(), images)
    assert [group.name for group in analysis.groups] == ["second"]
    assert analysis.frozen["first"] == "operator flip is not analysed"


def test_layer_norm_and_attention_are_left_alone_with_their_reasons() -> None:
    layer = nn.TransformerEncoderLayer(16, 2, 32, batch_first=True, dropout=0.0)
    model = nn.Sequential(nn.Linear(6, 16), layer, nn.Flatten(), nn.Linear(16 * 5, 3)).eval()
    analysis = analyse(model, torch.randn(2, 5, 6))
    assert [group.name for group in analysis.groups] == ["1.linear1"]
    assert "normalisation" in " ".join(analysis.frozen.values())


def test_control_flow_that_depends_on_data_is_refused_with_its_reason() -> None:
    class Branching(nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            return x if x.sum() > 0 else -x

    with pytest.raises(TraceError, match="data"):
        analyse(Branching(), torch.randn(2, 3))


def test_analysis_leaves_the_model_as_it_was(residual: nn.Module, images: Tensor) -> None:
    before = {name: tensor.clone() for name, tensor in residual.state_dict().items()}
    residual.train()
    analyse(residual, images)
    assert residual.training
    assert all(torch.equal(before[name], tensor) for name, tensor in residual.state_dict().items())


@pytest.mark.parametrize(
    "name", ["resnet18", "mobilenet_v3_small", "densenet121", "efficientnet_b0", "squeezenet1_0"]
)
def test_torchvision_models_stay_exact(name: str) -> None:
    import torchvision

    torch.manual_seed(0)
    model = torchvision.models.get_model(name, weights=None, num_classes=7)
    assert removal_is_exact(model, torch.randn(2, 3, 64, 64)) > 5


def test_models_that_differ_by_a_flag_alone_have_their_own_analyses(images: Tensor) -> None:
    class Optional(nn.Module):
        def __init__(self, skip: bool) -> None:
            super().__init__()
            self.skip = skip
            self.a = nn.Conv2d(3, 6, 1)
            self.b = nn.Conv2d(6, 6, 1)
            self.head = nn.Linear(6, 5)

        def forward(self, x: Tensor) -> Tensor:
            x = torch.relu(self.a(x))
            y = torch.relu(self.b(x))
            return self.head((x + y if self.skip else y).mean((2, 3)))

    assert [g.name for g in analyse(Optional(False).eval(), images).groups] == ["a", "b"]
    assert [g.name for g in analyse(Optional(True).eval(), images).groups] == ["a"]


def test_operators_that_return_tuples_keep_their_units(images: Tensor) -> None:
    model = nn.Sequential(nn.Conv2d(3, 6, 1), nn.AdaptiveMaxPool2d(2), nn.Flatten(), nn.Linear(24, 5))
    assert removal_is_exact(model, images) == 1


def test_forms_that_a_rule_does_not_foresee_are_frozen(images: Tensor) -> None:
    class Sorting(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.first = nn.Linear(192, 8)
            self.head = nn.Linear(8, 5)

        def forward(self, x: Tensor) -> Tensor:
            return self.head(self.first(x.flatten(1)).sort(-1)[0])

    analysis = analyse(Sorting().eval(), images)
    assert analysis.groups == ()
    assert analysis.frozen["first"] == "operator sort is not analysed"


def test_layers_that_start_at_zero_hide_no_wrong_removal(images: Tensor) -> None:
    class Masking(nn.Module):
        """Its zero-initialised scale makes every removal look right until it is trained."""

        def __init__(self) -> None:
            super().__init__()
            self.first = nn.Conv2d(3, 8, 1)
            self.scale = nn.Parameter(torch.zeros(1))
            self.head = nn.Linear(8, 5)

        def forward(self, x: Tensor) -> Tensor:
            x = self.first(x)
            return self.head((x * self.scale / x.shape[1]).mean((2, 3)))

    # The width enters as a number that the exported graph holds fixed.
    assert analyse(Masking().eval(), images).groups == ()
