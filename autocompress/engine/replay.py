"""`replay`: train a trial of a run, and those that it came from, again from their stored configurations."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import torch

from autocompress.checkpoint import open_checkpoint
from autocompress.checkpoint.store import trial_folder
from autocompress.engine.folder import opened_run
from autocompress.engine.identity import identity
from autocompress.engine.prepare import prepare
from autocompress.engine.results import open_study
from autocompress.engine.settings import Settings
from autocompress.errors import SettingsError
from autocompress.study import CONFIG
from autocompress.task import Task
from autocompress.task.checks import fresh_model
from autocompress.trial import Reference, TrialConfig, TrialResult, run_trial


def replay(
    path: str | Path,
    number: int,
    task: Task | None = None,
    report: Callable[[int, Mapping[str, float]], None] = lambda number, entry: None,
    latency_by: Callable[..., float] | None = None,
    note: Callable[[str], None] = lambda text: None,
) -> tuple[Mapping[str, float], TrialResult, Path]:
    """Run a trial that ended again, after those that it started from or learned from, into `RUN/replays/`.

    Args:
        path: the run folder, or its address in a store.
        number: of the trial.
        task: where the run was made with a `Task` object instead of a name.
        report: receives the number of the trial that trains and its epoch's entry, of one trial after the
            other.
        latency_by: where the run measured latency by a function that it was not given the place of.
        note: receives why a trial that failed did, and where, and which trials run again before this one.

    Returns:
        The stored metrics, none of a trial that failed, the new result and the new checkpoint's folder.

    Raises:
        SettingsError: the folder is no run or has no such trial, or the task's data, weights,
            loss, metrics, model or recipe are not those that it was made with.
    """
    folder = opened_run(path, note)
    study, _ = open_study(folder)
    stored = {t.number: t.user_attrs for t in study.ended() if t.number > 0}
    configs = {
        n: TrialConfig.from_json(config) for n, t in stored.items() if (config := _config(t)) is not None
    }
    if number in stored and "metrics" not in stored[number]:
        note(f"{stored[number].get('traceback', '')}\ntrial {number}: {stored[number].get('reason')}".strip())
    if number not in configs:
        why = ", whose search space failed before there was anything to run" if number in stored else ""
        raise SettingsError(f"trial must be one of those that ran, {sorted(configs)}, but got {number}{why}.")
    replays = folder.path / "replays"
    replays.mkdir(exist_ok=True)  # before anything takes time
    settings = Settings.from_json(folder.read()["settings"])
    if latency_by is not None:
        settings = replace(settings, latency_by=latency_by)
    prepared = prepare(task or settings.task, settings, proposing=False)
    folder.refuse_other_settings(identity(prepared), replayed=True)
    reference = Reference.of(open_checkpoint(folder.reference), fresh_model(prepared.task), settings.artifact)
    torch.set_num_threads(max(1, int(settings.cpus_per_trial)))
    line = line_of(configs, number)
    if len(line) > 1:
        before = ", ".join(map(str, line[:-1]))
        trained = "" if configs[number].epochs else " and trains nothing itself"
        note(f"trial {number} is made of others{trained}; these run first: {before}")
    for wanted in line:
        with prepared.task.opened() as opened:
            result = run_trial(
                opened,
                reference,
                configs[wanted],
                trial_folder(replays, wanted),
                prepared.measuring,
                partial(report, wanted),
                trials=replays,
            )
        folder.upload(trial_folder(replays, wanted))
    return stored[number].get("metrics", {}), result, trial_folder(replays, number)


def _config(attributes: Mapping[str, Any]) -> Any:
    """What a trial was proposed as; None where it was not, and of those that failed in older versions."""
    return attributes.get("details", {}).get("config") or attributes.get(CONFIG)


def line_of(configs: Mapping[int, TrialConfig], number: int) -> list[int]:
    """Numbers of the trials whose models a trial needs, in the order in which they can be trained, itself
    last.

    Args:
        configs: of all trials by number.
        number: of the trial.
    """
    line: dict[int, None] = {}

    def add(wanted: int) -> None:
        if wanted == 0 or wanted in line:
            return
        config = configs[wanted]
        add(config.parent)
        if config.distill_weight:
            add(config.teacher)
        line[wanted] = None

    add(number)
    return list(line)
