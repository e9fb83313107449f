"""A search space of one's own: only small ratios, everything else fixed."""

import os
from pathlib import Path

import autocompress as ac

SPACE = """
from autocompress.methods.alcn import Config


def suggest(trial, profile):
    ratio = trial.suggest_float("small.initial_ratio", 0.05, 0.3)
    return Config(initial_ratio=ratio, lambda_sparse=0.1)
"""

Path("small_models.py").write_text(SPACE)
result = ac.search(
    "digits",
    spaces=["small_models.py"],
    constraints=["bytes<=0.3*ref"],
    trials=int(os.environ.get("EXAMPLE_TRIALS", "12")),
    epochs=6,
    out="runs/small",
)
print(result.to_frame()[["number", "state", "params_small.initial_ratio"]])
