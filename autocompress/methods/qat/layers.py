"""The layers that a file computes in int8: their weights and what they are given, rounded in training."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn

from autocompress.methods.qat.rounding import COMPUTED_CODES, round_activations, round_weight
from autocompress.task import Limits
from autocompress.weights.factored import CONVOLUTIONS, TRANSPOSED, transposed_linear

_PLAIN: tuple[type[nn.Module], ...] = (nn.Linear, *CONVOLUTIONS)
# As `LayerProfile.kind` has them; the last is GPT-2's linear layer.
KINDS = frozenset([*(kind.__name__ for kind in (*_PLAIN, *TRANSPOSED)), "Conv1D"])
_PROJECTIONS = ("in_proj_weight", "q_proj_weight", "k_proj_weight", "v_proj_weight")
# What these layers call their inputs.
_INPUTS = ("input", "query", "key", "value", "x")


def weight_dims(module: nn.Module) -> dict[str, int]:
    """Weights of a module's own that a file has in int8 → the dimension that its outputs stand along."""
    if isinstance(module, _PLAIN):
        dims = {"weight": 0}
    elif isinstance(module, (*TRANSPOSED, *transposed_linear())):
        dims = {"weight": 1}
    elif isinstance(module, nn.MultiheadAttention):
        dims = dict.fromkeys(_PROJECTIONS, 0)
    else:
        return {}
    # A weight that is computed from others is none of its own parameters.
    return {name: dim for name, dim in dims.items() if module._parameters.get(name) is not None}


def rounded_weights(model: nn.Module, limits: Limits) -> dict[nn.Parameter, int]:
    """Weights that a file of a model has in int8 → the dimension that outputs stand along; shared ones once.

    What is excluded by name stays in floats, there and here; what is only frozen does not.

    Args:
        model: not changed.
        limits: of it.
    """
    names: dict[nn.Parameter, list[str]] = defaultdict(list)
    for name, parameter in model.named_parameters(remove_duplicate=False):
        names[parameter].append(name)
    return {
        parameter: dim
        for module in model.modules()
        for weight, dim in weight_dims(module).items()
        for parameter in [module.get_parameter(weight)]
        if not any(map(limits.excludes, names[parameter]))
    }


@dataclass
class Straight:
    """A weight that a model has rounded, and the numbers that optimiser steps move behind it.

    The straight-through estimator: the gradient at the rounded numbers is taken for that at the numbers
    themselves. As these are the weight's own values, whatever reads the weight reads them.

    Args:
        parameter: the weight; it is rounded at once.
        dim: dimension that its outputs stand along.
        codes: the greatest code of its rounded numbers.
    """

    parameter: nn.Parameter
    dim: int
    codes: int = COMPUTED_CODES
    numbers: Tensor = field(init=False)
    shown: Tensor = field(init=False)

    def __post_init__(self) -> None:
        precision = torch.promote_types(self.parameter.dtype, torch.float32)
        self.numbers = self.parameter.detach().to(precision, copy=True)
        self._show()

    @torch.no_grad()
    def _show(self) -> None:
        self.parameter.copy_(round_weight(self.numbers, self.dim, self.codes))
        self.shown = self.parameter.detach().clone()

    def follow(self) -> None:
        """Move the numbers by what an optimiser step changed of the weight, and round them again."""
        self.numbers += self.parameter.detach() - self.shown
        self._show()

    @torch.no_grad()
    def release(self) -> None:
        """Give the weight its numbers back."""
        self.parameter.copy_(self.numbers)


class RoundInputs:
    """Forward pre-hook that rounds what a layer is given, over a range that follows the batches.

    A class, because closures do not pickle. All inputs of a layer, and of all its calls, share a range.

    Args:
        averaging: what a batch counts in the moving averages.

    Attributes:
        rounds: whether it rounds; else it only follows.
        follows: whether the range moves; the first inputs set it in any case.
        low: moving average of the least input, `()`; None before the first.
        high: that of the greatest.
    """

    def __init__(self, averaging: float) -> None:
        self.averaging = averaging
        self.rounds = self.follows = True
        self.low: Tensor | None = None
        self.high: Tensor | None = None

    def __call__(self, layer: nn.Module, args: tuple[Any, ...], kwargs: Mapping[str, Any]) -> Any:
        """What the layer is given instead; None where that stays."""
        count = 3 if isinstance(layer, nn.MultiheadAttention) else 1
        named = [kwargs[name] for name in _INPUTS if name in kwargs]
        # An expert that no token goes to is given nothing.
        inputs = [given for given in (*args[:count], *named) if isinstance(given, Tensor) and given.numel()]
        if inputs and (self.low is None or (self.follows and layer.training)):
            self._follow(inputs)
        if not self.rounds or self.low is None or self.high is None:
            return None
        # Attention asks whether its query, key and value are one tensor.
        by_id = {id(given): given for given in inputs}
        rounded = {key: round_activations(given, self.low, self.high) for key, given in by_id.items()}
        return (
            tuple(rounded.get(id(given), given) for given in args),
            {name: rounded.get(id(given), given) for name, given in kwargs.items()},
        )

    @torch.no_grad()
    def _follow(self, inputs: list[Tensor]) -> None:
        ends = [torch.aminmax(given) for given in inputs]
        low = torch.stack([end.min.float() for end in ends]).amin()
        high = torch.stack([end.max.float() for end in ends]).amax()
        if self.low is None or self.high is None:
            self.low, self.high = low, high
        else:
            self.low = torch.lerp(self.low, low, self.averaging)
            self.high = torch.lerp(self.high, high, self.averaging)
