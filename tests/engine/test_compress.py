"""`compress` does with a model what a trial does with its parent."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest
import torch
from torch import Tensor, nn

import autocompress as ac
from autocompress.errors import CheckpointError, SettingsError, TaskError
from autocompress.trial import (
    Measuring,
    Reference,
    Stage,
    TrialConfig,
    load_state,
    run_trial,
    train_reference,
)
from tests.conftest import Residual


class Teacher(nn.Module):
    """Counts how often it is asked in training steps of 32 rows."""

    def __init__(self) -> None:
        super().__init__()
        self.net = Residual()
        self.asked: list[int] = []

    def forward(self, x: Tensor) -> Tensor:
        self.asked += [len(x)] * (len(x) == 32)
        return self.net(x)


def test_it_learns_from_the_tasks_own_teacher_unless_told_not_to(residual_task: ac.Task) -> None:
    made: list[Teacher] = []

    def make() -> Teacher:
        made.append(Teacher())
        return made[-1]

    task = replace(residual_task, teacher=make)
    ac.compress(Residual(), task, ac.Alcn(initial_ratio=0.5))
    # The first is only checked; three steps an epoch are taught.
    assert [teacher.asked for teacher in made] == [[], [32] * 6]
    made.clear()
    ac.compress(Residual(), task, ac.Alcn(initial_ratio=0.5), distill=False)
    assert [teacher.asked for teacher in made] == [[]]


def test_a_teacher_of_other_outputs_is_refused(residual_task: ac.Task) -> None:
    other = nn.Sequential(nn.Flatten(), nn.Linear(192, 3))
    with pytest.raises(TaskError, match=r"teacher must return what the model does, \(2, 5\), but returned"):
        ac.compress(Residual(), replace(residual_task, teacher=other), ac.Alcn(initial_ratio=0.5))


class Auxiliary(Residual):
    """Has a head that is dropped before it is deployed."""

    def __init__(self) -> None:
        super().__init__()
        self.auxiliary = nn.Linear(3, 5)


def without_auxiliary(model: nn.Module) -> nn.Module:
    """Drop the head."""
    del model.auxiliary
    return model


def test_the_tasks_own_preparation_comes_first_and_is_asked_for_again(
    residual_task: ac.Task, images: Tensor, tmp_path: Path
) -> None:
    task = replace(residual_task, model=Auxiliary, prepare=without_auxiliary)
    done = ac.compress(Auxiliary(), task, ac.Alcn(initial_ratio=0.5))
    assert not hasattr(done.model, "auxiliary")
    done.save(tmp_path / "saved")
    rebuilt = ac.rebuild(Auxiliary(), tmp_path / "saved", prepare=without_auxiliary).eval()
    with torch.no_grad():
        assert torch.allclose(rebuilt(images), done.model(images), atol=1e-6)
    with pytest.raises(CheckpointError, match="must be without_auxiliary, which its task had, but got None"):
        ac.rebuild(Auxiliary(), tmp_path / "saved")


def test_it_is_not_saved_in_place_of_other_files(residual_task: ac.Task, tmp_path: Path) -> None:
    done = ac.compress(Residual(), residual_task.with_recipe(epochs=1), ac.Alcn(initial_ratio=0.5))
    (tmp_path / "photos").mkdir()
    (tmp_path / "folder.pt2").mkdir()
    (tmp_path / "photos" / "cat.jpg").write_text("a cat")
    for place in (tmp_path / "photos", tmp_path / "photos" / "cat.jpg"):
        with pytest.raises(SettingsError, match="path must be that of a new folder, an empty one or a check"):
            done.save(place)
    with pytest.raises(SettingsError, match=r"path must be where files can be written but '.*' is not: "):
        done.save(tmp_path / "photos" / "cat.jpg" / "saved")
    with pytest.raises(SettingsError, match="path must be that of a file but"):
        done.export(tmp_path / "folder.pt2")
    with pytest.raises(SettingsError, match=r"path must be where files can be written but '.*' is not: "):
        done.export(tmp_path / "photos" / "cat.jpg" / "model.pt2")
    assert (tmp_path / "photos" / "cat.jpg").read_text() == "a cat"
    done.save(tmp_path / "saved")
    assert done.save(tmp_path / "saved").path == tmp_path / "saved"


def test_it_ends_with_what_a_trial_ends_with(residual_task: ac.Task, tmp_path: Path) -> None:
    checkpoint = train_reference(residual_task, tmp_path / "reference", Measuring())
    reference = Reference.of(checkpoint, residual_task.model())
    start = residual_task.model()
    load_state(start, reference.state)
    recipe = replace(residual_task.recipe, epochs=1)
    task = replace(residual_task, recipe=recipe)
    stages = (Stage("alcn", {"initial_ratio": 0.4}), Stage("alds", {"keep": 0.6}))
    config = TrialConfig(stages, epochs=1, seed=3)
    trial = run_trial(task, reference, config, tmp_path / "0001")
    methods = [ac.Alcn(initial_ratio=0.4), ac.Alds(keep=0.6)]
    done = ac.compress(start, task, methods, seed=3)
    assert len(done.history) == len(trial.history) == 1
    assert sum(p.numel() for p in done.model.parameters()) == trial.metrics["params"]


def test_what_is_stored_as_codes_is_compressed_again_once_it_is_decoded(
    residual_task: ac.Task, images: Tensor, tmp_path: Path
) -> None:
    codes = ac.Lc(schemes={"*": ac.Codebook(k=4)}, steps=2)
    done = ac.compress(Residual(), residual_task, codes)
    done.save(tmp_path / "saved")
    with pytest.raises(SettingsError, match=r"plain weights .* but \d are decoded from codes .*decoded=True"):
        ac.compress(done.model, residual_task, ac.Alcn(initial_ratio=0.5))
    plain = ac.rebuild(Residual(), tmp_path / "saved", decoded=True)
    assert type(plain) is Residual
    assert torch.allclose(plain.eval()(images), done.model.eval()(images), atol=1e-6)
    again = ac.compress(plain, residual_task, ac.Alcn(initial_ratio=0.5)).model
    assert sum(p.numel() for p in again.parameters()) < sum(p.numel() for p in plain.parameters())
