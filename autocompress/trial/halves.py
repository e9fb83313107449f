"""Half precision for what is left in floats where weights are stored as codes: biases, norms and levels."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor, nn

from autocompress.graph.exporting import comparable, inference
from autocompress.methods.shared.divergence import output_loss
from autocompress.task import Inputs, Limits, Task, call
from autocompress.task.inputs import moved, tensors
from autocompress.task.limits import owner_of
from autocompress.task.random_state import generators_of, random_state_kept
from autocompress.training.loop import device_of
from autocompress.weights.encoded import codes_of

# Training rows that outputs are compared on, and the greatest squared difference, over what outputs vary by,
# that rounding may make: halves have eleven bits, and codes that weights are stored by change far more.
_ROWS, _MOST_LOST = 64, 1e-4
_BatchNorm = nn.modules.batchnorm._BatchNorm


@torch.no_grad()
def round_vectors(model: nn.Module, task: Task) -> list[str]:
    """Round the vectors of a model whose weights are codes to numbers that half precision has, in place.

    Vectors are its parameters of one dimension. Those of a batch norm, y = γ·(x − μ)/√(σ² + ε) + β, become
    such that s = γ/√(σ² + ε) and t = β − s·μ have half precision, as it is these that its file holds. The
    model stays in single precision and can be trained on. What is frozen or excluded stays, and so does all
    where outputs would change by more than rounding, as those of large numbers that vary little.

    Args:
        model: in evaluation mode.
        task: within its limits; outputs are compared on its training rows.

    Returns:
        Names of the parameters that were rounded; none where no weights are codes.
    """
    if not codes_of(model):
        return []
    device = device_of(model)
    with random_state_kept(*generators_of(task.train), device=device), inference(model), comparable():
        inputs = moved(task.calibration_rows(_ROWS), device)
        expected = _outputs(model, inputs)
        before = {name: parameter.clone() for name, parameter in model.named_parameters()}
        rounded = [*_rounded(model, task.limits or Limits())]
        pairs = zip(expected, _outputs(model, inputs), strict=True)
        lost = [output_loss(wanted, made, classes=False) for wanted, made in pairs]
    if all(loss <= _MOST_LOST for loss in lost):
        return rounded
    for name, parameter in model.named_parameters():
        parameter.copy_(before[name])
    return []


def _outputs(model: nn.Module, inputs: Inputs) -> list[Tensor]:
    return [tensor for tensor in tensors(call(model, inputs)) if tensor.is_floating_point()]


def _rounded(model: nn.Module, limits: Limits) -> Iterator[str]:
    """Round what may be, and name it."""
    parameters = dict(model.named_parameters())
    free = {
        name: parameter
        for name, parameter in parameters.items()
        if parameter.dim() == 1 and parameter.dtype == torch.float32 and parameter.requires_grad
        if name not in limits.tensors and limits.why_layer(owner_of(name)) is None
    }
    for name, module in model.named_modules():
        own: Any = module
        if not isinstance(module, _BatchNorm) or own.weight is None or own.running_mean is None:
            continue
        gamma, beta = (f"{name}.{part}".lstrip(".") for part in ("weight", "bias"))
        if free.pop(gamma, None) is None or free.pop(beta, None) is None:
            continue
        deviation = (own.running_var.double() + own.eps).sqrt()
        scale = _half(own.weight.double() / deviation)
        shift = _half(own.bias.double() - scale * own.running_mean.double())
        own.weight.copy_(scale * deviation)
        own.bias.copy_(shift + scale * own.running_mean.double())
        yield from (gamma, beta)
    for name, parameter in free.items():
        parameter.copy_(_half(parameter))
        yield name


def _half(numbers: Tensor) -> Tensor:
    """The nearest numbers that half precision has, in the precision that they are given in."""
    return numbers.half().to(numbers.dtype)
