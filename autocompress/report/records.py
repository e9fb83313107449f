"""Trials as people read of them: what each did, from which parent, and what came of it."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from datetime import datetime
from typing import Any

from autocompress.result import SearchResult, ratios
from autocompress.study import CONFIG, SearchStudy
from autocompress.tables import metric_text
from autocompress.trial import TrialConfig, move_text

# What a trial is called whose model was only trained on, in the place of its methods.
TRAINED_ON = "training on"
# By the names of Optuna's states.
_STATES = {
    "COMPLETE": "complete",
    "PRUNED": "stopped early",
    "FAIL": "failed",
    "RUNNING": "running",
    "WAITING": "waiting",
}


@dataclass(frozen=True)
class TrialRecord:
    """A trial.

    Args:
        number: 0 is the reference.
        state: "complete", "stopped early", "failed", "running" or "waiting".
        config: of the trial; empty where it was never proposed.
        metrics: of its model, by what was measured last; empty where there is none.
        ratios: to the reference's.
        feasible: whether it satisfies the constraints; None where it has no metrics.
        standing: "reference", "on the front", "within noise of the front" or "".
        reason: why it has no result, or left the front.
        epochs: that it was trained for.
        ended: when.
        folder: of its checkpoint, in the run's; empty where it has none.
    """

    number: int
    state: str
    config: Mapping[str, Any] = field(default_factory=dict)
    metrics: Mapping[str, float] = field(default_factory=dict)
    ratios: Mapping[str, float] = field(default_factory=dict)
    feasible: bool | None = None
    standing: str = ""
    reason: str = ""
    epochs: int = 0
    ended: datetime | None = None
    folder: str = ""

    @property
    def parent(self) -> int:
        """Number of the trial that it started from."""
        return int(self.config.get("parent", 0))

    @property
    def methods(self) -> tuple[str, ...]:
        """Names of its methods, in order."""
        return tuple(stage["method"] for stage in self.config.get("stages", ()))

    @property
    def move(self) -> str:
        """What it does to its parent, with the settings that are no defaults: two of one method can be told
        apart."""
        if self.number == 0 or not self.config:
            return self.label
        return move_text(TrialConfig.from_json(self.config))

    @property
    def label(self) -> str:
        """Its methods in a word or a few."""
        if self.number == 0:
            return "reference"
        if self.config.get("taken_over"):
            return "taken over"
        return " + ".join(self.methods) or (TRAINED_ON if self.config else "not proposed")


def trial_records(study: SearchStudy, result: SearchResult) -> dict[int, TrialRecord]:
    """All trials of a study, by number.

    Args:
        study: of the run.
        result: the run's, as it stands.
    """
    standing = {p.trial: "within noise of the front" for p in result.contenders}
    standing |= {p.trial: "on the front" for p in result.front} | {0: "reference"}
    base, final, dropped = result.reference.metrics, study.final_metrics(), study.dropped()
    records = {}
    for trial in study.study.get_trials(deepcopy=False):
        number, attributes = trial.number, trial.user_attrs
        config = attributes.get("details", {}).get("config") or attributes.get(CONFIG, {})
        metrics = dict(attributes.get("metrics", {})) | final.get(number, {})
        folder = result.out / ("reference" if number == 0 else f"trials/{number:04d}")
        records[number] = TrialRecord(
            number=number,
            state=_STATES[trial.state.name],
            config=config,
            metrics=metrics,
            ratios=ratios(metrics, base),
            feasible=attributes.get("feasible"),
            standing=standing.get(number, ""),
            reason=dropped.get(number, attributes.get("reason", "")),
            epochs=0 if number == 0 else _epochs(trial.state.name, config, study.last_rung(trial)),
            ended=trial.datetime_complete,
            folder=folder.relative_to(result.out).as_posix() if folder.is_dir() else "",
        )
    return records


def _epochs(state: str, config: Mapping[str, Any], last_rung: int) -> int:
    """Of a trial that was cut off those are known that a rung tells of."""
    return int(config.get("epochs", 0)) if state == "COMPLETE" else last_rung


def sentence(record: TrialRecord) -> str:
    """What a trial is, in one sentence."""
    config = record.config
    if record.number == 0:
        return "The reference: the model as it was before any compression."
    if not config:
        return (
            "A trial that was not proposed yet."
            if record.state == "waiting"
            else "A trial without a proposal."
        )
    if config.get("taken_over"):
        return f"Trial {config['taken_over']} of the run that this one was warm-started from, measured again."
    start = "the reference" if record.parent == 0 else f"trial {record.parent}"
    if not record.methods:
        text = f"Trains {start} on"
    else:
        text = f"Compresses {start} with {', then '.join(record.methods)}"
    if not config.get("epochs"):
        return f"{text}, without training."
    text += f", over {config['epochs']} epochs at {config.get('lr_scale', 1.0):.3g} times the recipe's rate"
    if config.get("distill_weight"):
        teacher = config.get("teacher")
        text += f", taught by {f'trial {teacher}' if teacher else 'the reference or a teacher of the task'}"
    return f"{text}."


def metric_lines(record: TrialRecord) -> dict[str, str]:
    """Each metric as people read it, with its ratio to the reference where that is another model."""
    return {
        name: metric_text(name, value)
        + (f" ({record.ratios[name]:.3g}×)" if name in record.ratios and record.number else "")
        for name, value in record.metrics.items()
        if not name.endswith("_spread")
    }
