"""Checkpoint folders: written aside, synced and renamed, so that one that exists is whole."""

from __future__ import annotations

import hashlib
import json
import os
import shutil
import uuid
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from types import MappingProxyType
from typing import Any

from torch import Tensor, fx, nn

from autocompress.checkpoint.archive import refuse_pickles
from autocompress.checkpoint.calling import Program
from autocompress.checkpoint.onnx_file import export_onnx
from autocompress.checkpoint.onnx_options import describe_onnx
from autocompress.checkpoint.openvino_int8 import quantize_openvino
from autocompress.checkpoint.openvino_ir import export_openvino
from autocompress.checkpoint.program import export_program, load_module, load_program
from autocompress.checkpoint.quantize import Control, Quantized, quantize_onnx
from autocompress.checkpoint.weights import save_loss, save_weights
from autocompress.errors import CheckpointError
from autocompress.surgery import Edit
from autocompress.task import Inputs, Limits

SCHEMA = 2
MANIFEST, EDITS, WEIGHTS, LOSS, PROGRAM, ONNX, OPENVINO = (
    "manifest.json",
    "edits.json",
    "weights.safetensors",
    "loss.safetensors",
    "model.pt2",
    "model.onnx",
    "model.xml",
)
# Folders of a run: of its reference, of its trials, and of what it has from the run that it was warm-started
# from.
REFERENCE, TRIALS, TAKEN_OVER = "reference", "trials", "warm_start"
# The file that is run, measured, and that `bytes` is the size of; OpenVINO's with `model.bin` beside it.
ARTIFACTS = {
    "pt2": PROGRAM,
    "onnx": ONNX,
    "onnx-int8": ONNX,
    "onnx-int4": ONNX,
    "openvino": OPENVINO,
    "openvino-int8": OPENVINO,
}
# What the reference is stored as, where candidates are quantised: it is what they are compared with.
UNQUANTISED = {"onnx-int8": "onnx", "onnx-int4": "onnx", "openvino-int8": "openvino"}


@dataclass(frozen=True)
class Checkpoint:
    """A checkpoint folder and its manifest."""

    path: Path
    manifest: Mapping[str, Any]

    def load(self) -> nn.Module:
        """The compressed model as a plain module in eval mode, from `model.pt2`."""
        return load_module(self.path / PROGRAM)

    def artifact_file(self, artifact: str) -> Path:
        """The file of an artefact: what is deployed."""
        return self.path / ARTIFACTS[artifact]

    def program(self, artifact: str) -> Program:
        """The callable of an artefact, loaded anew from its file."""
        return load_program(self.artifact_file(artifact))


class Writer:
    """A checkpoint being written; nothing exists under its name before `commit`.

    Attributes:
        graph: of the model, once it is written.
        quantized: how that was quantised; None where it was not.
    """

    graph: fx.GraphModule
    quantized: Quantized | None = None

    def __init__(self, path: Path) -> None:
        self.path = path
        path.parent.mkdir(parents=True, exist_ok=True)
        self.aside = aside_of(path)
        self.aside.mkdir()

    def write(
        self,
        model: nn.Module,
        example: Inputs,
        artifact: str,
        calibration: Sequence[Inputs] = (),
        edits: Sequence[Edit] = (),
        loss: Mapping[str, Tensor] | None = None,
        limits: Limits | None = None,
        control: Control | None = None,
        metadata: Mapping[str, Any] = MappingProxyType({}),
    ) -> Checkpoint:
        """Edits, weights and programs of a model; the checkpoint can be measured, but isn't there yet.

        Args:
            model: on the CPU.
            example: `(B, ...)` with B ≥ 2.
            artifact: what to write beside the weights and `model.pt2`.
            calibration: batches to calibrate an artefact of `UNQUANTISED` on.
            edits: what leads to it from the user's model.
            loss: what training changed of the loss beside it.
            limits: by which layers are excluded, and so not quantised either.
            control: what int8 may cost; None quantises all that can be.
            metadata: that an ONNX file tells, by `metadata_of`.

        Raises:
            TrialError: the model cannot be exported or quantised.
        """
        (self.aside / EDITS).write_text(json.dumps([edit.to_json() for edit in edits]) + "\n")
        save_weights(model, self.aside / WEIGHTS)
        save_loss(loss or {}, self.aside / LOSS)
        self.graph = export_program(model, example, self.aside / PROGRAM)
        if artifact.startswith("onnx"):
            origins = export_onnx(model, example, self.aside / ONNX)
        if artifact.startswith("openvino"):
            origins = export_openvino(model, example, self.aside / OPENVINO)
        if artifact in UNQUANTISED:
            excludes = (limits or Limits()).excludes
            in_floats = {node for node, names in origins.items() if any(map(excludes, names))}
            path = self.aside / ARTIFACTS[artifact]
            if artifact == "openvino-int8":
                self.quantized = quantize_openvino(path, calibration, in_floats, control)
            else:
                four_bits = artifact == "onnx-int4"
                self.quantized = quantize_onnx(path, calibration, in_floats, control, four_bits)
        if artifact.startswith("onnx"):
            describe_onnx(self.aside / ONNX, metadata)
        return Checkpoint(self.aside, {})

    def commit(self, manifest: Mapping[str, Any]) -> Checkpoint:
        """Add the manifest with every file's hash, sync, and rename into place."""
        files = sorted(p for p in self.aside.iterdir() if p.is_file())
        full = {
            "schema": SCHEMA,
            **manifest,
            "sha256": {p.name: hashlib.sha256(p.read_bytes()).hexdigest() for p in files},
        }
        (self.aside / MANIFEST).write_text(json.dumps(full, indent=2) + "\n")
        for file in self.aside.iterdir():
            _sync(file)
        if self.path.exists():
            shutil.rmtree(self.path)
        os.replace(self.aside, self.path)
        _sync(self.path.parent)
        return Checkpoint(self.path, full)

    def discard(self) -> None:
        """Remove what was written."""
        shutil.rmtree(self.aside, ignore_errors=True)


def open_checkpoint(path: Path, verify: bool = True) -> Checkpoint:
    """Read a checkpoint's manifest and, unless told not to, check every file's hash.

    Raises:
        CheckpointError: the folder is missing, of another version or damaged.
    """
    try:
        manifest = json.loads((path / MANIFEST).read_text())
    except (OSError, ValueError) as error:
        raise CheckpointError(f"checkpoint must be a readable folder but '{path}' is not.") from error
    schema = manifest.get("schema") if isinstance(manifest, dict) else None
    if schema != SCHEMA:
        raise CheckpointError(f"checkpoint schema must be {SCHEMA} but '{path}' has {schema!r}.")
    digests = manifest.get("sha256")
    if not isinstance(digests, dict):
        raise CheckpointError(f"checkpoint must name its files' digests but '{path}' does not.")
    for name, expected in digests.items() if verify else ():
        file = path / name
        if not file.is_file() or hashlib.sha256(file.read_bytes()).hexdigest() != expected:
            raise CheckpointError(f"checkpoint file '{file}' is missing or damaged.")
        if file.suffix == ".pt2":
            refuse_pickles(file)
    return Checkpoint(path, manifest)


def aside_of(path: Path) -> Path:
    """Where a folder or file lies that is not there yet, or not any more; see `remove_leftovers`."""
    return path.with_name(f".{path.name}.{uuid.uuid4().hex[:8]}.tmp")


def trial_folder(trials: Path, number: int) -> Path:
    """The checkpoint folder of a trial, in the folder of all trials."""
    return trials / f"{number:04d}"


def taken_over_folder(trials: Path, number: int) -> Path:
    """The folder of edits and weights that a run copied from trial `number` of the run that it was
    warm-started from; beside the folder of its own trials."""
    return trial_folder(trials.parent / TAKEN_OVER, number)


def kept_trials(trials: Path) -> set[int]:
    """Numbers of the trials that have a checkpoint, in the folder of all trials."""
    return {int(folder.name) for folder in trials.glob("[0-9]*") if (folder / MANIFEST).is_file()}


def remove_checkpoint(folder: Path) -> None:
    """Delete a checkpoint, of which nothing is left under its name where that is cut off."""
    aside = aside_of(folder)
    try:
        folder.rename(aside)
    except FileNotFoundError:
        return
    shutil.rmtree(aside, ignore_errors=True)


def remove_leftovers(folder: Path) -> None:
    """Delete what writers that were killed left behind under a folder."""
    for aside in folder.glob(".*.tmp"):
        shutil.rmtree(aside, ignore_errors=True)


def _sync(path: Path) -> None:
    handle = os.open(path, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)
