"""What is said of a model's layers, beside what their tensors are."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from autocompress.graph.costs import count_params, layer_macs
from autocompress.graph.layers import layer_summaries
from autocompress.weights.encoded import encode_weight
from autocompress.weights.encodings import Quantized
from autocompress.weights.factored import factorize_layer


def summaries(model: nn.Module, example: Tensor) -> dict[str, dict[str, object]]:
    made = layer_summaries(model, layer_macs(model, example))
    return {layer.name: layer.to_json() for layer in made}


def test_a_dense_layer_has_its_width_full_rank_and_32_bits(residual: nn.Module, images: Tensor) -> None:
    seen = summaries(residual, images)
    assert list(seen) == ["stem", "branch", "depthwise", "side", "head"]  # the norm holds no weights
    stem = {"channels": 8, "rank": 8, "bits": 32.0, "params": 224, "macs": 8 * 27 * 64, "bytes": 4 * 224}
    assert seen["stem"] == {"name": "stem", "kind": "Conv2d", **stem}
    assert seen["head"]["rank"] == 5
    # The rest is the norm's weight and bias.
    assert sum(int(str(layer["params"])) for layer in seen.values()) == count_params(residual) - 16


def test_a_factorised_layer_stays_one_with_the_rank_of_its_factors(
    residual: nn.Module, images: Tensor
) -> None:
    before = summaries(residual, images)
    residual.set_submodule("branch", factorize_layer(residual.get_submodule("branch"), 0, 1, 3))
    after = summaries(residual, images)
    assert list(after) == list(before)
    branch = after["branch"]
    assert (branch["kind"], branch["channels"], branch["rank"]) == ("Conv2d", 8, 3)
    assert (branch["params"], branch["bits"]) == (3 * 72 + 8 * 3, 32.0)
    assert branch["macs"] == (3 * 72 + 8 * 3) * 64


def test_a_layer_that_is_stored_as_codes_has_their_bits(residual: nn.Module, images: Tensor) -> None:
    codes = torch.arange(14 * 16 * 5) % 4
    encode_weight(residual, Quantized(torch.tensor([-1.0, 0.0, 1.0, 2.0]), codes), "head.weight")
    head = summaries(residual, images)["head"]
    assert (head["kind"], head["channels"], head["params"]) == ("Linear", 5, 14 * 16 * 5 + 5)
    assert head["bytes"] == 14 * 16 * 5 / 4 + 4 * 4 + 4 * 5
    assert head["bits"] == round(8 * (14 * 16 * 5 / 4 + 16 + 20) / (14 * 16 * 5 + 5), 3)


def test_layers_of_several_weights_and_of_other_layouts_say_what_they_make() -> None:
    class Several(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.embed = nn.Embedding(11, 6)
            self.lstm = nn.LSTM(6, 4, batch_first=True)
            self.up = nn.ConvTranspose1d(4, 10, 2)

        def forward(self, tokens: Tensor) -> Tensor:
            return self.up(self.lstm(self.embed(tokens))[0].mT)

    seen = summaries(Several(), torch.zeros(2, 5, dtype=torch.int64))
    assert {name: layer["channels"] for name, layer in seen.items()} == {"embed": 6, "lstm": 4, "up": 10}
    assert seen["lstm"]["params"] == 4 * 4 * (6 + 4 + 2)
