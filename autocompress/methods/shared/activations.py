"""What layers receive and make when a model runs once, in evaluation."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import torch
from torch import Tensor, nn

from autocompress.graph.exporting import inference
from autocompress.task import Inputs, call


def watch_inputs(
    model: nn.Module, inputs: Inputs, watchers: Mapping[nn.Module, Callable[[Tensor], None]]
) -> None:
    """Run a model once and hand what layers receive, at every call, to those who watch them.

    Args:
        model: run in evaluation, without gradients.
        inputs: `(B, ...)`.
        watchers: layer → what takes its first input; it may change the layer.
    """

    def hook(watch: Callable[[Tensor], None]) -> Any:
        def before(layer: nn.Module, args: Any, kwargs: Any) -> None:
            received = (args or tuple(kwargs.values()))[:1]
            if received:
                watch(received[0].detach())

        return before

    handles = [
        layer.register_forward_pre_hook(hook(watch), with_kwargs=True) for layer, watch in watchers.items()
    ]
    _run(model, inputs, handles)


def watch_outputs(
    model: nn.Module, inputs: Inputs, watchers: Mapping[nn.Module, Callable[[Tensor], None]]
) -> None:
    """Run a model once and hand what layers make, at every call, to those who watch them.

    Args:
        model: run in evaluation, without gradients.
        inputs: `(B, ...)`.
        watchers: layer → what takes its outputs.
    """

    def hook(watch: Callable[[Tensor], None]) -> Any:
        def after(layer: nn.Module, args: Any, outputs: Tensor) -> None:
            watch(outputs.detach())

        return after

    handles = [layer.register_forward_hook(hook(watch)) for layer, watch in watchers.items()]
    _run(model, inputs, handles)


def _run(model: nn.Module, inputs: Inputs, handles: list[Any]) -> None:
    try:
        with torch.no_grad(), inference(model):
            call(model, inputs)
    finally:
        for handle in handles:
            handle.remove()
