"""Checkpoints that change on the disk while a run goes on, or between two calls."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest

import autocompress as ac
from autocompress.checkpoint import open_checkpoint
from autocompress.checkpoint.store import kept_trials, trial_folder
from autocompress.engine.damaged import set_damaged_aside
from autocompress.engine.folder import RunFolder
from autocompress.engine.results import load_run, open_study


@pytest.fixture
def run(finished: ac.SearchResult, tmp_path: Path) -> RunFolder:
    shutil.copytree(finished.out, tmp_path / "run")
    return RunFolder(tmp_path / "run")


@pytest.mark.parametrize("name", ["weights.safetensors", "model.pt2", "manifest.json"])
def test_a_damaged_checkpoint_is_set_aside_and_leaves_the_front(run: RunFolder, name: str) -> None:
    before = [point.trial for point in load_run(run.path).front if point.trial]
    file = trial_folder(run.trials, before[0]) / name
    content = bytearray(file.read_bytes())
    content[len(content) // 2] ^= 0xFF
    file.write_bytes(content)
    study = open_study(run)[0]
    kept = kept_trials(run.trials)
    assert list(set_damaged_aside(run.trials, kept, study)) == [before[0]]
    assert kept_trials(run.trials) == kept - {before[0]}
    assert (run.trials / f"damaged-{before[0]:04d}").is_dir()
    after = load_run(run.path).front
    assert before[0] not in [point.trial for point in after]
    for point in after:
        open_checkpoint(point.path)
    assert set_damaged_aside(run.trials, kept_trials(run.trials), study) == {}
