"""Coupled channel groups of small models of every kind, each proven by removal."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from autocompress.errors import TraceError
from autocompress.graph import TOLERANCE, analyse, compact
from autocompress.graph.bridging import bridge
from tests.graph.zoo import MODELS, Branching, Constants, FusedAttention, Tokens


class GroupedChain(nn.Module):
    def __init__(self, groups: int) -> None:
        super().__init__()
        self.first = nn.Conv2d(3, 16, 1)
        self.grouped = nn.Conv2d(16, 32, 3, padding=1, groups=groups)
        self.last = nn.Conv2d(32, 4, 1)

    def forward(self, x: Tensor) -> Tensor:
        return self.last(F.gelu(self.grouped(F.silu(self.first(x))))).mean((2, 3))


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


def removal_is_exact(model: nn.Module, images: Tensor) -> int:
    """Remove two of three units of every group and compare; the number of groups."""
    model = model.eval()
    analysis = analyse(model, images)
    keep = {group.name: range(0, group.width, 3) for group in analysis.groups}
    smaller, difference = compact(model, analysis, keep, images)
    assert difference < 1e-5
    before = sum(p.numel() for p in model.parameters())
    assert not keep or sum(p.numel() for p in smaller.parameters()) < before
    return len(analysis.groups)


@pytest.mark.parametrize(
    ("model", "groups"),
    [(GroupedChain(16), 1), (GroupedChain(2), 2), (Upsampling(), 2)],
    ids=["many groups", "few groups", "upsampling"],
)
def test_removed_channels_leave_outputs_unchanged(model: nn.Module, groups: int, images: Tensor) -> None:
    torch.manual_seed(0)
    assert removal_is_exact(model, images) == groups


# Group → width, for each model of the zoo.
WIDTHS = {
    "constants": {"first": 24},
    "mlp": {"first": 24},
    "conv1d": {"stem": 16, "down": 8},
    "unet": {"enter": 4, "down": 8, "up": 16, "join": 16},
    "fused_attention": {"patches": 24, "body.0.qkv": 4, "body.1.qkv": 4},
    "split_attention": {"patches": 24, "body.query": 3},
    "einsum_attention": {"patches": 24, "body.both": 4},
    "transformer_encoder": {
        "patches": 24,
        "body.layers.0.self_attn": 4,
        "body.layers.0.linear1": 40,
        "body.layers.1.self_attn": 4,
        "body.layers.1.linear1": 40,
    },
    "cross_attention": {"patches": 24, "body.small": 16, "body.cross": 4, "body.again": 4},
    "shuffle": {"stem": 8, "stem#2": 8},
    "squeeze_excite": {"stem": 8, "down": 4},
    "shared": {"first": 12},
    "functional": {"weight": 6, "matrix": 10},
    "lstm": {"enter": 16, "rnn": 12, "hidden": 20},
    "projections": {"enter": 16, "wide": 20},
}


@pytest.mark.parametrize("name", MODELS)
def test_groups_are_those_that_the_architecture_couples(name: str, images: Tensor) -> None:
    torch.manual_seed(0)
    analysis = analyse(MODELS[name]().eval(), images)
    assert {group.name: group.width for group in analysis.groups} == WIDTHS[name]


@pytest.mark.parametrize("name", MODELS)
def test_every_layer_of_every_kind_of_model_is_free_or_frozen(name: str, images: Tensor) -> None:
    analysis = analyse(MODELS[name]().eval(), images)
    free = {m.layer for g in analysis.groups for m in g.members if m.role != "in"}
    assert free | set(analysis.frozen) == set(analysis.layers)
    assert not free & set(analysis.frozen)
    assert all(analysis.frozen.values())


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


def test_positions_that_no_constant_can_say_freeze_their_group(images: Tensor) -> None:
    class EverySecond(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.first = nn.Conv2d(3, 8, 1)
            self.head = nn.Linear(4, 5)

        def forward(self, x: Tensor) -> Tensor:
            return self.head(self.first(x)[:, ::2].mean((2, 3)))

    analysis = analyse(EverySecond().eval(), images)
    assert analysis.groups == ()
    assert "a slice with a step through removed channels" in analysis.frozen["first"]


def test_unknown_operators_freeze_what_they_touch(images: Tensor) -> None:
    class Unknown(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.first = nn.Conv2d(3, 8, 1)
            self.second = nn.Conv2d(8, 8, 1)
            self.head = nn.Linear(8, 5)

        def forward(self, x: Tensor) -> Tensor:
            x = torch.cumprod(self.first(x), 1)
            return self.head(torch.relu(self.second(x)).mean((2, 3)))

    analysis = analyse(Unknown().eval(), images)
    assert [group.name for group in analysis.groups] == ["second"]
    assert analysis.frozen["first"] == "operator cumprod is not analysed"


def test_a_removed_head_takes_its_rows_of_query_key_and_value(images: Tensor) -> None:
    analysis = analyse(Tokens(FusedAttention(width=24, heads=4)).eval(), images)
    members = {(m.tensor, m.dim): m for m in analysis.group("body.qkv").members}
    assert members["body.qkv.weight", 0].positions([1]).tolist() == [
        *range(6, 12),
        *range(30, 36),
        *range(54, 60),
    ]
    assert members["body.proj.weight", 1].positions([1]).tolist() == list(range(6, 12))


def test_layer_norms_without_parameters_and_single_heads_are_left_alone(images: Tensor) -> None:
    class Bare(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.first, self.norm = nn.Linear(192, 8), nn.LayerNorm(8, elementwise_affine=False)
            self.head = nn.Linear(8, 5)

        def forward(self, x: Tensor) -> Tensor:
            x = self.norm(self.first(x.flatten(1)))[:, None, None]
            return self.head(F.scaled_dot_product_attention(x, x, x)[:, 0, 0])

    frozen = analyse(Bare().eval(), images).frozen
    assert frozen["first"] == "a layer normalisation computes its statistics over these channels"


def test_control_flow_that_depends_on_data_is_refused_with_its_reason(images: Tensor) -> None:
    with pytest.raises(TraceError, match="data"):
        analyse(Branching(), images)


def test_analysis_leaves_the_model_as_it_was(residual: nn.Module, images: Tensor) -> None:
    before = {name: tensor.clone() for name, tensor in residual.state_dict().items()}
    residual.train()
    analyse(residual, images)
    assert residual.training
    assert all(torch.equal(before[name], tensor) for name, tensor in residual.state_dict().items())


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
    assert analysis.frozen["first"] == "an operator orders these channels by value"


def test_numbers_that_the_code_takes_from_a_width_stay_what_they_were(images: Tensor) -> None:
    class Averaging(nn.Module):
        """Divides by its width; its zero-initialised scale hides that until it is trained."""

        def __init__(self) -> None:
            super().__init__()
            self.first = nn.Conv2d(3, 8, 1)
            self.scale = nn.Parameter(torch.zeros(1))
            self.head = nn.Linear(8 * 64, 5)

        def forward(self, x: Tensor) -> Tensor:
            x = self.first(x)
            return self.head((x * self.scale / x.shape[1]).reshape(-1, 8 * 64))

    model = Averaging().eval()
    analysis = analyse(model, images)
    nn.init.ones_(model.scale)
    smaller, difference = compact(model, analysis, {"first": [0, 5]}, images)
    assert difference < TOLERANCE
    assert smaller.head.in_features == 2 * 64


def test_tensors_made_in_sub_modules_are_held_by_rewritten_graphs(images: Tensor) -> None:
    model = Constants().eval()
    with torch.no_grad():
        rewritten = bridge(model, analyse(model, images), []).eval()
        assert torch.allclose(rewritten(images), model(images), atol=1e-6)
        held = {name for name, tensor in rewritten.named_buffers() if tensor.numel() == 1}
        assert len(held) == 5  # a scale and a factor in each block, and the model's own buffer
        again = bridge(rewritten, analyse(rewritten, images), []).eval()
        assert torch.allclose(again(images), model(images), atol=1e-6)


def test_constants_that_the_code_keeps_are_cut_with_the_channels_of_its_graph(images: Tensor) -> None:
    class Cached(nn.Module):
        """Keeps a bias for each head, as LeViT's attention does in evaluation."""

        def __init__(self) -> None:
            super().__init__()
            self.first, self.head = nn.Linear(24, 24), nn.Linear(24, 5)
            self.bias = torch.randn(3, 8, 8)

        def forward(self, x: Tensor) -> Tensor:
            heads = self.first(x.flatten(2).reshape(-1, 8, 24)).reshape(-1, 8, 3, 8).transpose(1, 2)
            mixed = (heads @ heads.mT + self.bias).softmax(-1) @ heads
            return self.head(mixed.transpose(1, 2).flatten(2)).mean(1)

    model = Cached().eval()
    analysis = analyse(model, images)
    assert {group.name: group.width for group in analysis.groups} == {"first": 3}
    assert {member.tensor for member in analysis.group("first").members} == {
        "first.weight", "first.bias", "head.weight"
    }  # fmt: skip
    smaller, difference = compact(model, analysis, {"first": [0, 2]}, images)
    assert difference < TOLERANCE
    (bias,) = (buffer for buffer in smaller.buffers() if buffer.dim() == 3)
    assert torch.equal(bias, model.bias[[0, 2]])
    again = analyse(smaller, images)
    assert compact(smaller, again, {again.groups[0].name: [1]}, images)[1] < TOLERANCE


def test_a_graph_with_a_vmap_runs_when_it_is_rewritten(images: Tensor) -> None:
    class OverRows(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.first, self.head = nn.Linear(64, 8), nn.Linear(8, 5)

        def forward(self, x: Tensor) -> Tensor:
            return torch.vmap(lambda row: self.head(torch.relu(self.first(row.flatten(1))).mean(0)))(x)

    model = OverRows().eval()
    with torch.no_grad():
        rewritten = bridge(model, analyse(model, images), []).eval()
        assert torch.allclose(rewritten(images), model(images), atol=1e-6)
