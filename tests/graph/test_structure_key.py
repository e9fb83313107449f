"""Models whose graphs are the same have one key; what could change a graph changes the key."""

from __future__ import annotations

import copy
import threading
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from autocompress.graph import analyse, analysis
from autocompress.graph.structure_key import structure_key

X = torch.zeros(2, 6)


class Flagged(nn.Module):
    """Two layers, and settings that no shape shows."""

    def __init__(self, act: Callable[[Tensor], Tensor] = torch.relu, twice: bool = False) -> None:
        super().__init__()
        self.first, self.last = nn.Linear(6, 6), nn.Linear(6, 6)
        self.act, self.twice = act, twice
        self.scale = torch.ones(6)

    def forward(self, x: Tensor) -> Tensor:
        hidden = self.act(self.first(x)) * self.scale
        return self.last(self.act(hidden) if self.twice else hidden)


def changed(change: Callable[[Any], object]) -> nn.Module:
    model = Flagged()
    change(model)
    return model


def share(model: Any) -> None:
    model.last.weight = model.first.weight


def test_weights_do_not_matter_and_copies_are_the_same() -> None:
    model = Flagged()
    again = Flagged()
    assert structure_key(model, X) == structure_key(again, X) == structure_key(copy.deepcopy(model), X)
    assert structure_key(model, X) == structure_key(model, X + 1)


@pytest.mark.parametrize(
    "other",
    [
        Flagged(act=torch.tanh),
        Flagged(twice=True),
        changed(share),
        changed(lambda m: m.first.register_forward_hook(lambda module, args, out: -out)),
        changed(lambda m: setattr(m, "scale", torch.full((6,), 2.0))),
        changed(lambda m: setattr(m, "first", nn.Linear(6, 6, bias=False))),
        changed(lambda m: setattr(m, "__class__", type("Flagged", (Flagged,), {}))),
    ],
    ids=["function", "flag", "shared", "hook", "constant", "layer", "class"],
)
def test_what_may_change_the_graph_changes_the_key(other: nn.Module) -> None:
    assert structure_key(other, X) is not None
    assert structure_key(other, X) != structure_key(Flagged(), X)


def test_inputs_of_another_shape_or_type_have_another_key() -> None:
    key = structure_key(Flagged(), X)
    assert key != structure_key(Flagged(), torch.zeros(3, 6))
    assert key != structure_key(Flagged(), X.double())


def test_graph_modules_are_told_apart_by_their_code() -> None:
    plain, twice = (torch.fx.symbolic_trace(Flagged(twice=flag)) for flag in (False, True))
    assert structure_key(plain, X) == structure_key(copy.deepcopy(plain), X) is not None
    assert structure_key(plain, X) != structure_key(twice, X)


def test_a_model_that_cannot_be_pickled_has_no_key() -> None:
    assert structure_key(changed(lambda m: setattr(m, "lock", threading.Lock())), X) is None


def test_a_structure_is_exported_once(monkeypatch: pytest.MonkeyPatch) -> None:
    exported = []
    export = analysis.export

    def counting(model: nn.Module, example: Tensor) -> Any:
        exported.append(model)
        return export(model, example)

    monkeypatch.setattr(analysis, "export", counting)
    models = [nn.Sequential(nn.Linear(6, 7), nn.ReLU(), nn.Linear(7, 3)) for _ in range(3)]
    analyses = [analyse(model, X) for model in models]
    assert len(exported) == 1
    assert analyses[0] is analyses[2]
    analyse(nn.Sequential(nn.Linear(6, 7), nn.Tanh(), nn.Linear(7, 3)), X)
    assert len(exported) == 2
