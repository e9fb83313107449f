"""`materialize`: a plan becomes a physically smaller model, with a proof that nothing else changed."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from torch import Tensor, nn

from autocompress.errors import ProofError
from autocompress.graph import TOLERANCE
from autocompress.surgery.blocks import drop_blocks
from autocompress.surgery.branches import drop_branches
from autocompress.surgery.channels import keep_channels
from autocompress.surgery.edits import DropBlock, DropBranch, Factorize, KeepChannels, Plan, StoreEncoded
from autocompress.surgery.factors import factorize_layers
from autocompress.surgery.storage import store_encoded
from autocompress.weights.decoders import drop_carried

# In the order of pipelines: blocks, channels, ranks, storage. Branches after channels, whose groups are
# those of the model with all of its branches.
_STEPS: tuple[tuple[type[Any], Callable[[nn.Module, Any, Tensor], tuple[nn.Module, float]]], ...] = (
    (DropBlock, drop_blocks),
    (KeepChannels, keep_channels),
    (DropBranch, drop_branches),
    (Factorize, factorize_layers),
    (StoreEncoded, store_encoded),
)


@dataclass(frozen=True)
class Materialized:
    """A compact model and the greatest relative difference of its outputs to the masked model's."""

    model: nn.Module
    proof: float


def materialize(model: nn.Module, plan: Plan, probe: Tensor) -> Materialized:
    """Carry out a plan on a copy of `model` and compare both on a probe batch.

    Args:
        model: what the compressor released; changed in nothing but the encodings that it may carry.
        plan: what to change.
        probe: inputs, `(B, ...)`.

    Raises:
        ProofError: the compact model's outputs differ from the masked model's by more than 1e-4.
        TrialError: an edit does not fit the model.
    """
    if not plan:
        drop_carried(model)
        return Materialized(model, 0.0)
    compact, difference = model, 0.0
    for kind, carry_out in _STEPS:
        edits = [edit for edit in plan if isinstance(edit, kind)]
        if edits:
            compact, further = carry_out(compact, edits, probe)
            difference = max(difference, further)
    drop_carried(compact)
    if difference > TOLERANCE:
        raise ProofError(
            f"the compact model's outputs must equal the masked model's to {TOLERANCE:g} "
            f"but differ by {difference:.2e}."
        )
    return Materialized(compact, difference)
