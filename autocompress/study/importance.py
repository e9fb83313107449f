"""How much each parameter of a search says of an objective, by PED-ANOVA."""

from __future__ import annotations

import contextlib
import warnings
from dataclasses import dataclass

import optuna
from optuna.study import StudyDirection
from optuna.trial import TrialState

from autocompress.study.record import EXTRA

# Below so many trials the best tenth of them is one or two, whose parameters say nothing.
LEAST_TRIALS = 10


@dataclass(frozen=True)
class Importance:
    """What the parameters of a search say of an objective.

    Args:
        shares: parameter → its share, which add up to 1; the greatest first. Empty where nothing is known.
        silent: parameters of which nothing can be said: the same in all trials, in too few of them, or spread
            in the best trials as in all.
        reason: why nothing is known; empty where something is.
    """

    shares: dict[str, float]
    silent: tuple[str, ...] = ()
    reason: str = ""


def importance(study: optuna.Study, objective: int) -> Importance:
    """PED-ANOVA (Watanabe et al., arXiv 2304.10255, conditional parameters by arXiv 2601.20800): how far
    parameters of the best tenth of the trials, by one objective, are distributed otherwise than those of all.

    Trials beside the budget are left out: they store as codes what others trained, so that what they have in
    common would seem to be what makes files small. So are those with a parameter out of its range.

    Args:
        study: of a run.
        objective: position of the objective.
    """
    complete = study.get_trials(deepcopy=False, states=(TrialState.COMPLETE,))
    proposed = [trial for trial in complete if trial.params and EXTRA not in trial.user_attrs]
    trained = optuna.create_study(directions=study.directions)
    for trial in proposed:
        # A space of the user's own may move to what it does not suggest by itself.
        with contextlib.suppress(ValueError):
            trained.add_trial(trial)
    count = len(trained.trials)
    if count < LEAST_TRIALS:
        return Importance({}, reason=f"{count} complete trials are too few: it takes {LEAST_TRIALS}")
    # The evaluator takes lower values for better ones.
    sign = -1.0 if study.directions[objective] is StudyDirection.MAXIMIZE else 1.0
    with warnings.catch_warnings(action="ignore"):
        raw = optuna.importance.get_param_importances(
            trained,
            evaluator=optuna.importance.PedAnovaImportanceEvaluator(),
            target=lambda trial: sign * trial.values[objective],
            normalize=False,
        )
    total = sum(raw.values())
    silent = tuple(name for name, value in raw.items() if not value > 0)
    if not total > 0:
        return Importance({}, silent, "parameters of the best trials are spread as those of all")
    return Importance({name: value / total for name, value in raw.items() if value > 0}, silent)
