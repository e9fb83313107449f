"""`compress`: one method on a model, or several in order, without any search."""

from __future__ import annotations

import warnings
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from types import MappingProxyType
from typing import Any

from torch import nn

from autocompress.checkpoint import Checkpoint, export_onnx, export_openvino, export_program
from autocompress.checkpoint.store import MANIFEST, Writer
from autocompress.engine.starting_model import starting_model
from autocompress.errors import SettingsError, TaskError, writing_to
from autocompress.graph import analyse, within
from autocompress.methods.base import Method
from autocompress.surgery import Edit, joined
from autocompress.task import Inputs, Task
from autocompress.task.checks import called, check_splits, make_teacher
from autocompress.task.copying import copied
from autocompress.task.criterion import changed_tensors, load_changed
from autocompress.task.limits import check_limits
from autocompress.task.ready import ready
from autocompress.task.sizes import with_varying_sizes
from autocompress.training.distillation import Distillation
from autocompress.training.loop import Trainer, device_of
from autocompress.training.trying import has_own_training, try_training, within_class
from autocompress.trial import compress_in_stages, seed_everything
from autocompress.weights.encoded import codes_of


@dataclass(frozen=True)
class Compressed:
    """A compact model and how it came about.

    Args:
        model: an ordinary module in evaluation mode, which can be trained on, where the given one lay.
        history: one entry per epoch.
        edits: every structural change from the model that was given to it, as data.
        difference: greatest relative difference that surgery made to outputs.
        example: inputs, `(B, ...)` with B ≥ 2.
        input: what the model takes, as in a manifest.
        prepare: what the task's function that prepared the model is called; None where it has none.
    """

    model: nn.Module
    history: list[dict[str, float]]
    edits: tuple[Edit, ...]
    difference: float
    example: Inputs = field(repr=False)
    input: Mapping[str, Any] = field(repr=False)
    prepare: str | None = None

    def save(self, path: str | Path) -> Checkpoint:
        """Write a checkpoint folder, which `rebuild` makes the model of again, in place of another one.

        Raises:
            SettingsError: nothing can be written there, or other files are there.
            TrialError: the model cannot be exported.
        """
        target = Path(path)
        replaceable = (target / MANIFEST).is_file() or (target.is_dir() and not any(target.iterdir()))
        if target.exists() and not replaceable:
            raise SettingsError(
                f"path must be that of a new folder, an empty one or a checkpoint but '{target}' is none."
            )
        with writing_to("path", target):
            writer = Writer(target)
        try:
            writer.write(self._on_cpu(), self.example, "pt2", edits=self.edits)
            return writer.commit(
                {
                    "input": dict(self.input),
                    "prepare": self.prepare,
                    "artifact": "pt2",
                    "check": {"max_relative_difference": self.difference},
                    "history": self.history,
                }
            )
        finally:
            writer.discard()

    def export(self, path: str | Path) -> Path:
        """Write the model as `.pt2`, `.onnx`, or for OpenVINO as `.xml` with a `.bin`, by the path's ending.

        Raises:
            SettingsError: the path ends otherwise, or nothing can be written there.
            TrialError: the model cannot be exported.
        """
        target = Path(path)
        exporters = {".pt2": export_program, ".onnx": export_onnx, ".xml": export_openvino}
        if target.suffix not in exporters:
            raise SettingsError(f"path must end in .pt2, .onnx or .xml but got '{path}'.")
        if target.is_dir():
            raise SettingsError(f"path must be that of a file but '{target}' is a folder.")
        with writing_to("path", target):
            target.parent.mkdir(parents=True, exist_ok=True)
            exporters[target.suffix](self._on_cpu(), self.example, target)
        return target

    def _on_cpu(self) -> nn.Module:
        """The model where files are written from."""
        return self.model if device_of(self.model).type == "cpu" else copied(self.model).to("cpu")


def compress(
    model: nn.Module,
    task: Task,
    methods: Method | Sequence[Method],
    *,
    exclude: Sequence[str] = (),
    at_least: Mapping[str, float] = MappingProxyType({}),
    compress_share: float = 0.5,
    distill: bool = True,
    seed: int = 0,
) -> Compressed:
    """Train a model with a method, make it physically small, and fine-tune it; or with several in order.

    It is what a search does in a trial: the task's own `prepare` comes first, norms of weights are folded and
    blocks switched to their deployed form.

    Args:
        model: where training starts, as the task makes it; changed in place, use what is returned.
        task: data, loss and recipe; `recipe.epochs` is the total. A loss or step with tensors of its own is
            trained along, in place as the model is.
        methods: configured, such as `ac.Alcn(initial_ratio=0.5)`.
        exclude: layers that methods leave as they are: by a module's name, which stands for all inside of
            it, a pattern as "layer1.*", or a class as "BatchNorm2d". Layers with frozen parameters are left
            as they are anyway.
        at_least: layers, written alike → least share of their channels, or of their rank, that stays.
        compress_share: share of the epochs that train with methods, in (0, 1]; what is left to fine-tune is
            one epoch at least, or half of the only one.
        distill: learn from the task's own teacher as well, where it has one.
        seed: of everything random.

    Raises:
        SettingsError: `compress_share` or a share is out of range, no method is given, a pattern names no
            layer, nothing is left to compress, or weights of the model are codes.
        TaskError: `prepare` fails, all parameters are frozen, the model cannot be analysed, copied or
            deployed, the teacher returns something else, the task cannot train the model, or what a method
            makes of it, or `train` cannot be drawn from or has no length that says what an epoch is.
        TraceError: `torch.export` cannot trace the model.
        DivergedError: the loss became NaN or infinite.
        ProofError: the compact model does not equal the one that was trained.
    """
    if not 0 < compress_share <= 1:
        raise SettingsError(f"compress_share must be in (0, 1] but got {compress_share}.")
    stages = [methods] if isinstance(methods, Method) else list(methods)
    if not stages:
        raise SettingsError("methods must name at least one method but got none.")
    check_limits(exclude, at_least)
    _refuse_codes(model)
    with task.opened() as opened:
        check_splits(opened, ("train",))
        opened = with_varying_sizes(opened)
        model, edits, limits = starting_model(opened, ready(model, opened.example), exclude, at_least)
        opened = replace(opened, limits=limits)
        opened, taught = _within_own_training(opened, model, stages, distill)
        seed_everything(seed, opened)
        teacher = Distillation(make_teacher(opened).to(device_of(model))) if taught else None
        trainer = Trainer(opened, opened.recipe.epochs, distillation=teacher)
        done = compress_in_stages(model, opened, stages, trainer, compress_share)
        load_changed(opened.criterion, changed_tensors(opened.criterion, trainer.criterion))
        return Compressed(
            model=done.model,
            history=trainer.history,
            edits=joined([*edits, *done.edits]),
            difference=done.difference,
            example=opened.example(),
            input=opened.input_json(),
            prepare=None if opened.prepare is None else called(opened.prepare),
        )


def _refuse_codes(model: nn.Module) -> None:
    """Refuse a model whose weights are decoded from codes: no method takes them for weights."""
    codes = codes_of(model)
    if codes:
        raise SettingsError(
            f"model must have plain weights to be compressed but {len(codes)} are decoded from codes "
            "(point.module(decoded=True) and ac.rebuild(..., decoded=True) make plain ones of them)."
        )


def _within_own_training(
    task: Task, model: nn.Module, stages: Sequence[Method], distill: bool
) -> tuple[Task, bool]:
    """The task within what its own training can do, and whether its teacher can be learned from; raises
    TaskError where a method cannot be."""
    taught = distill and task.teacher is not None
    if not has_own_training(task):
        return task, taught
    analysis = within(analyse(model, task.example()), task.limits_of(model))
    tried = try_training(task, model, analysis)
    for method in stages:
        if tried.on_graphs is not None and method.needs_graph(model, analysis):
            raise TaskError(
                f"step must train what {type(method).__name__} leaves of the model, its graph without the "
                f"methods of its class, but: {tried.on_graphs}"
            )
    if taught and tried.taught is not None:
        warnings.warn(
            f"nothing is learned from the teacher beside the task's own step: {tried.taught}", stacklevel=3
        )
    limits = within_class(task, model, analysis, tried)
    return replace(task, limits=limits), taught and tried.taught is None
