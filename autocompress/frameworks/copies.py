"""Models that are there already, as a task makes them."""

from __future__ import annotations

import copy

from torch import nn


class Copies:
    """Makes copies of a model, with its weights; a class, because closures have no name.

    Args:
        model: not changed.
    """

    def __init__(self, model: nn.Module) -> None:
        self.model = model

    def __call__(self) -> nn.Module:
        """A copy."""
        return copy.deepcopy(self.model)
