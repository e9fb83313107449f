"""What graph surgery makes trains as the user's model does, and runs wherever it is moved."""

from __future__ import annotations

import copy
import pickle
import warnings
from collections import Counter
from collections.abc import Callable
from typing import Any

import pytest
import torch
import torch.nn.functional as F
import torchvision.models as tv
from torch import Tensor, fx, nn
from torch.overrides import TorchFunctionMode
from torchvision.ops import StochasticDepth

from autocompress.graph import analyse
from autocompress.graph.branch_gate import BranchGate
from autocompress.graph.branches import fold_gate, gate_branches, gate_names, gates_in
from autocompress.graph.bridging import bridge
from autocompress.graph.costs import layer_macs
from autocompress.graph.exporting import export
from autocompress.graph.proof import random_keep, relative_difference
from autocompress.graph.rewriting import rewrite_channels

X = torch.randn(4, 3, 12, 12, generator=torch.Generator().manual_seed(0))
TOKENS = torch.randn(4, 6, 8, generator=torch.Generator().manual_seed(1))


class SubclassedNorm(nn.BatchNorm2d):
    """A norm of a class of its own."""


class NormAct(nn.BatchNorm2d):
    """A norm whose `forward` is its own and does more, as timm's."""

    def __init__(self, channels: int) -> None:
        super().__init__(channels, eps=1e-3, momentum=0.3)
        self.act = nn.PReLU(channels)

    def forward(self, x: Tensor) -> Tensor:
        if self.training:
            self.num_batches_tracked.add_(1)
        tensors = (self.running_mean, self.running_var, self.weight, self.bias)
        return self.act(F.batch_norm(x, *tensors, self.training, self.momentum, self.eps))


class AveragingNorm(NormAct):
    """The same without a momentum: running statistics are averages over all batches."""

    def __init__(self, channels: int) -> None:
        super().__init__(channels)
        self.momentum = None

    def forward(self, x: Tensor) -> Tensor:
        if self.training:
            self.num_batches_tracked.add_(1)
        factor = 1 / float(self.num_batches_tracked) if self.training else 0.0
        tensors = (self.running_mean, self.running_var, self.weight, self.bias)
        return self.act(F.batch_norm(x, *tensors, self.training, factor, self.eps))


class OwnNames(nn.Module):
    """A batch norm whose tensors go by other names than PyTorch's."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.gamma, self.beta = nn.Parameter(torch.rand(channels)), nn.Parameter(torch.rand(channels))
        self.register_buffer("running_mean_of_inputs", torch.zeros(channels))
        self.register_buffer("running_variance", torch.ones(channels))

    def forward(self, x: Tensor) -> Tensor:
        statistics = (self.running_mean_of_inputs, self.running_variance)
        return F.batch_norm(x, *statistics, self.gamma, self.beta, self.training, 0.2)


class FixedNorm(nn.BatchNorm2d):
    """A norm that never leaves its running statistics, as detectors have them."""

    def forward(self, x: Tensor) -> Tensor:
        return F.batch_norm(x, self.running_mean, self.running_var, self.weight, self.bias, False)


class Noise(nn.Module):
    """Returns its input in eval mode, and is no dropout."""

    def forward(self, x: Tensor) -> Tensor:
        return x + torch.randn_like(x) if self.training else x


class FunctionalDropout(nn.Module):
    """Dropout without a module, the probability switched or the function."""

    def __init__(self, switched: bool, function: Callable[..., Tensor] = F.dropout) -> None:
        super().__init__()
        self.switched, self.function = switched, function

    def forward(self, x: Tensor) -> Tensor:
        if self.switched:
            return self.function(x, 0.5 if self.training else 0.0, True)
        return self.function(x, 0.5, self.training)


def sloped() -> nn.Module:
    """Random slopes where values are negative."""
    return nn.Sequential(nn.Flatten(), nn.Linear(432, 8), nn.RReLU(0.1, 0.9), nn.Linear(8, 5))


def cnn(norm: Callable[[int], nn.Module] = nn.BatchNorm2d, last: nn.Module | None = None) -> nn.Module:
    """Convolutions with norms, then something that acts in training, then a head."""
    layers: list[nn.Module] = [nn.Conv2d(3, 8, 3), norm(8), nn.ReLU(), nn.Conv2d(8, 8, 3), norm(8), nn.ReLU()]
    head = [nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(8, 5)]
    return nn.Sequential(*layers, last or nn.Dropout(0.5), *head)


class Residual(nn.Module):
    """A branch that stochastic depth drops at times, named as the surgery would name what it adds."""

    def __init__(self) -> None:
        super().__init__()
        self.stem, self.layer, self.head = nn.Conv2d(3, 8, 1), nn.Conv2d(8, 8, 1), nn.Linear(8, 5)
        self.training_mode = StochasticDepth(0.5, "row")

    def forward(self, x: Tensor) -> Tensor:
        x = self.stem(x)
        x = x + self.training_mode(self.layer(x))
        return self.head(F.dropout(x.mean((2, 3)), 0.1, self.training))


class Attended(nn.Module):
    """PyTorch's attention, its weights asked for or not."""

    def __init__(self, need_weights: bool) -> None:
        super().__init__()
        self.need_weights = need_weights
        self.attention = nn.MultiheadAttention(8, 2, dropout=0.4, batch_first=True)
        self.head = nn.Linear(8, 5)

    def forward(self, x: Tensor) -> Tensor:
        return self.head((x + self.attention(x, x, x, need_weights=self.need_weights)[0]).mean(1))


class FusedAttention(nn.Module):
    """Attention whose probability to drop is an attribute of any name."""

    def __init__(self) -> None:
        super().__init__()
        self.project, self.head, self.lost_attention = nn.Linear(8, 24), nn.Linear(8, 5), 0.4

    def forward(self, x: Tensor) -> Tensor:
        q, k, v = self.project(x).unflatten(2, (3, 2, 4)).permute(2, 0, 3, 1, 4).unbind(0)
        chance = self.lost_attention if self.training else 0.0
        mixed = F.scaled_dot_product_attention(q, k, v, dropout_p=chance)
        return self.head(mixed.transpose(1, 2).flatten(2).mean(1))


class Recurrent(nn.Module):
    """Dropout between the layers of an LSTM, whose first states are made by the code."""

    def __init__(self) -> None:
        super().__init__()
        self.lstm, self.head = nn.LSTM(8, 8, 2, dropout=0.4, batch_first=True), nn.Linear(8, 5)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.lstm(x)[0].mean(1))


class Placed(nn.Module):
    """Tensors that the code makes, and casts."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.head = nn.Linear(8, 8), nn.Linear(8, 5)

    def forward(self, x: Tensor) -> Tensor:
        places = torch.arange(x.shape[1], device=x.device).to(x)[:, None]
        x = self.first(x * torch.tensor(0.5, device=x.device)) + places + torch.zeros(8).to(x.device)
        return self.head((x.double() + torch.full((8,), 2.0, device=x.device)).float().mean(1))


STOCHASTIC: dict[str, tuple[Callable[[], nn.Module], Tensor]] = {
    "plain": (cnn, X),
    "subclassed norm": (lambda: cnn(SubclassedNorm), X),
    "norm and activation": (lambda: cnn(NormAct), X),
    "averaging norm": (lambda: cnn(AveragingNorm), X),
    "own names": (lambda: cnn(OwnNames), X),
    "synchronised norm": (lambda: cnn(nn.SyncBatchNorm), X),
    "tracking instance norm": (lambda: cnn(lambda n: nn.InstanceNorm2d(n, track_running_stats=True)), X),
    "functional dropout": (lambda: cnn(last=FunctionalDropout(switched=False)), X),
    "functional probability": (lambda: cnn(last=FunctionalDropout(switched=True)), X),
    "feature dropout": (lambda: cnn(last=FunctionalDropout(False, F.dropout2d)), X),
    "alpha dropout": (lambda: cnn(last=FunctionalDropout(False, F.alpha_dropout)), X),
    "in-place dropout": (lambda: cnn(last=nn.Dropout2d(0.5, inplace=True)), X),
    "random slopes": (sloped, X),
    "noise": (lambda: cnn(last=nn.Sequential(Noise(), nn.Identity())), X),
    "stochastic depth": (Residual, X),
    "attention": (lambda: Attended(False), TOKENS),
    "attention with its weights": (lambda: Attended(True), TOKENS),
    "fused attention": (FusedAttention, TOKENS),
    "recurrent": (Recurrent, TOKENS),
}


def made(name: str) -> tuple[nn.Module, Tensor]:
    """A model of that name in eval mode, with statistics that are not those it starts with."""
    torch.manual_seed(0)
    make, example = STOCHASTIC[name]
    model = make().train()
    with torch.no_grad():
        model(example)
    return model.eval(), example


def through_graph(model: nn.Module, example: Tensor) -> fx.GraphModule:
    return bridge(model, analyse(model, example), [])


def statistics(model: nn.Module) -> dict[str, Tensor]:
    return {name: b.clone() for name, b in model.named_buffers() if "running" in name}


def trained_pass(model: nn.Module, example: Tensor, seed: int) -> Tensor:
    torch.manual_seed(seed)
    with torch.no_grad():
        outputs: Tensor = model.train()(example)
    return outputs


@pytest.mark.parametrize("name", STOCHASTIC)
def test_a_graph_trains_as_the_model_does(name: str) -> None:
    model, example = made(name)
    graph = through_graph(copy.deepcopy(model), example)
    assert graph.state_dict().keys() == model.state_dict().keys()
    with torch.no_grad():
        expected = model(example)
        assert relative_difference(expected, graph.eval()(example)) < 1e-6
    # The same random numbers are drawn in the same order, so that training is the same to the bit.
    first, second = (trained_pass(graph, example, seed) for seed in (1, 2))
    assert not torch.equal(first, second)
    expected_passes = [trained_pass(model, example, seed) for seed in (1, 2)]
    assert relative_difference(torch.stack(expected_passes), torch.stack([first, second])) < 1e-6
    for key, buffer in model.state_dict().items():
        assert torch.allclose(graph.state_dict()[key], buffer, atol=1e-6), key
    with torch.no_grad():
        assert relative_difference(model.eval()(example), graph.eval()(example)) < 1e-6


@pytest.mark.parametrize("name", STOCHASTIC)
def test_a_graph_can_be_analysed_copied_pickled_and_cut_again(name: str) -> None:
    model, example = made(name)
    graph = through_graph(model, example).eval()
    again = through_graph(through_graph(graph, example), example)
    for other in (again, copy.deepcopy(graph), pickle.loads(pickle.dumps(graph))):
        with torch.no_grad():
            assert relative_difference(model.eval()(example), other.eval()(example)) < 1e-6
        assert other.state_dict().keys() == model.state_dict().keys()
        state = copy.deepcopy(model.state_dict())
        expected = trained_pass(model, example, 3)
        model.load_state_dict(state)
        assert relative_difference(expected, trained_pass(other, example, 3)) < 1e-6
        other.load_state_dict(state)
        model.load_state_dict(state)


class TrainArguments(TorchFunctionMode):
    """What recurrent operators are told of the mode."""

    def __init__(self) -> None:
        super().__init__()
        self.seen: list[bool] = []

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        schema = getattr(func, "_schema", None)
        names = [argument.name for argument in schema.arguments] if schema is not None else []
        if "train" in names:
            self.seen.append(args[names.index("train")])
        return func(*args, **(kwargs or {}))


@pytest.mark.parametrize(
    ("kind", "options"),
    [(nn.LSTM, {}), (nn.GRU, {"num_layers": 2}), (nn.RNN, {}), (nn.LSTM, {"num_layers": 2, "dropout": 0.4})],
)
def test_recurrent_layers_are_in_training_where_the_model_is_also_if_they_drop_nothing(
    kind: Callable[..., nn.Module], options: dict[str, Any]
) -> None:
    # cuDNN has no gradients of them otherwise.
    model = Recurrent().eval()
    model.lstm = kind(8, 8, batch_first=True, **options)
    graph = through_graph(model.eval(), TOKENS)
    again = through_graph(graph.eval(), TOKENS)
    for module in (graph, again, copy.deepcopy(graph)):
        for mode in (True, False):
            with TrainArguments() as arguments:
                module.train(mode)(TOKENS)
            assert arguments.seen == [mode]


def test_running_means_move_in_training_only() -> None:
    for norm in (nn.BatchNorm2d, SubclassedNorm, NormAct, AveragingNorm, OwnNames):
        torch.manual_seed(0)
        graph = through_graph(cnn(norm).eval(), X).eval()
        before = statistics(graph)
        assert len(before) == 4
        graph(X)
        assert all(torch.equal(b, before[name]) for name, b in statistics(graph).items())
        graph.train()(X)
        assert not any(torch.equal(b, before[name]) for name, b in statistics(graph).items())


def test_norms_that_the_model_never_trains_stay_as_they_are() -> None:
    class Frozen(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.body, self.head = cnn()[:7], cnn()[7:]

        def forward(self, x: Tensor) -> Tensor:
            return self.head(self.body(x))

        def train(self, mode: bool = True) -> nn.Module:
            super().train(mode)
            self.body.eval()
            return self

    for model in (cnn(FixedNorm, last=nn.Identity()), Frozen()):
        graph = through_graph(model.eval(), X)
        before = statistics(graph)
        expected = graph.eval()(X)
        assert torch.equal(graph.train()(X), expected)
        assert before
        assert all(torch.equal(b, before[name]) for name, b in statistics(graph).items())


def test_what_acts_in_eval_mode_too_is_left_alone() -> None:
    model = cnn(lambda n: nn.BatchNorm2d(n, track_running_stats=False), last=nn.Identity()).eval()
    graph = through_graph(model, X)
    assert torch.equal(graph.eval()(X), graph.train()(X))


def test_a_model_that_asks_for_targets_in_training_is_taken_at_its_operators_word() -> None:
    class Targets(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.body = cnn(NormAct, last=FunctionalDropout(switched=False))

        def forward(self, x: Tensor, targets: Tensor | None = None) -> Tensor:
            if self.training and targets is None:
                raise ValueError("targets must be given in training")
            return self.body(x)

    graph = through_graph(Targets().eval(), X)
    before = statistics(graph)
    assert not torch.equal(trained_pass(graph, X, 1), trained_pass(graph, X, 2))
    assert not any(torch.equal(b, before[name]) for name, b in statistics(graph).items())


def test_the_user_s_model_and_random_state_are_not_changed() -> None:
    model = cnn(NormAct).eval()
    state, modules = copy.deepcopy(model.state_dict()), [type(m) for m in model.modules()]
    torch.manual_seed(5)
    through_graph(model, X)
    drawn = torch.rand(1)
    torch.manual_seed(5)
    assert torch.equal(drawn, torch.rand(1))
    assert [type(m) for m in model.modules()] == modules
    assert not any(m.training or "forward" in vars(m) for m in model.modules())
    assert all(torch.equal(t, state[name]) for name, t in model.state_dict().items())


def test_channels_are_cut_from_a_graph_that_still_trains() -> None:
    torch.manual_seed(0)
    model = cnn(NormAct, last=FunctionalDropout(switched=False)).eval()
    analysis = analyse(model, X)
    keep = random_keep(analysis, [group.name for group in analysis.groups])
    assert keep
    smaller = rewrite_channels(model, analysis, keep)
    before = statistics(smaller)
    assert {len(b) for b in before.values()} == {len(kept) for kept in keep.values()}
    assert not torch.equal(trained_pass(smaller, X, 1), trained_pass(smaller, X, 2))
    assert not any(torch.equal(b, before[name]) for name, b in statistics(smaller).items())


def test_gates_fold_through_stochastic_depth_and_names_never_collide() -> None:
    torch.manual_seed(0)
    model: nn.Module = Residual().eval()
    for _ in range(3):
        analysis = analyse(model, X)
        names = gate_names(model, analysis.residuals)
        gates = {b.node: (n, BranchGate(0.7)) for b, n in zip(analysis.residuals, names, strict=True)}
        gated = gate_branches(model, analysis, gates)
        assert set(names) <= gates_in(gated.graph, gated).keys()
        model = gated.eval()
        assert isinstance(model.get_submodule("training_mode"), StochasticDepth)
        assert not torch.equal(trained_pass(model, X, 1), trained_pass(model, X, 2))
        model.eval()
    assert len(gates_in(gated.graph, gated)) == 3
    with torch.no_grad():
        before = gated(X)
        for _, call in gates_in(gated.graph, gated).items():
            assert fold_gate(gated.graph, call, gated)
        gated.recompile()
        assert relative_difference(before, gated(X)) < 1e-5


def test_a_torchvision_model_keeps_norms_dropout_and_stochastic_depth() -> None:
    torch.manual_seed(0)
    model, images = tv.efficientnet_b0(num_classes=4).eval(), torch.randn(4, 3, 32, 32)
    graph = through_graph(copy.deepcopy(model), images)
    kinds = (nn.BatchNorm2d, nn.Dropout)
    counts = [sum(isinstance(m, kind) for m in model.modules()) for kind in kinds]
    assert [sum(isinstance(m, kind) for m in graph.modules()) for kind in kinds] == counts
    assert relative_difference(trained_pass(model, images, 1), trained_pass(graph, images, 1)) < 1e-5


# PyTorch's batch norm reads the number of batches on the host where it averages over all of them.
@pytest.mark.parametrize("name", [name for name in STOCHASTIC if name != "averaging norm"])
def test_no_operation_mixes_devices(name: str) -> None:
    model, example = made(name)
    graph = through_graph(model, example).to("meta")
    for mode in (True, False):
        assert graph.train(mode)(example.to("meta")).device.type == "meta"


def test_tensors_that_the_code_makes_are_where_the_input_is() -> None:
    model = Placed().eval()
    graph = through_graph(model, TOKENS)
    with torch.no_grad():
        assert relative_difference(model(TOKENS), graph(TOKENS)) == 0
    assert pickle.loads(pickle.dumps(graph)).to("meta")(TOKENS.to("meta")).device.type == "meta"
    # From a model that is there already, its constants are too.
    analysis = analyse(model, TOKENS)
    assert bridge(copy.deepcopy(model).to("meta"), analysis, [])(TOKENS.to("meta")).device.type == "meta"


def test_constants_are_those_of_the_model_that_is_analysed() -> None:
    class Scaled(nn.Module):
        def __init__(self, scale: float) -> None:
            super().__init__()
            self.layer, self.scale = nn.Linear(8, 5), scale

        def forward(self, x: Tensor) -> Tensor:
            return self.layer(x).mean(1) * torch.tensor(self.scale)

    for scale in (1.0, 2.0):
        model = Scaled(scale).eval()
        assert torch.equal(model(TOKENS), through_graph(model, TOKENS)(TOKENS))


@pytest.mark.parametrize("name", STOCHASTIC)
def test_artefacts_and_costs_know_nothing_of_training(name: str) -> None:
    model, example = made(name)
    graph = through_graph(model, example).eval()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        nodes = [(n.op, str(n.target)) for n in export(graph, example).graph.nodes]
        expected = [(n.op, str(n.target)) for n in export(model, example).graph.nodes]
    # Dropouts are the identity there, and attention whose weights are asked for has none in eval mode.
    made_of, expected_of = (
        [target for op, target in graph_nodes if op == "call_function" and "dropout.default" not in target]
        for graph_nodes in (nodes, expected)
    )
    assert made_of
    assert Counter(made_of) <= Counter(expected_of)
    assert layer_macs(graph, example)[""] == layer_macs(model, example)[""]
