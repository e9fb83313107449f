"""What may vary where an int8 resnet20 is to be three times as fast: which blocks go.

    autocompress search cifar10 --model resnet20 --weights resnet20-12fca82f.th \\
        --space examples/benchmarks/int8_space.py --objectives accuracy,latency,bytes \\
        --artifact onnx-int8 --epochs 14 --trials 2

Early blocks hold few parameters, but most of the time that an int8 program takes. Narrower layers gain
little: ONNX Runtime computes 16 channels at once.
"""

from __future__ import annotations

import optuna

import autocompress as ac


def suggest(trial: optuna.Trial, profile: ac.ModelProfile) -> object:
    """Two blocks of the first stage and one later one."""
    early = trial.suggest_int("fast.early", 0, 1)
    late = trial.suggest_categorical("fast.late", [4, 5, 7])
    return ac.Depth.Config(cuts=((early, early + 2), (late, late + 1)), translator="linear")
