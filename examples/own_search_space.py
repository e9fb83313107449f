"""A search space of one's own: only small ratios, everything else fixed."""

import os

import optuna

import autocompress as ac


def small(trial: optuna.Trial, profile: ac.ModelProfile) -> object:
    ratio = trial.suggest_float("small.initial_ratio", 0.05, 0.3)
    return ac.Alcn.Config(initial_ratio=ratio, lambda_sparse=0.1)


small.starts = lambda profile: [{"small.initial_ratio": 0.3}]  # first the mildest; optional

result = ac.search(
    "digits",
    spaces=[small],
    constraints=["bytes<=0.3*ref"],
    trials=int(os.environ.get("EXAMPLE_TRIALS", "12")),
    epochs=6,
    out="runs/small",
)
print(result.to_frame()[["number", "state", "params_small.initial_ratio"]])
