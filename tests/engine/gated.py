"""A search that waits where a test wants it to: training stops at a gate until the test opens it.

Folder `$GATE` holds what the processes tell each other: `closed` is made when trial `$GATE_TRIAL` is
proposed, `waiting-PID` by each worker that came to the gate, and `open` by the test. For trial 0, which is
the reference, the gate is closed to all processes but the driver from the start.
"""

from __future__ import annotations

import os
import time
from dataclasses import replace
from pathlib import Path
from typing import Any

import optuna
from torch import Tensor, nn

import autocompress as ac
from autocompress.data import load_task
from autocompress.methods.alcn import Config


class GatedLoss(nn.CrossEntropyLoss):
    """Cross entropy whose training steps wait while the gate is closed."""

    def __init__(self, gate: Path) -> None:
        super().__init__()
        self.gate = gate

    def closed(self) -> bool:
        if (self.gate / "open").exists():
            return False
        # A driver trains for a try, before it does anything.
        if os.environ["GATE_DRIVER"] == str(os.getpid()):
            return False
        return os.environ["GATE_TRIAL"] == "0" or (self.gate / "closed").exists()

    def forward(self, outputs: Tensor, targets: Tensor) -> Tensor:
        while outputs.requires_grad and self.closed():
            (self.gate / f"waiting-{os.getpid()}").touch()
            time.sleep(0.05)
        return super().forward(outputs, targets)


def make() -> ac.Task:
    """digits, two epochs a model."""
    gate = Path(os.environ["GATE"])
    # Workers inherit it.
    os.environ["GATE_DRIVER"] = str(os.getpid())
    return replace(load_task("digits"), loss=GatedLoss(gate), recipe=ac.Recipe(epochs=2), name="gated")


def suggest(trial: optuna.Trial, profile: Any) -> Config:
    """Channel selection, with one parameter to vary."""
    if trial.number == int(os.environ["GATE_TRIAL"]):
        (Path(os.environ["GATE"]) / "closed").touch()
    return Config(initial_ratio=trial.suggest_float("initial_ratio", 0.2, 0.5))
