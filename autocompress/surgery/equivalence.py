"""The check that two models compute the same on probe inputs; a check, not a proof."""

from __future__ import annotations

from torch import nn

from autocompress.errors import ProofError
from autocompress.graph.exporting import comparable
from autocompress.graph.proof import TOLERANCE, relative_difference
from autocompress.task import Inputs, call


def check_equal(compact: nn.Module, expected: nn.Module, probe: Inputs, what: str) -> float:
    """Compare two models in evaluation on probe inputs; both are left in the mode that they were in.

    Args:
        compact: the model that is to be right.
        expected: what it must equal.
        probe: inputs, `(B, ...)`, on the models' device.
        what: the difference between them, for the message.

    Returns:
        Greatest absolute difference of the outputs over their greatest magnitude.

    Raises:
        ProofError: it is more than 1e-4.
    """
    modes = compact.training, expected.training
    with comparable():
        difference = relative_difference(call(expected.eval(), probe), call(compact.eval(), probe))
    compact.train(modes[0])
    expected.train(modes[1])
    if difference > TOLERANCE:
        raise ProofError(
            f"{what} must leave outputs as they are to {TOLERANCE:g} but changes {difference:.2e}."
        )
    return difference
