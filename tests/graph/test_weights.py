"""Which weights there are in models of every kind, what they cost, and what may stand for them."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn

from autocompress.graph import analyse
from autocompress.graph.costs import count_params, layer_macs, profile
from autocompress.graph.weights import Obstacle, Weight, weights_of
from tests.graph.zoo import Functional, Lstm, Shared, UNet, encoder


def weights(model: nn.Module, example: Tensor) -> dict[str, Weight]:
    described = weights_of(model, analyse(model.eval(), example), layer_macs(model, example))
    return {weight.name: weight for weight in described}


class Language(nn.Module):
    """A tied embedding, positions that are added, and a recurrent layer of two directions."""

    def __init__(self) -> None:
        super().__init__()
        self.embed, self.scaled = nn.Embedding(40, 16), nn.Embedding(40, 16, max_norm=1.0)
        self.position, self.token = nn.Parameter(torch.randn(1, 7, 16)), nn.Parameter(torch.randn(1, 1, 16))
        self.rnn = nn.GRU(16, 8, bidirectional=True, batch_first=True)
        self.head = nn.Linear(16, 40, bias=False)
        self.head.weight = self.embed.weight

    def forward(self, x: Tensor) -> Tensor:
        states = self.embed(x) + self.scaled(x) + self.position + self.token
        return self.head(self.rnn(states)[0].mean(1))


def test_every_parameter_of_more_than_one_dimension_is_a_weight_and_shared_ones_are_one() -> None:
    model = Language()
    described = weights(model, torch.randint(40, (2, 7)))
    gates = {
        f"rnn.weight_{of}_l0{end}": (24, size)
        for of, size in (("ih", 16), ("hh", 8))
        for end in ("", "_reverse")
    }
    shapes = {"embed": (40, 16), "scaled": (40, 16), "position": (1, 7, 16), **gates}
    assert {name: weight.shape for name, weight in described.items()} == shapes
    assert list(described)[:3] == ["embed", "scaled", "position"]
    assert described["embed"].aliases == ("head", "embed.weight", "head.weight")
    assert described["position"].folded == (7, 16)
    assert {weight.kind for weight in described.values()} == {"Embedding", "Language", "GRU"}
    obstacles = {name: weight.obstacle for name, weight in described.items()}
    assert obstacles == {
        "embed": Obstacle.SHARED, "scaled": Obstacle.SCALES_ROWS, "position": Obstacle.NO_LAYER,
        **dict.fromkeys(gates, Obstacle.NO_LAYER),
    }  # fmt: skip


def test_a_weight_is_multiplied_as_often_as_its_operators_say() -> None:
    described = weights(Language(), torch.randint(40, (3, 7)))
    macs = {name: weight.macs for name, weight in described.items()}
    assert macs["embed"] == 16 * 40  # by the head; looking up is no multiplication
    assert macs["scaled"] == macs["position"] == 0
    for end in ("", "_reverse"):
        assert macs[f"rnn.weight_ih_l0{end}"] == 7 * 24 * 16
        assert macs[f"rnn.weight_hh_l0{end}"] == 7 * 24 * 8


@pytest.mark.parametrize("make", [Functional, Lstm, Shared, UNet, encoder])
def test_weights_cost_what_the_model_does(make: type[nn.Module]) -> None:
    model, x = make().eval(), torch.randn(2, 3, 8, 8)
    described = weights(model, x).values()
    # All but attention's own products, each 16 × 16 tokens of 24 features, in two layers.
    own_products = 2 * 2 * 16 * 16 * 24 if make is encoder else 0
    assert sum(weight.macs for weight in described) == layer_macs(model, x)[""] - own_products
    vectors = sum(p.numel() for p in model.parameters() if sum(n > 1 for n in p.shape) < 2)
    assert sum(weight.params for weight in described) == count_params(model) - vectors


def test_functional_weights_go_by_their_own_names_and_layers_by_theirs() -> None:
    described = weights(Functional(), torch.randn(2, 3, 8, 8))
    assert list(described) == ["weight", "matrix", "head"]
    assert described["weight"].layer == described["matrix"].layer == ""
    assert described["head"].layer == "head"
    assert described["head"].parameter == "head.weight"


def test_transposed_convolutions_and_a_bare_layer() -> None:
    transposed = nn.Sequential(nn.ConvTranspose2d(8, 12, (2, 3), groups=2))
    (weight,) = weights(transposed, torch.randn(2, 8, 4, 4)).values()
    assert (weight.shape, weight.folded, weight.groups) == ((8, 6, 2, 3), (12, 4, 2, 3), 2)
    assert weight.obstacle is None
    (bare,) = weights(nn.Linear(6, 4), torch.randn(2, 6)).values()
    assert (bare.name, bare.obstacle) == ("weight", Obstacle.NO_NAME)


def test_profiles_say_of_each_weight_how_ranks_can_shrink_it() -> None:
    model, x = UNet().eval(), torch.randn(2, 3, 8, 8)
    layers = profile(model, x, analyse(model, x)).layers
    assert {layer.name: layer.factorable for layer in layers} == dict.fromkeys(
        ("enter", "down", "up", "join", "leave"), True
    )
    recurrent = Lstm().eval()
    layers = profile(recurrent, x, analyse(recurrent, x)).layers
    recurrent_weights = {name for name, _ in recurrent.named_parameters() if "rnn.weight" in name}
    assert {layer.name: (layer.factorable, layer.product) for layer in layers} == {
        **dict.fromkeys(("enter", "hidden", "head"), (True, True)),
        **dict.fromkeys(recurrent_weights, (False, True)),
    }
