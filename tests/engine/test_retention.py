"""Which checkpoints stay in a run folder."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest

import autocompress as ac
from autocompress.checkpoint import store
from autocompress.checkpoint.store import kept_trials, remove_checkpoint, remove_leftovers, trial_folder
from autocompress.engine import retention
from autocompress.engine.family import FamilyTree
from autocompress.engine.retention import keep_front_alone, remove_displaced
from autocompress.engine.settings import Settings
from autocompress.report import disk_text
from autocompress.task import ModelProfile
from autocompress.trial import Stage, TrialConfig
from tests.report.runs import BASE, OBJECTIVES, WrittenRun

PROFILE = ModelProfile(1, 1, ())
ALCN, LC = Stage("alcn", {}), Stage("lc", {})


class Run(WrittenRun):
    """Trials 1 → 2 → 3, whose weights are codes, are on the front; 6 runs, and started from 2."""

    @property
    def tree(self) -> FamilyTree:
        """As a new call has it."""
        return FamilyTree(self.study, self.folder.trials, OBJECTIVES, (), BASE, PROFILE)

    def begin(self, config: TrialConfig) -> int:
        # Of those before it, for whoever reads checkpoints.
        for number in kept_trials(self.folder.trials):
            file = trial_folder(self.folder.trials, number) / store.MANIFEST
            file.write_text(json.dumps(json.loads(file.read_text()) | {"profile": PROFILE.to_json()}))
        return super().begin(config)

    def retain(self) -> set[int]:
        remove_displaced(self.folder.trials, self.study, self.tree, BASE)
        return kept_trials(self.folder.trials)


@pytest.fixture
def run(tmp_path: Path) -> Run:
    return Run(tmp_path / "run")


def test_what_is_needed_stays_and_what_others_took_the_place_of_goes(run: Run) -> None:
    assert run.retain() == {1, 2, 3}
    better = run.complete(TrialConfig((ALCN,), 0, 3), 0.975, 0.2, [])
    assert better == 7
    run.begin(TrialConfig((ALCN,), better, 3))
    assert run.retain() == {2, 3, better}  # 6 runs from 2, and 3 is made of it
    run.study.fail(6, "diverged")
    assert run.retain() == {2, 3, better}
    codes = run.complete(TrialConfig((LC,), better, 0), 0.96, 0.05, [])
    run.study.fail(8, "interrupted", interrupted=True)
    assert run.retain() == {better, codes}
    assert [point.trial for point in run.result.front] == [better, codes]
    assert disk_text(run.result).startswith("2 of 9 trials; the run takes ")


def test_what_a_trial_stored_stays_until_the_trial_is_recorded(run: Run) -> None:
    stored = trial_folder(run.folder.trials, 6)
    shutil.copytree(trial_folder(run.folder.trials, 2), stored)
    assert run.retain() == {1, 2, 3, 6}  # while other trials are recorded
    run.study.fail(6, "diverged")
    assert run.retain() == {1, 2, 3}


def test_what_waits_to_run_again_keeps_what_it_starts_from(run: Run) -> None:
    run.complete(TrialConfig((LC,), 0, 0), 0.975, 0.05, [])
    run.study.fail(6, "the worker process died", again=True)
    assert run.retain() == {1, 2, 7}  # 1, 2: nothing that can be trained on took their place


def test_models_that_are_gone_are_remembered(run: Run) -> None:
    before = {a.number: a for a in run.tree.family((), (), 1).attempts}
    run.study.fail(6, "diverged")
    run.complete(TrialConfig((ALCN,), 2, 3), 0.945, 0.2, [])
    run.begin(TrialConfig((ALCN,), 0, 3))
    assert run.retain() == {1, 2, 3, 7}
    remove_checkpoint(trial_folder(run.folder.trials, 2))
    remove_checkpoint(trial_folder(run.folder.trials, 1))
    run.study.set_worth({1: True, 2: True})
    family = run.tree.family((), (), 1)
    after = {a.number: a for a in family.attempts}
    assert {n: after[n] for n in before} == before
    assert after[2].saved > 0
    assert after[2].lost > 0
    # What it came from is the nearest that is there.
    assert family.kept.keys() == {0, 7}
    assert family.kept[7].parent == 0


def test_of_what_is_within_noise_of_the_front_the_likeliest_stay(
    run: Run, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(retention, "_MOST_NEAR", 2)
    near = {run.complete(TrialConfig((LC,), 0, 0), 0.9, 0.9, []): p for p in (0.2, 0.4, 0.1, 0.3)}
    front = dict.fromkeys([trial.number for trial in run.study.front(BASE)], 1.0)
    monkeypatch.setattr(run.study, "front_probabilities", lambda *args: near | front)
    likeliest = {number for number, probability in near.items() if probability >= 0.3}
    assert run.retain() & {*near} == likeliest


def test_the_front_alone_may_be_kept(run: Run) -> None:
    run.complete(TrialConfig((ALCN,), 0, 3), 0.93, 0.4, [])
    keep_front_alone(run.folder.trials, run.study, BASE)
    assert kept_trials(run.folder.trials) == {1, 2, 3}
    assert run.study.worth() == {7: True}


def test_nothing_is_left_of_a_checkpoint_whose_removal_is_cut_off(
    run: Run, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(store.shutil, "rmtree", lambda *arguments, **options: None)
    folder = trial_folder(run.folder.trials, 1)
    remove_checkpoint(folder)
    assert not folder.exists()
    assert kept_trials(run.folder.trials) == {2, 3}
    monkeypatch.undo()
    remove_leftovers(run.folder.trials)
    assert {path.name for path in run.folder.trials.iterdir()} == {"0002", "0003"}
    remove_checkpoint(folder)  # it is gone


def test_a_word_that_says_nothing_of_checkpoints_is_refused() -> None:
    with pytest.raises(ac.UsageError, match=r"^keep must be one of front, near, all but got 'some'"):
        Settings(keep="some")


def test_a_run_that_ended_may_be_left_with_its_front_alone(finished: ac.SearchResult, tmp_path: Path) -> None:
    shutil.copytree(finished.out, tmp_path / "run")
    again = ac.search("digits", trials=4, epochs=4, workers=1, keep="front", out=tmp_path / "run")
    assert [point.trial for point in again.front] == [point.trial for point in finished.front]
    kept = kept_trials(again.out / "trials")
    assert kept == {point.trial for point in again.front} - {0}
    assert again.contenders == []
    assert again.disk_bytes < finished.disk_bytes or kept == kept_trials(finished.out / "trials")
