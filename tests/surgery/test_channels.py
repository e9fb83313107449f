"""`KeepChannels` carried out, proven, and refused where it does not fit."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn

from autocompress.errors import ProofError, TrialError
from autocompress.surgery import carry_out, materialize
from autocompress.surgery.edits import KeepChannels


def test_removed_channels_leave_outputs_unchanged(residual: nn.Module, images: Tensor) -> None:
    plan = (KeepChannels("stem", (0, 3)), KeepChannels("side", (1,)))
    done = materialize(residual, plan, images)
    assert done.proof < 1e-5
    assert done.model.head.in_features == 3 * 16
    dropped = [c for c in range(8) if c not in (0, 3)]
    with torch.no_grad():
        # Channels that are zero where they are made and read change nothing when they go.
        for tensor in (residual.branch.weight, residual.side.weight):
            tensor[:, dropped] = 0
        columns = residual.head.weight.view(5, 14, 16)
        columns[:, dropped] = 0
        columns[:, [8, 10, 11, 12, 13]] = 0
        assert torch.allclose(done.model(images), residual(images), atol=1e-5)


def test_an_empty_plan_changes_nothing(residual: nn.Module, images: Tensor) -> None:
    assert materialize(residual, (), images).model is residual


def test_unknown_groups_and_units_are_refused(residual: nn.Module, images: Tensor) -> None:
    with pytest.raises(TrialError, match="must be one of the model's groups but got 'nowhere'"):
        materialize(residual, (KeepChannels("nowhere", (0,)),), images)
    with pytest.raises(TrialError, match="must be below the 6 units of group 'side' but got 6"):
        materialize(residual, (KeepChannels("side", (0, 6)),), images)


def test_a_failed_proof_is_no_success(
    residual: nn.Module, images: Tensor, monkeypatch: pytest.MonkeyPatch
) -> None:
    def wrong(model: nn.Module, edits: object, example: Tensor) -> tuple[nn.Module, float]:
        return model, 0.5

    monkeypatch.setattr(carry_out, "_STEPS", ((KeepChannels, wrong),))
    with pytest.raises(ProofError, match=r"must equal the masked model's to 0\.0001 but differ by 5"):
        materialize(residual, (KeepChannels("side", (0,)),), images)
