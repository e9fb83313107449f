"""What a model loses when single groups keep fewer of their units: one probe, without training."""

from __future__ import annotations

import copy
import math
from collections.abc import Sequence
from dataclasses import replace

import torch
from torch import nn

from autocompress.graph import Analysis
from autocompress.graph.exporting import inference
from autocompress.methods.shared.divergence import output_loss
from autocompress.methods.shared.gates import insert_gates, set_gates
from autocompress.methods.shared.strength import ReaderNorms, find_readers, input_rms
from autocompress.methods.shared.unit_index import unit_offsets
from autocompress.task import ModelProfile, Task
from autocompress.task.inputs import Inputs, call, device_of_inputs, moved, take
from autocompress.task.random_state import generators_of, random_state_kept

# Widths that are tried of each group, and training rows: 7 passes of 16 rows for each group, which took 0.1 s
# of one core for small_cnn and 1.4 s for resnet20.
_LEVELS, _ROWS = 8, 16


def with_losses(
    profile: ModelProfile, model: nn.Module, task: Task, analysis: Analysis, device: torch.device
) -> ModelProfile:
    """The profile with what the model loses when one of its groups becomes narrower, all others as they are.

    It is measured: the units that are read least strongly, by which ALCN chooses too, are shut, and outputs
    are compared with those of the whole model. Taylor and Fisher scores, which add up over units, said of
    models that fit their training rows that nearly all of a layer could go.

    Args:
        profile: of the model.
        model: not changed.
        task: whose training rows are used; validation rows are not.
        analysis: of the model.
        device: where to compute.
    """
    if not profile.groups:
        return profile
    gated = copy.deepcopy(model).to(device).eval()
    with random_state_kept(*generators_of(task.train), device=device):
        inputs = moved(task.calibration_rows(_ROWS), device)
        curves = _curves(gated, task, analysis, inputs)
    groups = tuple(replace(group, losses=own) for group, own in zip(profile.groups, curves, strict=True))
    return replace(profile, groups=groups)


def _curves(gated: nn.Module, task: Task, analysis: Analysis, inputs: Inputs) -> list[tuple[float, ...]]:
    """For each group what is lost at each of its levels; the model gets gates."""
    readers = find_readers(gated, analysis)
    offsets = unit_offsets(analysis)
    units = offsets[-1]
    open_gates = torch.ones(units + 1, device=device_of_inputs(inputs))
    strength = ReaderNorms(readers, input_rms(gated, readers, inputs), units, open_gates)()
    sites = insert_gates(gated, analysis, take(inputs, slice(2)))
    curves = []
    with inference(gated):
        set_gates(sites, open_gates)
        expected = task.answer(call(gated, inputs))
        for group, start in zip(analysis.groups, offsets, strict=False):
            weakest_first = start + strength[start : start + group.width].argsort()
            losses = []
            for kept in group_widths(group.width)[:-1]:
                gates = open_gates.index_fill(0, weakest_first[: group.width - kept], 0.0)
                set_gates(sites, gates)
                losses.append(output_loss(expected, task.answer(call(gated, inputs)), task.cross_entropy))
            curves.append(_falling(losses))
    return curves


def group_widths(width: int) -> list[int]:
    """The widths of a group that are tried, up to its own: 8 equal shares, rounded up, or each there is."""
    levels = min(width, _LEVELS)
    return [-(-width * (level + 1) // levels) for level in range(levels)]


def _falling(losses: Sequence[float]) -> tuple[float, ...]:
    """Losses that never rise with the width, the last one 0; none where one is not finite."""
    if not all(map(math.isfinite, losses)):
        return ()
    falling = [0.0]
    for loss in reversed(losses):
        falling.append(max(falling[-1], float(f"{loss:.4g}")))
    return tuple(reversed(falling))
