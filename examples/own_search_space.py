"""A search space of one's own: only small ratios, everything else fixed."""

import os

import optuna

import autocompress as ac


def small(trial: optuna.Trial, profile: ac.ModelProfile) -> object:
    ratio = trial.suggest_float("small.initial_ratio", 0.05, 0.3)
    return ac.Alcn.Config(initial_ratio=ratio, lambda_sparse=0.1)


# What to try where `keep` of the cost is to stay; optional: without it the sampler alone proposes.
small.move = lambda profile, keep: {"small.initial_ratio": min(max(keep**0.5, 0.05), 0.3)}

result = ac.search(
    "digits",
    spaces=[small],
    constraints=["bytes<=0.3*ref"],
    trials=int(os.environ.get("EXAMPLE_TRIALS", "12")),
    epochs=6,
    out="runs/small",
)
print(result.to_frame()[["number", "state", "params_small.initial_ratio"]])
