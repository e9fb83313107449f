"""Which weights a model's own code takes from other modules, and which only as the parameters they are."""

from __future__ import annotations

import copy

import torch
from torch import Tensor, nn

from autocompress.graph import analyse
from autocompress.graph.costs import layer_macs
from autocompress.graph.weights import weights_of
from autocompress.methods.shared.replaceable import decodable, replaceable


class Particular(nn.Module):
    """A weight that is normalised in place, one whose layer's class is asked for, and a module that runs all
    that is registered on it."""

    class Steps(nn.Sequential):
        def __init__(self) -> None:
            super().__init__(nn.Linear(6, 6))
            self.matrix = nn.Parameter(torch.randn(6, 6))

        def forward(self, x: Tensor) -> Tensor:
            return super().forward(x) @ self.matrix

    def __init__(self) -> None:
        super().__init__()
        self.normalised, self.asked, self.plain = (nn.Linear(6, 6) for _ in range(3))
        self.steps = self.Steps()

    def forward(self, x: Tensor) -> Tensor:
        if not torch.compiler.is_compiling():
            self.normalised.weight.data = self.normalised.weight.data.clamp(-1, 1)
            assert isinstance(self.normalised.weight, nn.Parameter)
        assert isinstance(self.asked, nn.Linear)
        return self.steps(self.plain(self.asked(self.normalised(x))))


def test_what_a_models_own_code_asks_for_decides() -> None:
    torch.manual_seed(0)
    model, x = Particular().eval(), torch.randn(2, 6)
    weights = list(weights_of(model, analyse(model, x), layer_macs(model, x)))
    before = copy.deepcopy(model.state_dict())
    state = torch.get_rng_state()
    assert replaceable(model, weights, x) == ["plain", "steps.0"]
    assert decodable(model, weights, x) == ["asked", "plain", "steps.0"]
    assert all(torch.equal(tensor, before[name]) for name, tensor in model.state_dict().items())
    assert torch.equal(torch.get_rng_state(), state)
