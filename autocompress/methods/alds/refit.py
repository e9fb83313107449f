"""Second factors that reproduce a dense layer's outputs from what the factors before them make.

Zhang, Zou, He, Sun, *Accelerating Very Deep Convolutional Networks for Classification and Detection*,
TPAMI 2016, arXiv 1505.06798, section 3.3 (asymmetric reconstruction), without its non-linearity.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from autocompress.methods.alds.patches import output_rows, patch_rows
from autocompress.methods.shared.activations import watch_inputs, watch_outputs
from autocompress.methods.shared.ridge import ridge
from autocompress.task import Inputs
from autocompress.weights.folding import Folding

_DAMPING = 1e-3  # relative to the mean square of what the factor reads


def dense_outputs(model: nn.Module, names: Sequence[str], inputs: Inputs) -> dict[str, Tensor]:
    """What layers make at their first call, at sampled positions, in eval mode, `(positions, f)`."""
    outputs: dict[str, Tensor] = {}

    def watcher(name: str) -> Callable[[Tensor], None]:
        def watch(made: Tensor) -> None:
            if name not in outputs:
                outputs[name] = output_rows(model.get_submodule(name), made)

        return watch

    watch_outputs(model, inputs, {model.get_submodule(name): watcher(name) for name in names})
    return outputs


def refit(model: nn.Module, wanted: Mapping[str, Tensor], inputs: Inputs) -> None:
    """Set the second factors, first layer first, each on what the layers before it now make.

    Args:
        model: with pairs of factors in the layers' places; changed in place.
        wanted: the dense layers' outputs on the same inputs, from `dense_outputs`.
        inputs: to the model.
    """
    waiting = dict(wanted)

    def watcher(name: str, second: nn.Module) -> Callable[[Tensor], None]:
        def watch(received: Tensor) -> None:
            targets = waiting.pop(name, None)
            if targets is not None:
                fit_outputs(second, received, targets)

        return watch

    watchers = {}
    for name in wanted:
        pair: Any = model.get_submodule(name)
        if getattr(pair[1], "padding_mode", "zeros") == "zeros":
            watchers[pair[1]] = watcher(name, pair[1])
    watch_inputs(model, inputs, watchers)


def fit_outputs(layer: nn.Module, inputs: Tensor, wanted: Tensor) -> None:
    """Set a layer's weight and bias to argmin ‖Y − Ŵ X‖² + λ ‖Ŵ − W‖².

    Args:
        layer: linear or convolution with weight W; changed in place.
        inputs: it receives.
        wanted: Y at sampled positions, `(positions, f)`.
    """
    weighted: Any = layer
    groups = getattr(weighted, "groups", 1)
    with torch.no_grad():
        rows = patch_rows(layer, inputs, Folding(tuple(weighted.weight.shape), 0, groups, 1)).movedim(1, 0)
        weight = weighted.weight.detach().double().reshape(groups, -1, rows.shape[-1])
        columns = rows.shape[-1]
        if weighted.bias is not None:
            rows = torch.cat([rows, torch.ones_like(rows[..., :1])], -1)
            weight = torch.cat([weight, weighted.bias.double().reshape(groups, -1, 1)], -1)
        targets = wanted.reshape(len(wanted), groups, -1).movedim(1, 0)
        # What W leaves is fitted, so that the penalty is on the change.
        weight += ridge(rows, targets - rows @ weight.mT, _DAMPING)
        weighted.weight.copy_(weight[..., :columns].reshape(weighted.weight.shape))
        if weighted.bias is not None:
            weighted.bias.copy_(weight[..., columns].flatten())
