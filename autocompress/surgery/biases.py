"""Biases that batch norm takes away again: moved into its running mean, where they are part of it anyway."""

from __future__ import annotations

from collections import Counter
from typing import Any

from torch import Tensor, nn

from autocompress.graph.exporting import comparable, inference
from autocompress.graph.proof import relative_difference
from autocompress.task import Inputs, Limits, call

# Of outputs, relative: what rounding makes of the same sum in another order.
_ROUNDING = 1e-5
_BatchNorm = nn.modules.batchnorm._BatchNorm


def absorb_biases(model: nn.Module, example: Inputs, limits: Limits | None = None) -> list[str]:
    """Move biases of layers whose output goes into a batch norm alone, in place: b → 0, μ → μ − b.

    Batch norm subtracts μ, the mean of what it is given, so that b has no effect on the outputs and, in
    training, no gradient. Zeros take no space in a deflated file, and what is added to them is not lost to
    rounding. What is frozen stays, and so does a bias whose layer's output is used elsewhere as well.

    Args:
        model: in evaluation mode.
        example: its inputs, `(B, ...)`.
        limits: by which layers stay as they are, and statistics; None leaves it at what is frozen.

    Returns:
        Names of the layers whose bias is 0 now and was not.
    """
    absorbed = []
    with inference(model), comparable():
        expected = call(model, example)
        for name, layer, norm in _pairs(model, example, limits or Limits()):
            bias, mean = layer.bias.detach().clone(), norm.running_mean.clone()
            norm.running_mean -= bias
            layer.bias.zero_()
            if relative_difference(expected, call(model, example)) <= _ROUNDING:
                absorbed.append(name)
            else:
                layer.bias.copy_(bias)
                norm.running_mean.copy_(mean)
    return absorbed


def _pairs(model: nn.Module, example: Inputs, limits: Limits) -> list[tuple[str, Any, Any]]:
    """Layers with a trainable bias that are called once, and the batch norms that are given their output."""
    made: dict[int, tuple[str, nn.Module, Tensor]] = {}
    calls: Counter[str] = Counter()
    pairs: list[tuple[str, Any, Any]] = []
    handles = []

    def after_layer(name: str) -> Any:
        def hook(layer: nn.Module, args: Any, output: Any) -> None:
            calls[name] += 1
            if isinstance(output, Tensor):
                # Kept, so that no other tensor can take its place in memory.
                made[id(output)] = (name, layer, output)

        return hook

    def before_norm(norm: nn.Module, args: Any) -> None:
        if args and id(args[0]) in made:
            name, layer, _ = made[id(args[0])]
            pairs.append((name, layer, norm))

    for name, module in model.named_modules():
        bias = getattr(module, "bias", None)
        if name in limits.steady or limits.why_layer(name) is not None:
            continue
        if isinstance(module, _BatchNorm):
            if module.running_mean is not None and (module.weight is None or module.weight.requires_grad):
                handles.append(module.register_forward_pre_hook(before_norm))
        elif isinstance(bias, nn.Parameter) and bias.requires_grad and bool(bias.any()):
            handles.append(module.register_forward_hook(after_layer(name)))
    try:
        call(model, example)
    finally:
        for handle in handles:
            handle.remove()
    norms = Counter(id(norm) for _, _, norm in pairs)
    return [
        (name, layer, norm)
        for name, layer, norm in pairs
        if calls[name] == 1 and norms[id(norm)] == 1 and layer.bias.shape == norm.running_mean.shape
    ]
