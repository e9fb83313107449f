"""Carries out `KeepChannels`: cuts units out of every tensor of their coupled groups."""

from __future__ import annotations

from collections.abc import Sequence

from torch import Tensor, nn

from autocompress.errors import TrialError
from autocompress.graph import analyse, compact
from autocompress.surgery.edits import KeepChannels


def keep_channels(model: nn.Module, edits: Sequence[KeepChannels], probe: Tensor) -> tuple[nn.Module, float]:
    """The compact model, and the relative difference of its outputs to the masked one's on the probe.

    Raises:
        TrialError: an edit names a group or a unit that the model does not have.
    """
    analysis = analyse(model, probe)
    widths = {group.name: group.width for group in analysis.groups}
    for edit in edits:
        if edit.group not in widths:
            raise TrialError(f"group must be one of the model's groups but got {edit.group!r}.")
        if edit.keep[-1] >= widths[edit.group]:
            raise TrialError(
                f"keep must be below the {widths[edit.group]} units of group {edit.group!r} "
                f"but got {edit.keep[-1]}."
            )
    return compact(model.eval(), analysis, {edit.group: edit.keep for edit in edits}, probe)
