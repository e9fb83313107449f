"""`materialize`: a plan becomes a physically smaller model, with a proof that nothing else changed."""

from __future__ import annotations

from dataclasses import dataclass

from torch import Tensor, nn

from autocompress.errors import ProofError
from autocompress.graph import TOLERANCE
from autocompress.materialize.blocks import drop_blocks
from autocompress.materialize.channels import keep_channels
from autocompress.plan import DropBlock, KeepChannels, Plan


@dataclass(frozen=True)
class Materialized:
    """A compact model and the greatest relative difference of its outputs to the masked model's."""

    model: nn.Module
    proof: float


def materialize(model: nn.Module, plan: Plan, probe: Tensor) -> Materialized:
    """Carry out a plan on a copy of `model` and compare both on a probe batch.

    Args:
        model: what the compressor released; not changed.
        plan: what to change.
        probe: inputs, `(B, ...)`.

    Raises:
        ProofError: the compact model's outputs differ from the masked model's by more than 1e-4.
        TrialError: an edit does not fit the model.
    """
    if not plan:
        return Materialized(model, 0.0)
    blocks = [edit for edit in plan if isinstance(edit, DropBlock)]
    channels = [edit for edit in plan if isinstance(edit, KeepChannels)]
    compact, difference = drop_blocks(model, blocks, probe) if blocks else (model, 0.0)
    if channels:
        compact, further = keep_channels(compact, channels, probe)
        difference = max(difference, further)
    if difference > TOLERANCE:
        raise ProofError(
            f"the compact model's outputs must equal the masked model's to {TOLERANCE:g} "
            f"but differ by {difference:.2e}."
        )
    return Materialized(compact, difference)
