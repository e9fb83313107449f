"""Proof before training: remove units from a perturbed copy and compare it with the masked one."""

from __future__ import annotations

import copy
from dataclasses import replace

import numpy as np
import torch
from torch import Tensor, nn

from autocompress.errors import one_line
from autocompress.graph.analysis import Analysis
from autocompress.graph.removal import mask_channels, remove_channels

TOLERANCE = 1e-4


def relative_difference(a: Tensor, b: Tensor) -> float:
    """Greatest absolute difference over the greatest magnitude of `a`; NaN counts as infinite."""
    if a.shape != b.shape:
        return float("inf")
    difference = float((a - b).abs().max() / a.abs().max().clamp_min(1e-12))
    return difference if difference == difference else float("inf")


def prove_groups(model: nn.Module, example: Tensor, analysis: Analysis) -> Analysis:
    """Freeze, with the reason, every group whose removal does not equal masking it.

    All groups are tried at once; where that fails the set is halved until the culprits are alone.
    """
    subject = _perturbed(model)
    failed = _culprits(subject, example, analysis, [g.name for g in analysis.groups])
    if not failed:
        return analysis
    groups = tuple(g for g in analysis.groups if g.name not in failed)
    free = {m.layer for group in groups for m in group.members if m.role != "in"}
    frozen = dict(analysis.frozen)
    for group in analysis.groups:
        for member in group.members:
            if group.name in failed and member.role != "in" and member.layer not in free:
                frozen.setdefault(member.layer, failed[group.name])
    return replace(analysis, groups=groups, frozen=frozen)


def _culprits(model: nn.Module, example: Tensor, analysis: Analysis, names: list[str]) -> dict[str, str]:
    reason = _failure(model, example, analysis, names)
    if reason is None:
        return {}
    if len(names) == 1:
        return {names[0]: reason}
    half = len(names) // 2
    found = _culprits(model, example, analysis, names[:half])
    found |= _culprits(model, example, analysis, names[half:])
    remaining = [name for name in names if name not in found]
    if not found:
        # Each half alone is right, together they are not: leave the second one alone.
        return dict.fromkeys(names[half:], f"together with {names[0]}: {reason}")
    return found | (_culprits(model, example, analysis, remaining) if remaining else {})


def _failure(model: nn.Module, example: Tensor, analysis: Analysis, names: list[str]) -> str | None:
    """Why the removal of a random part of these groups is wrong; None where it is right."""
    rng = np.random.default_rng(0)
    keep: dict[str, list[int]] = {}
    for name in names:
        width = analysis.group(name).width
        if width > 1:
            # Another share of units for each group, so that no missed coupling goes unseen.
            count = int(rng.integers(1, width))
            keep[name] = np.sort(rng.permutation(width)[:count]).tolist()
    try:
        with torch.no_grad():
            compact = remove_channels(model, analysis, keep)(example)
            masked = mask_channels(model, analysis, keep)(example)
            difference = relative_difference(masked, compact)
    except Exception as error:
        return f"the model's code does not run without these channels: {one_line(error)}"
    if difference > TOLERANCE:
        return f"removing its channels changes the outputs by {difference:.1e}"
    return None


def _perturbed(model: nn.Module) -> nn.Module:
    """A copy with unlike channels everywhere, so that no error hides behind equal initial values."""
    subject = copy.deepcopy(model).eval()
    generator = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for tensor in subject.parameters():
            if tensor.is_floating_point():
                noise = torch.randn(tensor.shape, generator=generator).to(tensor)
                spread = tensor.std(correction=0).clamp_min(0.05) if tensor.numel() else 0.0
                tensor.add_(0.2 * spread * noise)
        for module in subject.modules():
            if isinstance(module, nn.modules.batchnorm._NormBase):
                for buffer in (module.running_mean, module.running_var):
                    if buffer is not None:
                        buffer.add_(torch.rand(buffer.shape, generator=generator).to(buffer), alpha=0.2)
    return subject
