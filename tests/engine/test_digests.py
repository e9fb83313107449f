"""Digests of code and values: what computes the same is the same, in every process; what does not is not."""

from __future__ import annotations

import copy
import functools
import os
import subprocess
import sys
from argparse import Namespace
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from autocompress.engine.digests import digest, state_digest
from autocompress.plugins import load_module


def defined(text: str, name: str = "loss") -> Any:
    """What a module of this text defines under a name."""
    space: dict[str, Any] = {"__name__": "own"}
    exec(compile(text, "own.py", "exec"), space)
    return space[name]


LOSS = """
SCALE = 2.0
def part(x):
    y = x * SCALE
    return y
def loss(o, t, p=1):
    return part(o - t).abs() ** p
"""


def test_comments_layout_and_names_of_locals_do_not_matter() -> None:
    other = '''
SCALE = 2.0  # as published

def part(x):
    """Scaled."""
    scaled = (
        x * SCALE
    )
    return scaled

def loss(o, t, p=1):
    """The p-th power
    of a difference."""
    # of outputs and targets
    return part(o - t).abs() ** p
'''
    assert digest(defined(other)) == digest(defined(LOSS))


@pytest.mark.parametrize(
    ("old", "new"),
    [
        ("** p", "** (p + 1)"),
        (".abs()", ".square()"),
        ("p=1", "p=2"),
        ("t, p=1", "t, *, p=1"),
        ("SCALE = 2.0", "SCALE = 3.0"),
        ("SCALE = 2.0", "SCALE = 2"),
        ("x * SCALE", "x + SCALE"),
    ],
)
def test_another_computation_is_another_digest(old: str, new: str) -> None:
    assert old in LOSS
    assert digest(defined(LOSS.replace(old, new))) != digest(defined(LOSS))


def power(exponent: float) -> Callable[[Tensor], Tensor]:
    return lambda x: x**exponent


class Weighted(nn.Module):
    def __init__(self, weights: Tensor, alpha: float = 1.0) -> None:
        super().__init__()
        self.alpha = alpha
        self.register_buffer("weights", weights)

    def forward(self, outputs: Tensor, targets: Tensor) -> Tensor:
        return self.alpha * nn.functional.cross_entropy(outputs, targets, self.weights)


class Margin:
    def __init__(self, margin: float) -> None:
        self.margin = margin

    def __call__(self, outputs: Tensor, targets: Tensor) -> Tensor:
        return (outputs - targets).abs().clamp(min=self.margin).mean()


@functools.lru_cache
def cached(x: float) -> float:
    return x + 1


@torch.no_grad()
def without_gradients(x: Tensor) -> Tensor:
    return x + 2


@pytest.mark.parametrize(
    ("make", "others"),
    [
        (lambda: power(2.0), [lambda: power(3.0)]),
        (lambda: functools.partial(pow, exp=2), [lambda: functools.partial(pow, exp=3)]),
        (lambda: lambda o: o + 1, [lambda: lambda o: o + 2]),
        (lambda: nn.CrossEntropyLoss(), [lambda: nn.CrossEntropyLoss(label_smoothing=0.1), nn.NLLLoss]),
        (
            lambda: nn.CrossEntropyLoss(weight=torch.ones(3)),
            [nn.CrossEntropyLoss, lambda: nn.CrossEntropyLoss(weight=torch.arange(3.0))],
        ),
        (
            lambda: Weighted(torch.ones(3)),
            [lambda: Weighted(torch.zeros(3)), lambda: Weighted(torch.ones(3), 2.0)],
        ),
        (lambda: Margin(0.1), [lambda: Margin(0.2), lambda: Margin(0.1).__call__]),
        (lambda: Margin(0.1).__call__, [lambda: Margin(0.2).__call__]),
        (lambda: nn.functional.cross_entropy, [lambda: nn.functional.nll_loss]),
        (lambda: torch.relu, [lambda: torch.tanh]),
        (lambda: cached, [lambda: without_gradients]),
        (lambda: np.float32(1), [lambda: np.float64(1), lambda: 1.0]),
        (lambda: {"a": 1, "b": [2, None]}, [lambda: {"a": 1, "b": [None, 2]}, lambda: {"a": 1}]),
        (lambda: {1, "x", (2, 3)}, [lambda: {1, "x"}]),
        (lambda: np.array(["a", None], dtype=object), [lambda: np.array(["b", None], dtype=object)]),
    ],
)
def test_callables_and_values_are_told_apart(
    make: Callable[[], Any], others: list[Callable[[], Any]]
) -> None:
    assert digest(make()) == digest(make())
    for other in others:
        assert digest(other()) != digest(make())


def test_of_a_scripts_arguments_those_that_are_read_count() -> None:
    def closed_over(arguments: Namespace) -> Callable[[float], float]:
        return lambda x: x * arguments.alpha

    def read_as_global(arguments: Namespace) -> Any:
        space = {"args": arguments}
        exec(compile("def loss(x):\n    return x * args.alpha\n", "own.py", "exec"), space)
        return space["loss"]

    for make in (closed_over, read_as_global):
        before = digest(make(Namespace(alpha=0.5, trials=3)))
        assert digest(make(Namespace(alpha=0.5, trials=30))) == before
        assert digest(make(Namespace(alpha=0.6, trials=3))) != before


def test_what_calls_itself_or_each_other_ends() -> None:
    text = "def even(n):\n    return n == 0 or odd(n - 1)\ndef odd(n):\n    return n != 0 and even(n - {})\n"
    first, second = (defined(text.format(step), "even") for step in (1, 2))
    assert digest(first) == digest(defined(text.format(1), "even"))
    assert digest(first) != digest(second)
    looped: list[Any] = [1]
    looped.append(looped)
    assert digest(looped) == digest(looped)


def test_a_mode_and_hooks_are_no_settings_and_a_metric_starts_afresh() -> None:
    torchmetrics = pytest.importorskip("torchmetrics")
    loss = Weighted(torch.ones(3))
    before = digest(loss)
    loss.eval().register_forward_hook(lambda *_: None)
    assert digest(loss) == before
    metric = torchmetrics.Accuracy(task="multiclass", num_classes=3)
    fresh = digest(metric)
    metric.update(torch.eye(3), torch.tensor([0, 1, 1]))
    assert digest(metric) == fresh
    assert float(metric.compute()) == pytest.approx(2 / 3)
    assert digest(torchmetrics.Accuracy(task="multiclass", num_classes=3, ignore_index=0)) != fresh


def test_a_class_is_its_methods_and_those_of_its_bases() -> None:
    base = "class Base:\n    def step(self):\n        return {}\n"
    text = base + "class Own(Base):\n    '''Own.'''\n    rate = {}\n"
    own = digest(defined(text.format(1, 0.5), "Own"))
    assert digest(defined(text.format(1, 0.5).replace("'''Own.'''", "'''Of its own.'''"), "Own")) == own
    assert digest(defined(text.format(2, 0.5), "Own")) != own
    assert digest(defined(text.format(1, 0.6), "Own")) != own


def test_functions_of_other_modules_of_the_users_count(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.syspath_prepend(str(tmp_path))
    (tmp_path / "own_loss.py").write_text(
        "import own_parts\ndef loss(o, t):\n    return own_parts.scaled(o, t)\n"
        "def late(o, t):\n    import own_parts as parts\n    return parts.scaled(o, t)\n"
    )
    digests_seen: dict[str, set[str]] = {"loss": set(), "late": set()}
    for scale in ("2", "30"):
        text = f"UNUSED = {scale}\ndef scaled(o, t):\n    return (o - t).sum() * {scale}\n"
        (tmp_path / "own_parts.py").write_text(text)
        for name in digests_seen:
            monkeypatch.delitem(sys.modules, "own_parts", raising=False)
            digests_seen[name].add(digest(getattr(load_module(str(tmp_path / "own_loss.py")), name)))
    assert {name: len(digests) for name, digests in digests_seen.items()} == {"loss": 2, "late": 2}


def test_a_file_called_like_an_installed_module_is_the_users(tmp_path: Path) -> None:
    digests_seen = set()
    for number in (1, 20):
        (tmp_path / "statistics.py").write_text(f"class Loss:\n    def f(self):\n        return {number}\n")
        digests_seen.add(digest(load_module(str(tmp_path / "statistics.py")).Loss))
    assert len(digests_seen) == 2


def test_initial_weights_of_a_model_count_by_shape() -> None:
    def maker(width: int) -> Callable[[], nn.Module]:
        layer = nn.Linear(width, 2)
        return lambda: copy.deepcopy(layer)

    assert digest(maker(3), tensors=False) == digest(maker(3), tensors=False)
    assert digest(maker(3), tensors=False) != digest(maker(4), tensors=False)
    assert digest(maker(3)) != digest(maker(3))


def test_every_element_of_weights_counts_whatever_their_order_and_layout() -> None:
    state = {
        "a": torch.arange(3_000_000.0),
        "b": torch.ones(2, 3, dtype=torch.bfloat16),
        "c": torch.tensor(1),
    }
    turned = torch.ones(3, 2, dtype=torch.bfloat16).T
    again = {"c": torch.tensor(1), "b": turned, "a": state["a"].clone()}
    assert state_digest(again) == state_digest(state)
    again["a"][1_234_567] += 1
    assert state_digest(again) != state_digest(state)
    assert state_digest({**state, "b": state["b"].float()}) != state_digest(state)
    assert state_digest({**state, "b": state["b"].reshape(3, 2)}) != state_digest(state)


def test_large_arrays_and_long_lists_in_code_are_sampled() -> None:
    values = np.zeros(50_000_000, dtype=np.uint8)
    before = digest(values)
    values[::2] = 1
    assert digest(values) != before
    assert digest(list(range(1_000_000))) != digest(list(range(999_999)))


PROGRAM = """
import dataclasses, enum, functools, random
import numpy as np, torch
from torch import nn
from autocompress.engine.digests import digest

KINDS = {"alpha", "beta", "gamma", 3, None}
TABLE = {name: len(name) for name in KINDS if isinstance(name, str)}

class Kind(enum.Enum):
    MEAN = "mean"
    SUM = "sum"

@dataclasses.dataclass(frozen=True)
class Options:
    kind: Kind = Kind.MEAN
    names: frozenset = frozenset({"x", "y", "z"})

class Own(nn.Module):
    options = Options()

    def __init__(self):
        super().__init__()
        self.generator = random.Random()
        self.lock = __import__("threading").Lock()
        self.weight = nn.Parameter(torch.arange(4.0))

    def forward(self, outputs, targets):
        if self.options.kind in {Kind.MEAN, "mean", "sum", "other"}:
            return super().forward(outputs)
        return TABLE["alpha"] * np.mean([t for t in KINDS if t in {"a", "b", 5}])

print(digest(Own()), digest(functools.partial(lambda x, k: x in {"p", "q", "r"} or k, k=KINDS)), digest(Own))
"""


def test_two_processes_agree(tmp_path: Path) -> None:
    (tmp_path / "program.py").write_text(PROGRAM)
    printed = {
        subprocess.run(
            [sys.executable, "program.py"],
            capture_output=True,
            text=True,
            check=True,
            cwd=tmp_path,
            env={**os.environ, "PYTHONHASHSEED": seed},
        ).stdout
        for seed in ("1", "2")
    }
    assert len(printed) == 1
    assert len(set(printed.pop().split())) == 3
