"""Models that cannot be analysed, copied, deployed or trained are found before any training, in one line."""

from __future__ import annotations

import copy
import itertools
import random
import threading
from collections.abc import Callable
from dataclasses import replace

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.nn.utils import prune
from torch.utils.data import DataLoader, TensorDataset

import autocompress as ac
from autocompress.engine.model_checks import check_made_anew, check_suitable
from autocompress.engine.prepare import prepare
from autocompress.engine.settings import Settings
from autocompress.errors import TaskError


class Net(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.a, self.b, self.c = nn.Linear(6, 12), nn.Linear(12, 12), nn.Linear(12, 3)

    def features(self, x: Tensor) -> Tensor:
        return torch.relu(self.b(torch.relu(self.a(x))))

    def forward(self, x: Tensor) -> Tensor:
        return self.c(self.features(x))


class Slip(Net):
    def forward(self, x: Tensor) -> Tensor:
        return self.c(F.dropout(self.features(x), 0.1))


class Sample(Net):
    def forward(self, x: Tensor) -> Tensor:
        x = self.features(x)
        return self.c(x + 0.1 * torch.randn_like(x))


class NowAndThen(Net):
    def forward(self, x: Tensor) -> Tensor:
        return super().forward(x) * (2 if random.random() < 0.5 else 1)


class Counting(Net):
    def __init__(self) -> None:
        super().__init__()
        self.register_buffer("calls", torch.zeros(()))

    def forward(self, x: Tensor) -> Tensor:
        self.calls += 1
        return super().forward(x) * self.calls


class InPlace(Net):
    def forward(self, x: Tensor) -> Tensor:
        return super().forward(x.mul_(2))


class Keeping(Net):
    def forward(self, x: Tensor) -> Tensor:
        self.seen = {"last": [self.features(x)]}
        return self.c(self.seen["last"][0])


class KeepingInTraining(Net):
    def forward(self, x: Tensor) -> Tensor:
        x = self.features(x)
        if self.training:
            self.penalty = x.abs().mean()
        return self.c(x)


class ByHook(Net):
    def __init__(self) -> None:
        super().__init__()
        seen = self.seen = {}
        self.a.register_forward_hook(lambda layer, inputs, output: seen.update(a=output))


class Locked(Net):
    def __init__(self) -> None:
        super().__init__()
        self.lock = threading.Lock()


class MakingALayer(Net):
    def forward(self, x: Tensor) -> Tensor:
        if not hasattr(self, "more"):
            self.more = nn.Linear(12, 12)
        return self.c(self.more(self.features(x)))


class Complex(Net):
    def __init__(self) -> None:
        super().__init__()
        self.filter = nn.Parameter(torch.ones(7, dtype=torch.complex64))

    def forward(self, x: Tensor) -> Tensor:
        return self.c(torch.fft.irfft(torch.fft.rfft(self.features(x)) * self.filter, n=12))


class Half(Net):
    def __init__(self) -> None:
        super().__init__()
        self.b.to(torch.bfloat16)


class OnMeta(Net):
    def __init__(self) -> None:
        super().__init__()
        self.b.to("meta")


class WithExtraState(Net):
    def get_extra_state(self) -> object:
        return {"version": 1}


class NoParameters(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        return x[:, :3]


class Frozen(Net):
    def __init__(self) -> None:
        super().__init__()
        self.requires_grad_(False)


class Detached(Net):
    @torch.inference_mode()
    def forward(self, x: Tensor) -> Tensor:
        return super().forward(x)


class NotANumber(Net):
    def forward(self, x: Tensor) -> Tensor:
        return super().forward(x) * (float("nan") if self.training else 1)


class Infinite(Net):
    def forward(self, x: Tensor) -> Tensor:
        return super().forward(x).masked_fill(torch.tensor([False, False, True]), float("-inf"))


class AskingForTargets(Net):
    def forward(self, x: Tensor, targets: Tensor | None = None) -> Tensor:
        if self.training:
            assert targets is not None, "targets must be given"  # here
        return super().forward(x)


class OverwritingWhatGradientsNeed(Net):
    def forward(self, x: Tensor) -> Tensor:
        return self.c(torch.sigmoid(self.a(x)).mul_(2))


class SparseGradients(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.embedding, self.head = nn.Embedding(50, 8, sparse=True), nn.Linear(8, 3)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.embedding(x.abs().long()).mean(1))


class OverTheBatch(nn.Sequential):
    def __init__(self) -> None:
        super().__init__(nn.Linear(6, 8), nn.BatchNorm1d(8, track_running_stats=False), nn.Linear(8, 3))


class OfSixteen(Net):
    def forward(self, x: Tensor) -> Tensor:
        return super().forward(x.reshape(16, -1))


class Squeezing(Net):
    def forward(self, x: Tensor) -> Tensor:
        return super().forward(x).unsqueeze(2).squeeze()


def pruned() -> nn.Module:
    model = Net()
    prune.l1_unstructured(model.b, "weight", 0.5)
    return model


def task_of(model: Callable[[], nn.Module]) -> ac.Task:
    rows = torch.randn(64, 6, generator=torch.Generator().manual_seed(0))
    # A loader without a generator draws from the global one.
    own = torch.Generator()
    loader = DataLoader(TensorDataset(rows, torch.arange(64) % 3), batch_size=16, generator=own)
    return ac.Task(model, loader, val=loader, recipe=ac.Recipe(epochs=1))


RANDOM = "must compute the same each time in evaluation mode but is random there"
REFUSED = [
    (Slip, RANDOM),
    (Sample, RANDOM),
    (NowAndThen, RANDOM),
    (Counting, "but its outputs change from call to call"),
    (InPlace, "must leave its inputs as they are but changes them in place"),
    (Keeping, r"must keep no tensors from call to call but forward stores 'seen\['last'\]\[0\]'"),
    (KeepingInTraining, r"must be copyable \(copy.deepcopy\) but keeps 'penalty', which was computed"),
    (ByHook, r"must keep no tensors from call to call but forward stores 'seen\['a'\]'"),
    (Locked, r"must be copyable \(copy.deepcopy\) but 'lock' is not \(cannot pickle '_thread.lock' object\)"),
    (
        MakingALayer,
        "must hold all its parameters and buffers before its first call but that made 'more.weight'",
    ),
    (Complex, "parameters must be real but 'filter' is torch.complex64: .* torch.view_as_complex"),
    (Half, "parameters must be in single precision but 'b.weight' is torch.bfloat16"),
    (OnMeta, "parameters must hold numbers but 'b.weight' is on the meta device"),
    (WithExtraState, "state_dict must hold tensors alone but '_extra_state' is a dict"),
    (lambda: torch.jit.script(nn.Linear(6, 3)), "must be an nn.Module of its own class but is TorchScript"),
    (NoParameters, "the model must have parameters but has none"),
    (Frozen, r"must have parameters to train but all are frozen \(requires_grad=False\)"),
    (Detached, "must be differentiable in training mode but its outputs have no gradient"),
    (NotANumber, "the loss must be finite on the first training batch but is infinite or NaN"),
    (Infinite, "must return finite numbers but returns some that are infinite or NaN"),
    (
        AskingForTargets,
        r"a step on the first batch failed: AssertionError: targets must be given at .*\.py:\d+ in forward: "
        r"`assert targets is not None, .*  # here`\.$",
    ),
    (OverwritingWhatGradientsNeed, "a step on the first batch failed: RuntimeError: .*inplace operation"),
    (SparseGradients, "a step on the first batch failed: RuntimeError: .*sparse gradients"),
    (
        OverTheBatch,
        "batches of any size in evaluation mode but fails on a batch of 1: ValueError: Expected more",
    ),
    (OfSixteen, r"must take batches of any size but runs on 16 rows alone: .*invalid for input of size 12"),
    (Squeezing, r"returns \[2\] and for a batch of 1 \[1\]: use squeeze\(dim\), not squeeze\(\)"),
    (pruned, r"'b.weight'"),
]


@pytest.mark.parametrize(("model", "message"), REFUSED)
@pytest.mark.filterwarnings("ignore:`torch.jit.script` is deprecated")
def test_models_that_cannot_be_handled_are_refused_in_one_line(
    model: Callable[[], nn.Module], message: str
) -> None:
    with pytest.raises(TaskError, match=message) as raised:
        check_suitable(task_of(model), model())
    assert "\n" not in str(raised.value)


@pytest.mark.parametrize("model", [Slip, Keeping, Complex, AskingForTargets])
def test_every_way_into_the_package_refuses_alike(model: Callable[[], nn.Module]) -> None:
    said = []
    task = task_of(model)
    for way in (lambda: prepare(task, Settings()), lambda: ac.compress(model(), task, ac.Lc())):
        with pytest.raises(TaskError) as raised:
            way()
        said.append(str(raised.value))
    assert said[0] == said[1]


class TinyNoise(Net):
    def forward(self, x: Tensor) -> Tensor:
        return super().forward(x) + 1e-8 * torch.randn(3)


class DrawingForNothing(Net):
    def forward(self, x: Tensor) -> Tensor:
        # As wav2vec draws which layers to drop.
        skipped = self.training and float(torch.rand(())) < 0.1
        return self.c(self.features(x) * (0 if skipped else 1))


class CountingAside(Net):
    def __init__(self) -> None:
        super().__init__()
        self.register_buffer("calls", torch.zeros(()))

    def forward(self, x: Tensor) -> Tensor:
        self.calls += 1
        return super().forward(x)


class Caching(Net):
    scale: Tensor | None = None

    def forward(self, x: Tensor) -> Tensor:
        if self.scale is None:
            self.scale = torch.linspace(1, 2, 12)
        return self.c(self.features(x) * self.scale)


class WithEmptyParameter(Net):
    def __init__(self) -> None:
        super().__init__()
        self.nothing = nn.Parameter(torch.zeros(0, 3))


class Lazy(nn.Sequential):
    def __init__(self) -> None:
        super().__init__(nn.LazyLinear(12), nn.LazyBatchNorm1d(), nn.ReLU(), nn.LazyLinear(3))


ACCEPTED = [
    *(Net, TinyNoise, DrawingForNothing, CountingAside, Caching, WithEmptyParameter, Lazy),
    lambda: torch.compile(Net()),
    lambda: nn.DataParallel(Net()),
]


@pytest.mark.parametrize("model", ACCEPTED)
def test_models_that_only_look_odd_are_compressed(model: Callable[[], nn.Module]) -> None:
    task = task_of(model)
    assert prepare(task, Settings(methods=("alcn",))).analysis.groups
    compressed = ac.compress(model(), task, ac.Alcn(initial_ratio=0.5))
    assert compressed.difference < 1e-4


def test_checks_leave_no_trace() -> None:
    model, task = CountingAside().train(), task_of(Net)
    state, generator = copy.deepcopy(model.state_dict()), torch.get_rng_state()
    check_suitable(task, model)
    assert model.training
    assert all(map(torch.equal, model.state_dict().values(), state.values()))
    assert all(parameter.grad is None for parameter in model.parameters())
    assert torch.equal(torch.get_rng_state(), generator)


def test_a_loss_that_ignores_the_first_rows_is_tried_on_the_whole_batch() -> None:
    rows, labels = torch.randn(8, 6), torch.tensor([-100, -100, 0, 1, 2, 0, 1, 2])
    check_suitable(replace(task_of(Net), train=[(rows, labels)]), Net())
    with pytest.raises(TaskError, match="the loss must be finite on the first training batch"):
        check_suitable(replace(task_of(Net), train=[(rows[:2], labels[:2])]), Net())


class LayersInAList(Net):
    def __init__(self) -> None:
        super().__init__()
        self.layers = [nn.Linear(12, 12)]

    def forward(self, x: Tensor) -> Tensor:
        return self.c(self.layers[0](self.features(x)))


class NoiseInAnAttribute(Net):
    def __init__(self) -> None:
        super().__init__()
        self.noise = torch.randn(12)

    def forward(self, x: Tensor) -> Tensor:
        return self.c(self.features(x) + self.noise)


ONE, SHARED, WIDTHS = Net(), nn.Linear(6, 12), itertools.count(3)


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: ONE, r"shares parameters with another: let it return copy.deepcopy\(module\)"),
        (lambda: nn.Sequential(SHARED, nn.Linear(12, 3)), "shares parameters with another"),
        (LayersInAList, r"do not: register what else they depend on \(such as 'layers\[0\].weight'\)"),
        (NoiseInAnAttribute, r"do not: register what else they depend on \(such as 'noise'\)"),
        (lambda: nn.Linear(6, next(WIDTHS)), "of the same parameters but made two that differ"),
    ],
)
def test_functions_that_do_not_make_the_same_model_anew_are_refused(
    make: Callable[[], nn.Module], message: str
) -> None:
    with pytest.raises(TaskError, match=message):
        check_made_anew(task_of(make), make().eval())
