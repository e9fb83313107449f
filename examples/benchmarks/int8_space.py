"""What may vary where an int8 resnet is to be fast: which early blocks go, and how wide the rest is.

    autocompress search cifar10 --model resnet20 --weights resnet20-12fca82f.th \\
        --space examples/benchmarks/int8_space.py --objectives accuracy,latency,bytes \\
        --artifact onnx-int8 --epochs 8 --trials 6 --seed 1

Early blocks hold few parameters, but most of the time that an int8 program takes; ONNX Runtime
computes 16 channels at once, so widths are multiples of that.
"""

from __future__ import annotations

from typing import Any

import optuna

from autocompress.compressors import alcn, depth
from autocompress.task import ModelProfile


def suggest(trial: optuna.Trial, profile: ModelProfile) -> tuple[Any, ...]:
    """One bridge over two early blocks, then channels; a tuple is a sequence of methods."""
    start = trial.suggest_int("fast.start", 0, 1)
    return (
        depth.Config(cuts=((start, start + 2),), translator="linear"),
        alcn.Config(
            initial_ratio=trial.suggest_float("fast.initial_ratio", 0.4, 0.55),
            ratio_slope=trial.suggest_float("fast.ratio_slope", -0.4, -0.2),
            lambda_sparse=trial.suggest_float("fast.lambda_sparse", 1e-3, 1e-2, log=True),
            round_to=16,
        ),
    )
