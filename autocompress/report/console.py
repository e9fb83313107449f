"""Sentences about a search: what is certain, what answers its target, what it takes of the disk."""

from __future__ import annotations

from autocompress.checkpoint.store import kept_trials
from autocompress.result import ParetoModel, SearchResult
from autocompress.tables import metric_text


def disk_text(result: SearchResult) -> str:
    """Of how many trials a run has checkpoints, and what its folder takes of the disk."""
    numbers = kept_trials(result.out / "trials")
    ended = sum(1 for trial in result.study.trials if trial.number and trial.state.is_finished())
    return f"{len(numbers)} of {ended} trials; the run takes {metric_text('bytes', result.disk_bytes)}"


def certainty_text(result: SearchResult, point: ParetoModel) -> str:
    """What is known of a point, in a sentence: its 95 % interval, and whether it is likely on the front."""
    name = result.objectives[0].metric
    text = f"{name} {metric_text(name, point.metrics[name])} on {point.validation_rows} validation rows"
    if name in point.errors:
        low, high = point.interval(name)
        text += f" (95 %: {metric_text(name, low)} to {metric_text(name, high)})"
    return f"{text}; on the front with a probability of {point.front_probability:.0%}"


def target_text(result: SearchResult, point: ParetoModel | None) -> str:
    """Which trial answers the search's target, in a line: by validation, and what the test split says.

    Args:
        result: of a search with a target.
        point: that answers it; None where none does.
    """
    assert result.target is not None
    if point is None:
        return f"target {result.target.text}: no compressed model on the front holds it"
    cost, primary = result.first_cost, result.objectives[0].metric
    text = f"target {result.target.text}: trial {point.trial}, {point.ratios[cost]:.3g} of the {cost}"
    for name in dict.fromkeys((primary, *result.target.metrics)):
        if name in point.test_metrics:
            tested = metric_text(name, point.test_metrics[name])
            text += f", {name} {metric_text(name, point.metrics[name])} (test {tested})"
    return text
