"""Checkpoint folders are whole or absent, and damage is noticed."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file
from torch import Tensor, nn

from autocompress.checkpoint import open_checkpoint
from autocompress.checkpoint.store import Writer, remove_leftovers
from autocompress.errors import CheckpointError


def write_checkpoint(path: Path, model: nn.Module, example: Tensor, manifest: dict[str, object]) -> None:
    writer = Writer(path)
    writer.write(model, example, "pt2")
    writer.commit(manifest)


def test_written_checkpoint_loads_with_equal_outputs(
    residual: nn.Module, images: Tensor, tmp_path: Path
) -> None:
    write_checkpoint(tmp_path / "0001", residual, images, {"task": "t"})
    checkpoint = open_checkpoint(tmp_path / "0001")
    assert checkpoint.manifest["task"] == "t"
    assert set(checkpoint.manifest["sha256"]) == {"model.pt2", "weights.safetensors"}
    with torch.no_grad():
        assert torch.allclose(checkpoint.load()(images), residual(images), atol=1e-6)
    stored = load_file(tmp_path / "0001" / "weights.safetensors")
    assert torch.equal(stored["stem.weight"], residual.stem.weight)
    assert checkpoint.artifact_file("pt2") == tmp_path / "0001" / "model.pt2"


def test_nothing_exists_under_the_name_before_commit(
    residual: nn.Module, images: Tensor, tmp_path: Path
) -> None:
    writer = Writer(tmp_path / "0001")
    writer.write(residual, images, "pt2")
    assert not (tmp_path / "0001").exists()
    remove_leftovers(tmp_path)
    assert list(tmp_path.iterdir()) == []


def test_damaged_files_are_noticed(residual: nn.Module, images: Tensor, tmp_path: Path) -> None:
    write_checkpoint(tmp_path / "c", residual, images, {})
    with open(tmp_path / "c" / "weights.safetensors", "r+b") as file:
        file.seek(-1, 2)
        file.write(b"\x01")
    with pytest.raises(CheckpointError, match=r"weights\.safetensors' is missing or damaged"):
        open_checkpoint(tmp_path / "c")


def test_missing_and_foreign_folders_are_refused(tmp_path: Path) -> None:
    with pytest.raises(CheckpointError, match="must be a readable folder"):
        open_checkpoint(tmp_path / "nothing")
    (tmp_path / "manifest.json").write_text(json.dumps({"schema": 99}))
    with pytest.raises(CheckpointError, match="schema must be 1 but"):
        open_checkpoint(tmp_path)


def test_programs_do_not_store_more_of_the_inputs_than_they_need(residual: nn.Module, tmp_path: Path) -> None:
    many = torch.randn(20000, 3, 8, 8)
    write_checkpoint(tmp_path / "c", residual, many[:2], {})
    assert (tmp_path / "c" / "model.pt2").stat().st_size < 200_000
