"""Tasks by name: built-in, npz, image folders, the user's own; and what is refused."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from safetensors.torch import save_file

from autocompress.data import load_task, with_validation
from autocompress.errors import SettingsError, TaskError
from autocompress.task.checks import check_forward, check_labels


def test_digits_needs_no_download_and_leaves_the_test_split_alone() -> None:
    task = load_task("digits")
    assert len(task.train.x) + len(task.test.x) == 1797
    assert task.input_spec().to_json()["shape"] == [None, 1, 8, 8]
    check_forward(task, task.model())
    check_labels(task, task.model())


def test_random_inputs_have_the_shape_as_given_and_labels_that_suit_any_model() -> None:
    task = load_task("random:1x128", model="torch.nn:Flatten")
    assert task.input_spec().shape == (1, 128)
    assert load_task("random:6x4x9").input_spec().shape == (6, 4, 9)
    check_labels(task, task.model())


def write_npz(path: Path, labels: tuple[int, int] = (0, 3)) -> Path:
    rng = np.random.default_rng(0)
    x = rng.integers(0, 255, (40, 8, 8, 3), dtype=np.uint8)
    y = rng.integers(0, 3, 40)
    test = rng.integers(*labels, 40)
    np.savez(path, x_train=x, y_train=np.r_[y[:-1], 2], x_test=x, y_test=test)
    return path


def test_npz_images_become_channels_first_with_their_own_statistics(tmp_path: Path) -> None:
    task = load_task(f"npz:{write_npz(tmp_path / 'mine.npz')}")
    assert task.name == "mine"
    assert task.input_spec().shape == (3, 8, 8)
    with torch.no_grad():
        assert task.model().eval()(task.example()).shape == (2, 3)


def test_data_root_holds_npz_files_of_built_in_names(tmp_path: Path) -> None:
    write_npz(tmp_path / "cifar10.npz")
    task = load_task("cifar10", model="small_cnn", root=tmp_path)
    assert task.input_spec().mean == (0.485, 0.456, 0.406)
    assert len(task.train.x) == 40


def write_folder(root: Path, counts: dict[str, int]) -> str:
    """Images of random pixels, as many as each sub-folder is to hold."""
    rng = np.random.default_rng(0)
    for name, count in counts.items():
        (root / name).mkdir(parents=True)
        for number in range(count):
            pixels = rng.integers(0, 255, (20, 24, 3), dtype=np.uint8)
            Image.fromarray(pixels).save(root / name / f"{number}.png")
    return f"imagefolder:{root}"


def test_image_folders_are_read_by_class(tmp_path: Path) -> None:
    counts = {f"{split}/{label}": 6 for split in ("train", "test") for label in ("cat", "dog")}
    name = write_folder(tmp_path / "pets", counts)
    task = load_task(name, model="small_cnn", image_size=16)
    inputs, targets = next(iter(task.train))
    assert inputs.shape == (12, 3, 16, 16)
    assert sorted(targets.tolist()) == [0] * 6 + [1] * 6
    assert task.input_spec().shape == (3, 16, 16)
    assert task.classes == ("cat", "dog")


def test_image_folders_leave_no_batch_of_one_to_train_on(tmp_path: Path) -> None:
    counts = {"train/cat": 33, "train/dog": 32, "val/cat": 1, "val/dog": 1, "test/cat": 1, "test/dog": 1}
    task = load_task(write_folder(tmp_path, counts), model="small_cnn", image_size=8)
    assert [len(inputs) for inputs, _ in task.train] == [63, 2]


def test_with_weights_built_in_data_take_validation_from_test(tmp_path: Path) -> None:
    counts = {f"{split}/{label}": 4 for split in ("train", "val") for label in ("cat", "dog")}
    names = {
        "digits": 360,
        f"npz:{write_npz(tmp_path / 'mine.npz')}": 40,
        write_folder(tmp_path / "pets", counts): 8,
    }
    options: dict[str, Any] = {"image_size": 8, "model": "small_cnn"}
    for name, rows in names.items():
        save_file(load_task(name, **options).model().state_dict(), tmp_path / "w.safetensors")
        given = load_task(name, weights=tmp_path / "w.safetensors", **options)
        task, note = with_validation(given)
        assert task.train is given.train
        sizes = [sum(len(x) for x, _ in split) for split in (task.val, task.test)]
        assert sizes == [rows // 2, rows - rows // 2]
        assert str(note).startswith(f"validation is half of test, {rows // 2} rows, stratified")


def test_image_folders_whose_splits_have_other_classes_are_refused(tmp_path: Path) -> None:
    image = Image.fromarray(np.zeros((8, 8, 3), dtype=np.uint8))
    for folder in ("train/a", "train/b", "train/c", "test/a", "test/c"):
        (tmp_path / folder).mkdir(parents=True)
        image.save(tmp_path / folder / "0.png")
    with pytest.raises(TaskError, match="must hold the same classes in every split"):
        load_task(f"imagefolder:{tmp_path}", model="small_cnn", image_size=8)


def test_own_functions_are_loaded_from_a_file(tmp_path: Path) -> None:
    (tmp_path / "mine.py").write_text(
        "import torch, autocompress as ac\n"
        "data = [(torch.randn(4, 6), torch.tensor([0, 1, 0, 1]))]\n"
        "def make():\n"
        "    return ac.Task(model=lambda: torch.nn.Linear(6, 2), train=data, val=data)\n"
    )
    task = load_task(f"{tmp_path / 'mine.py'}:make")
    assert task.name == "make"
    assert task.example().shape == (2, 6)


@pytest.mark.parametrize(
    ("name", "options", "message"),
    [
        ("nonsense", {}, "task must be one of digits, mnist"),
        ("npz:missing.npz", {}, "npz file must exist but 'missing.npz'"),
        ("imagefolder:missing", {}, "imagefolder must be an existing folder"),
        ("mnist", {"root": "missing"}, "--data-root must be an existing folder but got 'missing'"),
        ("digits", {"model": "nonsense"}, "model must be one of mlp"),
        ("digits", {"weights": "missing.pt"}, "weights must be an existing file"),
    ],
)
def test_what_cannot_be_used_is_refused_by_name(
    name: str, options: dict[str, str], message: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    with pytest.raises(TaskError, match=message):
        load_task(name, **options)


def test_models_whose_forward_fails_are_refused() -> None:
    task = load_task("digits", model="alexnet")
    with pytest.raises(TaskError, match=r"model 'alexnet' must accept inputs of shape \(2, 1, 8, 8\)"):
        check_forward(task, task.model())


def test_missing_modules_and_functions_are_refused() -> None:
    with pytest.raises(SettingsError, match="'no_such_module' must be importable"):
        load_task("no_such_module:make")
    with pytest.raises(SettingsError, match="'json' must define 'make'"):
        load_task("json:make")


def test_labels_without_an_output_are_refused(tmp_path: Path) -> None:
    task = load_task(f"npz:{write_npz(tmp_path / 'mine.npz', labels=(2, 9))}")
    with pytest.raises(TaskError, match=r"labels of the test split must be in \[0, 2\]"):
        check_labels(task, task.model())


def test_npz_without_an_array_is_refused(tmp_path: Path) -> None:
    np.savez(tmp_path / "bad.npz", x_train=np.zeros((2, 2)))
    with pytest.raises(TaskError, match="lacks y_train, x_test, y_test"):
        load_task(f"npz:{tmp_path / 'bad.npz'}")
