"""What a model is predicted to lose when groups keep fewer of their units: one probe, without training."""

from __future__ import annotations

import copy
import math
from collections.abc import Iterator
from dataclasses import replace

import torch
from torch import Tensor, nn

from autocompress.graph import Analysis
from autocompress.graph.exporting import plain_attention
from autocompress.methods.shared.gates import GateSite, insert_gates, set_gates
from autocompress.methods.shared.unit_index import unit_offsets
from autocompress.task import Batch, ModelProfile, Task
from autocompress.task.random_state import generators_of, random_state_kept
from autocompress.training.loop import loss_on

# Rows of a gradient, and gradients: a mean over few rows of a square whose values differ by orders of
# magnitude is better known from several rows at a time, and 32 of them cost a small CNN 0.1 s.
_ROWS, _GRADIENTS = 8, 32
# Levels of a group's curve; groups of fewer units have one for each.
_LEVELS = 16


def with_losses(
    profile: ModelProfile, model: nn.Module, task: Task, analysis: Analysis, device: torch.device
) -> ModelProfile:
    """The profile with what the model is predicted to lose when each of its groups becomes narrower.

    To second order, and with groups that do not know of each other, a model that has been trained loses half
    the sum of the Fisher scores of the units that go; those with the least go first.

    Args:
        profile: of the model.
        model: not changed.
        task: whose training rows and loss are used; validation rows are not.
        analysis: of the model.
        device: where to compute.
    """
    if not profile.groups:
        return profile
    scores = unit_scores(model, task, analysis, device)
    groups = []
    for group, own in zip(profile.groups, scores, strict=True):
        losses = () if own is None else loss_curve(own)
        groups.append(replace(group, losses=losses))
    return replace(profile, groups=tuple(groups))


def loss_curve(scores: Tensor) -> tuple[float, ...]:
    """Half the sum of the least scores, at up to 16 equal shares of the units that are kept.

    Args:
        scores: of a group's units, `(width,)`.
    """
    width = len(scores)
    levels = min(width, _LEVELS)
    lost = 0.5 * torch.cat([scores.new_zeros(1), scores.sort().values.cumsum(0)])
    kept = [math.ceil(width * (level + 1) / levels) for level in range(levels)]
    return tuple(float(f"{lost[width - count].item():.4g}") for count in kept)


def unit_scores(
    model: nn.Module, task: Task, analysis: Analysis, device: torch.device
) -> list[Tensor | None]:
    """The empirical Fisher information of a gate at each unit: the mean over rows of (∂ loss / ∂ gate)².

    Molchanov et al., *Importance Estimation for Neural Network Pruning*, arXiv 1906.10771, equation 8, with
    gates as in its section 3.2: squares are those of the gradients of batches of 8 rows, times 8, which
    is the same on average where the gradient over all rows is 0, as at the end of a training.

    Returns:
        For each group of the analysis `(width,)`, in double precision on the CPU; None where a group has a
        unit that no gate reaches, or where the loss has no finite gradient.
    """
    gated = copy.deepcopy(model).to(device).eval().requires_grad_(False)
    loss_of = loss_on(task.loss, device)
    units = unit_offsets(analysis)[-1]
    squares, count = torch.zeros(units, dtype=torch.float64, device=device), 0
    # cuDNN's recurrent layers have a gradient in training mode only.
    recurrent = any(isinstance(module, nn.RNNBase) for module in gated.modules())
    with (
        random_state_kept(*generators_of(task.train), device=device),
        plain_attention(),
        torch.backends.cudnn.flags(enabled=torch.backends.cudnn.enabled and not recurrent),
        torch.enable_grad(),
    ):
        sites = insert_gates(gated, analysis, task.example().to(device))
        for inputs, targets in _pieces(task):
            gates = torch.ones(units + 1, device=device, requires_grad=True)
            set_gates(sites, gates)
            loss = loss_of(gated(inputs.to(device)), targets.to(device))
            if not loss.requires_grad:
                break
            squares += len(inputs) * torch.autograd.grad(loss, gates)[0][:units].double().square()
            count += 1
    scores, reached = (squares / max(count, 1)).cpu(), _reached(sites, units)
    widths = [group.width for group in analysis.groups]
    return [
        own if count and bool(known.all()) and bool(own.isfinite().all()) else None
        for own, known in zip(torch.split(scores, widths), torch.split(reached, widths), strict=True)
    ]


def _reached(sites: list[GateSite], units: int) -> Tensor:
    """Which units have a gate, `(units,)`."""
    reached = torch.zeros(units + 1, dtype=torch.bool)
    for site in sites:
        for _, index in site.gated.values():
            reached[index.cpu()] = True
    return reached[:units]


def _pieces(task: Task) -> Iterator[Batch]:
    """The first training rows, a few at a time; all of them alike in number, so that squares compare."""
    left = _GRADIENTS
    for inputs, targets in task.train:
        for start in range(0, max(len(inputs) - _ROWS, 0) + 1, _ROWS):
            if not left:
                return
            yield inputs[start : start + _ROWS], targets[start : start + _ROWS]
            left -= 1
