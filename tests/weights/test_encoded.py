"""Any parameter of any module decodes to what was encoded, wherever it is read, copied or exported."""

from __future__ import annotations

import copy
import pickle
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, fx, nn

from autocompress.checkpoint import export_onnx, export_program, load_program
from autocompress.checkpoint.weights import load_weights_into, save_weights
from autocompress.graph.exporting import export
from autocompress.weights.decoders import WeightCode, weight_code
from autocompress.weights.encoded import codes_of, decode_weights, encode_weight, install_code
from autocompress.weights.encodings import Factored, Quantized
from autocompress.weights.folding import Folding


class Recurrent(nn.Module):
    def __init__(self, layer: nn.Module) -> None:
        super().__init__()
        self.rnn = layer

    def forward(self, x: Tensor) -> Tensor:
        return self.rnn(x)[0].mean(1)


class Functional(nn.Module):
    """Parameters of the model itself, of a list and of a dictionary, and attention's fused projection."""

    def __init__(self) -> None:
        super().__init__()
        self.matrix = nn.Parameter(torch.randn(12, 16))
        self.listed = nn.ParameterList([torch.randn(12, 12), torch.randn(1, 6, 12)])
        self.named = nn.ParameterDict({"last": torch.randn(5, 12)})
        self.attention = nn.MultiheadAttention(12, 2, batch_first=True)

    def forward(self, x: Tensor) -> Tensor:
        x = F.linear(x, self.matrix) @ self.listed[0] + self.listed[1]
        x = self.attention(x, x, x, need_weights=False)[0]
        return F.linear(x, self.named["last"]).mean(1)


class Tied(nn.Module):
    """An embedding whose weight scores its own rows."""

    def __init__(self) -> None:
        super().__init__()
        self.embed, self.middle = nn.Embedding(30, 12), nn.Linear(12, 12)
        self.head = nn.Linear(12, 30, bias=False)
        self.head.weight = self.embed.weight

    def forward(self, x: Tensor) -> Tensor:
        return self.head(torch.tanh(self.middle(self.embed(x))).mean(1))


class Bag(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.embed = nn.EmbeddingBag(30, 12)

    def forward(self, x: Tensor) -> Tensor:
        return self.embed(x)


SERIES, IDS = torch.randn(4, 6, 16), torch.randint(30, (4, 6))
MODELS: dict[str, tuple[Callable[[], nn.Module], Tensor]] = {
    "lstm": (lambda: Recurrent(nn.LSTM(16, 8, 2, batch_first=True, bidirectional=True)), SERIES),
    "lstm, projected": (lambda: Recurrent(nn.LSTM(16, 8, proj_size=4, bias=False, batch_first=True)), SERIES),
    "gru": (lambda: Recurrent(nn.GRU(16, 8, 2, batch_first=True)), SERIES),
    "rnn": (lambda: Recurrent(nn.RNN(16, 8, batch_first=True)), SERIES),
    "functional": (Functional, SERIES),
    "tied": (Tied, IDS),
    "bag": (Bag, IDS),
    "transposed": (lambda: nn.ConvTranspose1d(6, 8, 3, stride=2, groups=2, output_padding=1), SERIES),
}
ONNX = ("lstm", "gru", "functional", "tied")


def encoded(model: nn.Module) -> nn.Module:
    """A copy whose weights are codes of five levels each."""
    generator = torch.Generator().manual_seed(0)
    copied = copy.deepcopy(model)
    for name, parameter in list(copied.named_parameters()):
        if parameter.dim() > 1:
            codes = torch.randint(0, 5, (parameter.numel(),), generator=generator)
            encode_weight(copied, Quantized(torch.linspace(-0.5, 0.5, 5), codes), name)
    return copied


def dense(model: nn.Module, by: nn.Module) -> nn.Module:
    """A copy whose weights are what another one's are decoded to."""
    copied = copy.deepcopy(model)
    for name, code in codes_of(by).items():
        owner, _, leaf = name.rpartition(".")
        parameter = f"{owner}.{leaf.removeprefix('encoded_')}".removeprefix(".")
        with torch.no_grad():
            copied.get_parameter(parameter).copy_(code())
    return copied


# PyTorch's notice that projected states take its slower code.
@pytest.mark.filterwarnings("ignore:LSTM with projections:UserWarning")
@pytest.mark.parametrize("name", MODELS)
def test_models_with_encoded_parameters_are_their_dense_ones_in_every_way(name: str, tmp_path: Path) -> None:
    torch.manual_seed(0)
    make, x = MODELS[name]
    plain = make().eval()
    small = encoded(plain)
    assert not [n for n, p in small.named_parameters() if p.dim() > 1]
    wanted = dense(plain, small)(x).detach()
    export_program(small, x, tmp_path / "model.pt2")
    save_weights(small, tmp_path / "weights.safetensors")
    again = encoded(make().eval())
    load_weights_into(again, tmp_path / "weights.safetensors")
    with torch.no_grad():
        for model in (small, copy.deepcopy(small), pickle.loads(pickle.dumps(small)), again):
            assert torch.allclose(model(x), wanted, atol=1e-6)
        assert torch.allclose(load_program(tmp_path / "model.pt2")(x), wanted, atol=1e-6)
        if name in ONNX:
            export_onnx(small, x, tmp_path / "model.onnx")
            assert torch.allclose(load_program(tmp_path / "model.onnx")(x), wanted, atol=1e-5)
        doubled = copy.deepcopy(small).double()
        assert doubled(x.double() if x.is_floating_point() else x).dtype == torch.float64


@pytest.mark.filterwarnings("ignore:LSTM with projections:UserWarning")
@pytest.mark.parametrize("name", MODELS)
def test_levels_of_every_encoded_parameter_are_trained(name: str) -> None:
    torch.manual_seed(0)
    make, x = MODELS[name]
    model = encoded(make()).train()
    before = {n: p.detach().clone() for n, p in model.named_parameters()}
    optimizer = torch.optim.Adam(model.parameters(), 0.01)
    model(x).square().sum().backward()
    optimizer.step()
    assert before
    assert all(not torch.equal(p, before[n]) for n, p in model.named_parameters())


def test_a_shared_parameter_is_decoded_from_one_code_and_stored_once(tmp_path: Path) -> None:
    plain = Tied().eval()
    for file, model in (("dense", plain), ("small", encoded(plain))):
        export_program(model, IDS, tmp_path / f"{file}.pt2")
        save_weights(model, tmp_path / f"{file}.safetensors")
    small = encoded(plain)
    assert small.embed.encoded_weight is small.head.encoded_weight
    assert list(codes_of(small)) == ["embed.encoded_weight", "middle.encoded_weight"]
    codes = 30 * 12 + 12 * 12
    assert (tmp_path / "dense.safetensors").stat().st_size > 4 * codes
    # A byte for each code, levels, and names; a second copy of the codes would not fit in.
    assert (tmp_path / "small.safetensors").stat().st_size < codes + 30 * 12 + 600
    # In a program it is also decoded once.
    program = torch.export.load(tmp_path / "small.pt2")
    assert [name for name in program.state_dict if name.endswith("packed")] == [
        "embed.encoded_weight.packed", "middle.encoded_weight.packed",
    ]  # fmt: skip


def test_a_graph_module_calls_the_code_where_it_read_the_parameter() -> None:
    torch.manual_seed(0)
    plain = Functional().eval()
    graph = fx.GraphModule(plain, export(plain, SERIES).module(check_guards=False).graph)
    small = encoded(graph)
    wanted = dense(plain, small)(SERIES)
    for model in (small, copy.deepcopy(small)):
        assert "encoded_matrix" in dict(model.named_children())
        assert not [n for n, p in model.named_parameters() if p.dim() > 1]
        assert torch.allclose(model(SERIES), wanted, atol=1e-6)


def test_what_is_frozen_stays_frozen_and_modes_go_on() -> None:
    model = Recurrent(nn.GRU(16, 8, batch_first=True))
    model.rnn.weight_hh_l0.requires_grad_(False)
    small = encoded(model.eval())
    trains = {name: p.requires_grad for name, p in small.named_parameters()}
    assert not trains["rnn.encoded_weight_hh_l0.levels"]
    assert trains["rnn.encoded_weight_ih_l0.levels"]
    assert not any(module.training for module in small.modules())


def product(shape: tuple[int, ...], folded: tuple[int, ...]) -> WeightCode:
    folding = Folding(folded)
    return weight_code(
        Factored(torch.randn(1, folding.rows, 2), torch.randn(1, 2, folding.columns), folding), shape
    )


def test_a_product_is_of_a_weight_without_its_dimensions_of_one() -> None:
    code = product((1, 6, 12), (6, 12))
    again = WeightCode.from_spec(code.spec, (1, 6, 12))
    again.load_state_dict(code.state_dict())
    assert code.numbers == 2 * (6 + 12)
    assert torch.equal(code(), (code.left @ code.right)[None])
    assert torch.equal(again(), code())


def test_factors_of_a_product_are_encoded_as_weights_are() -> None:
    layer = nn.Linear(12, 16)
    install_code(layer, product((16, 12), (16, 12)))
    small = encoded(layer)
    left, right = (getattr(small.encoded_weight, name) for name in ("left", "right"))
    assert len(left.unique()) <= 5
    assert len(right.unique()) <= 5
    assert torch.equal(small.weight, left @ right)
    assert list(codes_of(small)) == ["encoded_weight"]
    assert torch.equal(copy.deepcopy(small)(SERIES[..., :12]), small(SERIES[..., :12]))
    # A class that is made for encoded factors is not what products are made of.
    assert type(product((16, 12), (16, 12))) is WeightCode.kinds["product"]


def test_only_parameters_of_the_model_can_be_encoded() -> None:
    with pytest.raises(AttributeError, match="nowhere"):
        encode_weight(
            nn.Linear(3, 4), Quantized(torch.zeros(1), torch.zeros(12, dtype=torch.int64)), "nowhere"
        )


@pytest.mark.filterwarnings("ignore:LSTM with projections:UserWarning")
@pytest.mark.parametrize("name", MODELS)
def test_decoded_weights_are_plain_parameters_of_modules_of_their_own_class(name: str) -> None:
    torch.manual_seed(0)
    make, x = MODELS[name]
    plain = make()
    small = encoded(plain)
    wanted = dense(plain, small)
    decoded = decode_weights(copy.deepcopy(small))
    assert not codes_of(decoded)
    assert [type(module) for module in decoded.modules()] == [type(module) for module in plain.modules()]
    shapes = {parameter: value.shape for parameter, value in plain.state_dict().items()}
    assert {parameter: value.shape for parameter, value in decoded.state_dict().items()} == shapes
    assert len(list(decoded.parameters())) == len(list(plain.parameters()))
    assert torch.equal(decoded.eval()(x), wanted.eval()(x))
    decoded(x).square().sum().backward()
    assert all(parameter.grad is not None for parameter in decoded.parameters())


def test_a_graph_reads_decoded_parameters_again() -> None:
    torch.manual_seed(0)
    model = Tied().eval()
    graph = export(model, IDS).module()
    encode_weight(graph, Quantized(torch.linspace(-0.5, 0.5, 5), torch.randint(0, 5, (360,))), "embed.weight")
    wanted = graph(IDS)
    decoded = decode_weights(graph)
    assert "embed.weight" in dict(decoded.named_parameters())
    assert torch.equal(decoded(IDS), wanted)
    frozen = nn.Linear(4, 4).requires_grad_(False)
    encode_weight(frozen, Quantized(torch.linspace(-0.5, 0.5, 5), torch.randint(0, 5, (16,))))
    assert not decode_weights(frozen).weight.requires_grad
