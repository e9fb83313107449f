"""Proof before training: remove units from a perturbed copy and compare it with the masked one."""

from __future__ import annotations

import copy
from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from autocompress.errors import TrialError, one_line
from autocompress.graph.exporting import comparable
from autocompress.graph.masking import mask_channels
from autocompress.graph.removal import Cuts, cut_tensors, cuts_of, sizes_of_enclosing, sizes_of_owners
from autocompress.graph.rewriting import rewrite_channels
from autocompress.graph.structure import Analysis, Keep
from autocompress.task.inputs import Inputs, call, device_of_inputs, repeated_rows, rows

TOLERANCE = 1e-4


def relative_difference(a: Any, b: Any) -> float:
    """Greatest absolute difference over the greatest magnitude of `a`; NaN counts as infinite.

    Outputs may be tensors, or mappings and sequences of them.
    """
    if isinstance(a, Mapping):
        return max((relative_difference(a[key], b[key]) for key in a), default=0.0)
    if isinstance(a, (tuple, list)):
        return max((relative_difference(x, y) for x, y in zip(a, b, strict=True)), default=0.0)
    if not isinstance(a, Tensor):
        return 0.0 if a == b else float("inf")
    if a.shape != b.shape:
        return float("inf")
    a, b = a.double(), b.double()
    difference = float((a - b).abs().max() / a.abs().max().clamp_min(1e-12))
    return difference if difference == difference else float("inf")


def check_graph(model: nn.Module, graph: nn.Module, example: Inputs) -> None:
    """A model's graph, with its layers called as modules, must compute what the model does.

    Args:
        model: in eval mode afterwards, as is the other.
        graph: its graph module.
        example: inputs to compare on, `(B, ...)`.

    Raises:
        TrialError: it does not.
    """
    with comparable():
        difference = relative_difference(call(model.eval(), example), call(graph.eval(), example))
    if difference > TOLERANCE:
        raise TrialError(
            f"the model's graph must compute what the model does but differs by {difference:.1e}."
        )


def compact(model: nn.Module, analysis: Analysis, keep: Keep, probe: Inputs) -> tuple[nn.Module, float]:
    """The model without the units that are not kept, and how far its outputs are from the masked one's.

    The model's own modules are cut; where its code does not run with them, or computes something
    else, its exported graph is.

    Args:
        model: in eval mode; not changed.
        analysis: of this model.
        keep: group name → units that stay; groups not named stay whole.
        probe: inputs to compare on, `(B, ...)`.

    Returns:
        The smaller model, and the greatest relative difference of its outputs.

    Raises:
        TrialError: neither can be cut.
    """
    masked = mask_channels(model, analysis, keep).eval()
    own = cut_modules(model, cuts_of(analysis, keep), masked, probe)
    if own is not None:
        return own.model, own.difference
    with comparable():
        rewritten = rewrite_channels(model, analysis, keep).eval()
        return rewritten, relative_difference(call(masked, probe), call(rewritten, probe))


@dataclass(frozen=True)
class CutModules:
    """A model of the user's own class without what was cut.

    Args:
        model: in evaluation mode.
        cuts: that were made, with what modules of the user's own classes say of their sizes.
        difference: greatest relative difference of its outputs to the masked model's.
    """

    model: nn.Module
    cuts: Cuts
    difference: float


def cut_modules(model: nn.Module, cuts: Cuts, masked: nn.Module, probe: Inputs) -> CutModules | None:
    """The model's own modules without what is cut; None where its code does not run with them, or computes
    something else.

    Sizes that modules know by attributes are told to those whose parameters are cut, or to none, or to those
    around them too: whichever makes the model right.

    Args:
        model: not changed.
        cuts: out of its tensors.
        masked: what the smaller model must equal, in evaluation mode.
        probe: inputs to compare on, `(B, ...)`.
    """
    owners = sizes_of_owners(model, cuts)
    attempts = [owners, {}, {**sizes_of_enclosing(model, cuts), **owners}]
    with comparable():
        expected = call(masked, probe)
        for position, sizes in enumerate(attempts):
            if sizes in attempts[:position]:
                continue
            told = replace(cuts, sizes=sizes)
            smaller = copy.deepcopy(model)
            cut_tensors(smaller, told)
            try:
                difference = relative_difference(expected, call(smaller.eval(), probe))
            except (RuntimeError, ValueError, TypeError, IndexError, AssertionError, ArithmeticError):
                # The model's code fixes a size that changed.
                continue
            if difference <= TOLERANCE and runs_in_training(smaller, model, probe):
                return CutModules(smaller, told, difference)
    return None


def runs_in_training(smaller: nn.Module, model: nn.Module, probe: Inputs) -> bool:
    """Whether a smaller model runs in training, unless the whole one does not either.

    What a model does in training alone, such as an auxiliary head, is not in its graph: channels that it
    reads may be gone.

    Args:
        smaller: not changed.
        model: that it was cut from; not changed.
        probe: inputs, `(B, ...)` with B ≥ 2.
    """
    return _runs_in_training(smaller, probe) or not _runs_in_training(model, probe)


def _runs_in_training(model: nn.Module, probe: Inputs) -> bool:
    device = device_of_inputs(probe)
    own = [] if device.index is None else [device.index]
    with torch.no_grad(), torch.random.fork_rng(own, device_type=device.type):
        try:
            call(copy.deepcopy(model).train(), probe)
        except Exception:  # of a user's forward it is any error
            return False
    return True


def prove_groups(model: nn.Module, example: Inputs, analysis: Analysis) -> Analysis:
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


def _culprits(model: nn.Module, example: Inputs, analysis: Analysis, names: list[str]) -> dict[str, str]:
    reason = _failure(model, example, analysis, names)
    if reason is None:
        return {}
    if len(names) == 1:
        return {names[0]: reason}
    half = len(names) // 2
    culprits = _culprits(model, example, analysis, names[:half])
    culprits |= _culprits(model, example, analysis, names[half:])
    remaining = [name for name in names if name not in culprits]
    if not culprits:
        # Each half alone is right, together they are not: leave the second one alone.
        return dict.fromkeys(names[half:], f"together with {names[0]}: {reason}")
    return culprits | (_culprits(model, example, analysis, remaining) if remaining else {})


def random_keep(analysis: Analysis, names: list[str], seed: int = 0) -> dict[str, list[int]]:
    """Another random share of units for each group, so that no missed coupling goes unseen."""
    rng = np.random.default_rng(seed)
    keep: dict[str, list[int]] = {}
    for name in names:
        width = analysis.group(name).width
        if width > 1:
            count = int(rng.integers(1, width))
            keep[name] = np.sort(rng.permutation(width)[:count]).tolist()
    return keep


def _failure(model: nn.Module, example: Inputs, analysis: Analysis, names: list[str]) -> str | None:
    """Why the removal of a random part of these groups is wrong; None where it is right."""
    # One input more than the graph was traced with: the batch must stay free.
    probe = repeated_rows(example, rows(example) + 1)
    try:
        _, difference = compact(model, analysis, random_keep(analysis, names), probe)
    except Exception as error:
        return f"the model does not run without these channels: {one_line(error)}"
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
