"""Warm start: what a search takes over from another run's front.

Of the same model, its front's models are measured again and may be started from; of a similar one, or where
other rows were trained on, the moves that led to them are proposed again.
"""

from __future__ import annotations

import shutil
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from autocompress import plugins
from autocompress.checkpoint import Checkpoint, open_checkpoint
from autocompress.checkpoint.rebuilding import rebuild_from
from autocompress.checkpoint.store import EDITS, LOSS, MANIFEST, WEIGHTS, aside_of, kept_trials, trial_folder
from autocompress.engine.changes import DIGESTS
from autocompress.engine.family import stored_as_codes
from autocompress.engine.folder import RunFolder, opened_run
from autocompress.engine.prepare import Prepared
from autocompress.engine.results import build_result, open_study
from autocompress.errors import AutocompressError, CheckpointError, SettingsError, one_line
from autocompress.lineage import Family, Parent
from autocompress.remote import is_address, shown
from autocompress.result import SearchResult
from autocompress.study import SearchStudy
from autocompress.task.limits import owner_of, settle


@dataclass(frozen=True)
class WarmStart:
    """What is taken over from another run.

    Args:
        name: of that run, as it was given.
        note: what is taken over, what is not, and why, in one line.
        models: trial of that run → its checkpoint, of the same model and without codes.
        moves: trial of that run → what was suggested for it, in that run's order.
        asked: trial of that run → −ln of what its method was told to keep, where it was told.
        same_loss: whether that run's loss is this one's, so that what was trained of it goes on here.
    """

    name: str
    note: str
    models: Mapping[int, Path] = field(default_factory=dict)
    moves: Mapping[int, Mapping[str, Any]] = field(default_factory=dict)
    asked: Mapping[int, float] = field(default_factory=dict)
    same_loss: bool = False

    def copy_to(self, folder: Path) -> None:
        """Copy edits and weights of the models, so that this run needs the other one no more.

        Args:
            folder: of the copies, which appears whole or not at all.
        """
        aside = aside_of(folder)
        aside.mkdir()
        for number, source in self.models.items():
            copy = trial_folder(aside, number)
            copy.mkdir()
            for name in (MANIFEST, EDITS, WEIGHTS):
                shutil.copyfile(source / name, copy / name)
            if self.same_loss and (source / LOSS).is_file():
                shutil.copyfile(source / LOSS, copy / LOSS)
        aside.rename(folder)

    def enqueue(self, study: SearchStudy) -> None:
        """Let a study ask for the models and moves first, unless it does already."""
        study.take_over(self.name, list(self.models), self.moves, self.asked)


def plan_warm_start(
    prepared: Prepared, entries: Mapping[str, Any], note: Callable[[str], None] | None = None
) -> WarmStart:
    """What is to be taken over from the run that `warm_start` names; nothing is written.

    Args:
        prepared: the search.
        entries: its identity.
        note: hears of a download of that run that takes long.

    Raises:
        SettingsError: there is no such run, it is of another version, has nothing on its front, or nothing
            that is of use here.
    """
    given = str(prepared.settings.warm_start)
    name = shown(given) if is_address(given) else given
    with _readable():
        folder = opened_run(given, note)
    if folder.path.resolve() == prepared.out.resolve():
        raise SettingsError(f"warm_start must be another run than out but both are '{name}'.")
    with _readable():
        study, objectives = open_study(folder)
        result = build_result(folder, study, objectives)
        numbers = [point.trial for point in result.front if point.trial]
        checkpoints = {n: _checkpoint(folder, n) for n in sorted(kept_trials(folder.trials))}
        made = folder.read()["identity"]
        reason = _not_the_same_model(prepared, folder) or _other_rows(made, entries)
        reason = reason or _looser(prepared, made, entries)
    if not numbers:
        raise SettingsError(f"warm_start must have a compressed model on its front but '{name}' has none.")
    if reason is None:
        theirs, ours = made[DIGESTS], entries[DIGESTS]
        same_loss = all(theirs.get(name) == ours.get(name) for name in ("loss", "step"))
        return replace(_models(name, result, checkpoints), same_loss=same_loss)
    return _moves(prepared, name, result, reason)


@contextmanager
def _readable() -> Iterator[None]:
    """Say of what is raised inside that the other run cannot be read."""
    try:
        yield
    except AutocompressError as error:
        raise SettingsError(
            f"warm_start must be a run that this version can read but: {one_line(error)}"
        ) from error


def _checkpoint(folder: RunFolder, number: int) -> Checkpoint:
    return open_checkpoint(trial_folder(folder.trials, number), verify=False)


def _not_the_same_model(prepared: Prepared, folder: RunFolder) -> str | None:
    """Why weights of the other run's models are none of this one's, None where they are."""
    try:
        open_checkpoint(folder.reference)
    except CheckpointError:
        return "its reference is missing or damaged"
    try:
        rebuild_from(prepared.fresh_model(), folder.reference, prepared.task.example())
    except CheckpointError:
        return "its model has parameters of other names or shapes"
    return None


def _other_rows(stored: Mapping[str, Any], entries: Mapping[str, Any]) -> str | None:
    """Why the other run may have trained on rows that models are judged by here, None where it has not.

    Its own validation and test rows were trained on by none of its models. So ours were not where validation
    is the same, and with it the training rows, or else the test rows.
    """
    theirs, ours = stored.get(DIGESTS, {}), entries[DIGESTS]
    same = {name: theirs.get(f"data.{name}") == ours.get(f"data.{name}") for name in ("train", "val", "test")}
    if same["val"] and (same["train"] or same["test"]):
        return None
    others = " and ".join(name for name, equal in same.items() if not equal)
    return (
        f"its {others} rows are others, so it may have trained on rows that models are judged by here "
        "(give both runs the same data and splits)"
    )


def _looser(prepared: Prepared, made: Mapping[str, Any], entries: Mapping[str, Any]) -> str | None:
    """Why the other run's models may lack what is to stay here, None where they have it."""
    frozen = entries[DIGESTS]["frozen"]
    if made[DIGESTS].get("frozen", frozen) != frozen:
        return "other parameters were frozen in it"
    ours = prepared.task.limits_of(prepared.model)
    theirs = settle(prepared.model, made.get("exclude", ()), made.get("at_least", {}))
    for name, _ in prepared.model.named_parameters(remove_duplicate=False):
        layer = owner_of(name)
        if ours.why_tensor(name) is not None and theirs.why_tensor(name) is None:
            return f"it did not exclude {layer or name!r}, which is to stay here"
        if ours.share(layer) > theirs.share(layer) and theirs.why_tensor(name) is None:
            return f"it did not keep at least {ours.share(layer):g} of {layer!r}, which is to stay here"
    return None


def _models(name: str, result: SearchResult, checkpoints: Mapping[int, Checkpoint]) -> WarmStart:
    """The models of the front; in place of one that is stored as codes, what it was made of."""
    models: dict[int, Path] = {}
    ancestors, skipped = 0, 0
    for point in result.front:
        line = [n for n in point.lineage if n in checkpoints and checkpoints[n].manifest["profile"]]
        if not point.trial:
            continue
        if not line:
            # Of the reference's codes nothing is missed: this search has a reference.
            skipped += point.config["parent"] != 0
            continue
        ancestors += line[-1] != point.trial
        models[line[-1]] = checkpoints[line[-1]].path
    note = f"warm start from {name}: {len(models)} models, measured again here"
    if ancestors:
        note += f"; {ancestors} points store weights as codes: what these were made of is taken"
    if skipped:
        note += f"; {skipped} points are left, as what their codes were made of is not kept"
    if not models:
        raise SettingsError(
            f"warm_start must have models that can be trained on but what the codes on the front of '{name}' "
            "were made of is not kept."
        )
    return WarmStart(name, note, dict(sorted(models.items())))


def _moves(prepared: Prepared, name: str, result: SearchResult, reason: str) -> WarmStart:
    """What was suggested for the trials that led to the front, where it can be suggested here."""
    trials = {trial.number: trial for trial in result.study.trials}
    reference = Parent(0, 1.0, 0.0, prepared.profile)
    family = Family((reference,), {0: reference}, distill=prepared.distill)
    usable: list[int] = []
    line = sorted({number for point in result.front for number in point.lineage})
    trained = [n for n in line if trials[n].params and not stored_as_codes(_methods(trials[n]))]
    for number in trained:
        if plugins.pipeline().can_suggest(trials[number].params, family, prepared.spaces):
            usable.append(number)
    # The budget's other half is for what this search finds out itself.
    chosen = usable[: max(1, prepared.settings.trials // 2)]
    if not chosen:
        raise SettingsError(
            f"warm_start must be of the same model and rows, or have moves that can be made here, but of "
            f"'{name}' {reason}, and none of its {len(trained)} moves can be."
        )
    note = (
        f"warm start from {name}: no models, as {reason}; first come {len(chosen)} of the {len(trained)} "
        "moves that led to its front"
    )
    asked = {n: trials[n].user_attrs["asked"] for n in chosen if "asked" in trials[n].user_attrs}
    return WarmStart(name, note, {}, {n: trials[n].params for n in chosen}, asked)


def _methods(trial: Any) -> Sequence[str]:
    return [stage["method"] for stage in trial.user_attrs["details"]["config"]["stages"]]
