"""Whether a search space suggests what its moves name."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import optuna


def unasked(suggest: Callable[[Any], Any], params: Mapping[str, Any], seed: int = 0) -> list[str]:
    """Names of those of a trial's parameters that it is not asked for, which Optuna leaves aside.

    Args:
        suggest: of a search space, for one model.
        params: what its move tells it to suggest.
        seed: of the parameters that are left open.

    Raises:
        Exception: what `suggest` raises.
    """
    study = optuna.create_study(sampler=optuna.samplers.RandomSampler(seed=seed))
    study.enqueue_trial(dict(params))
    trial = study.ask()
    suggest(trial)
    return [name for name in params if name not in trial.params]
