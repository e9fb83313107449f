"""A folder with one model that goes anywhere: its file, a card, a program that runs it, labels and inputs."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from autocompress.checkpoint.program import files_of
from autocompress.errors import SettingsError, writing_to
from autocompress.measure.subject import STATIC
from autocompress.report.loading import artifact_name, loading_lines
from autocompress.report.notes import plain
from autocompress.report.records import TrialRecord, sentence, trial_records
from autocompress.report.rendering import environment, shortened
from autocompress.result import FORMATS, ParetoModel, SearchResult, format_of
from autocompress.study import SearchStudy
from autocompress.tables import HEADINGS, error_text, metric_text
from autocompress.task.inputs import arguments, call, from_json, tensors
from autocompress.trial import changed_settings

# By format, as model hubs call what runs it.
_LIBRARIES = {"pt2": "pytorch", "onnx": "onnx", "openvino": "openvino"}


@dataclass(frozen=True)
class RunFacts:
    """What a card tells of a run.

    Args:
        task: its name.
        model: name of the model.
        versions: of packages that it was made with.
        latency: inputs a call, and threads, of measured latency.
    """

    task: str
    model: str
    versions: Mapping[str, str]
    latency: tuple[int, int]


def take_along(
    point: ParetoModel,
    result: SearchResult,
    study: SearchStudy,
    facts: RunFacts,
    folder: Path,
    format: str | None = None,
) -> Path:
    """Write a model to a folder, with all that is needed to run, judge and publish it.

    Args:
        point: the model.
        result: of its run.
        study: of its run.
        facts: what else the card tells.
        folder: to write; new or empty.
        format: "pt2", "onnx" or "openvino"; None is the file that was measured.

    Raises:
        SettingsError: the folder holds files, or there is no such format.
        CheckpointError: the checkpoint is damaged.
    """
    manifest = point.checkpoint().manifest
    chosen = format or format_of(Path(artifact_name(manifest)))
    if chosen not in _LIBRARIES:
        raise SettingsError(f"format must be {', '.join(_LIBRARIES)} for a folder but got {chosen!r}.")
    if folder.exists() and (not folder.is_dir() or any(folder.iterdir())):
        raise SettingsError(f"folder must be new or empty but '{folder}' is not.")
    with writing_to("folder", folder):
        folder.mkdir(parents=True, exist_ok=True)
    written = point.export(folder / FORMATS[chosen], chosen)
    inputs = _inputs(manifest)
    classifies = _classifies(point, manifest)
    _write_json(folder / "preprocessing.json", inputs)
    if classifies:
        _write_json(folder / "labels.json", _labels(manifest))
    program = environment().get_template(f"predict_{chosen}.py.jinja").render(
        single="shape" in inputs, classifies=classifies, what=_what(inputs, classifies)
    )  # fmt: skip
    (folder / "predict.py").write_text(program.rstrip() + "\n", encoding="utf-8")
    size = sum(part.stat().st_size for part in files_of(written))
    card = _card(point, result, study, facts, chosen, size)
    (folder / "README.md").write_text(card.rstrip() + "\n", encoding="utf-8")
    return folder


def _write_json(path: Path, data: Any) -> None:
    path.write_text(json.dumps(data, indent=2, ensure_ascii=False) + "\n", encoding="utf-8")


def _inputs(manifest: Mapping[str, Any]) -> dict[str, Any]:
    """What raw inputs become the model's by; of several, their names, shapes and types."""
    stored = manifest["input"]
    example = from_json(stored)
    args, kwargs = arguments(example)
    if "shape" in stored and len(args) == 1 and not kwargs:
        return {name: stored[name] for name in ("shape", "dtype", "scale", "mean", "std")}
    if len(args) == 1 and not kwargs and isinstance(args[0], Tensor):
        (tensor,) = args
        plainly = {"scale": 1.0, "mean": [0.0], "std": [1.0]}
        return {"shape": [None, *tensor.shape[1:]], "dtype": _dtype(tensor), **plainly}
    names = [*(f"args_{position}" for position in range(len(args))), *kwargs]
    shapes = [(list(tensor.shape), _dtype(tensor)) for tensor in tensors(example)]
    names = names if len(names) == len(shapes) else [f"input_{position}" for position in range(len(shapes))]
    return {"inputs": [[name, *described] for name, described in zip(names, shapes, strict=True)]}


def _dtype(tensor: Tensor) -> str:
    return str(tensor.dtype).removeprefix("torch.")


def _classifies(point: ParetoModel, manifest: Mapping[str, Any]) -> bool:
    """Whether the greatest of the outputs of the file itself is the label."""
    if not manifest.get("class_counts"):
        return False
    with torch.no_grad():
        outputs = call(point.load(), from_json(manifest["input"]))
    return isinstance(outputs, Tensor) and outputs.dim() >= 2


def _labels(manifest: Mapping[str, Any]) -> list[str]:
    """A name for each output, its number where it has none."""
    names = manifest.get("class_names") or ()
    count = max(len(names), len(manifest["class_counts"]))
    return [names[label] if label < len(names) else str(label) for label in range(count)]


def _what(inputs: Mapping[str, Any], classifies: bool) -> str:
    made = "labels" if classifies else "outputs"
    if "shape" in inputs:
        return f"{made} of raw inputs ({', '.join(['N', *map(str, inputs['shape'][1:])])})"
    return f"{made} of what the model is called with"


def _card(
    point: ParetoModel, result: SearchResult, study: SearchStudy, facts: RunFacts, chosen: str, size: int
) -> str:
    """The model card, Markdown with the front matter of model hubs, of a file of so many bytes."""
    records, manifest = trial_records(study, result), point.checkpoint().manifest
    lineage = [records[number] for number in point.lineage]
    methods = dict.fromkeys(method for record in lineage for method in record.methods)
    scores = {"validation": _scores(point.metrics)}
    if point.test_metrics:
        scores["test"] = _scores(point.test_metrics)
    edits = json.loads((point.path / "edits.json").read_text())
    counted = Counter(str(edit["edit"]) for edit in edits)
    batch, threads = facts.latency
    spread = point.metrics.get("latency_spread")
    return environment().get_template("card.md.jinja").render(
        library=_LIBRARIES[chosen],
        tags=["autocompress", "model-compression", *methods],
        title=f"{facts.task}-{facts.model}-trial-{point.trial}",
        scores=scores,
        task=facts.task,
        task_type="image-classification" if _of_images(manifest) else "other",
        model=facts.model,
        file=FORMATS[chosen],
        measured=artifact_name(manifest),
        size=metric_text("bytes", size),
        summary=_summary(point, result),
        versions=facts.versions,
        rows=point.validation_rows,
        table=_table(point, result.reference),
        lineage=lineage,
        settings_of=_settings,
        sentence=sentence,
        edits=", ".join(f"{count} × {kind}" for kind, count in counted.items()),
        difference=manifest["check"]["max_relative_difference"],
        loading=loading_lines(manifest, FORMATS[chosen]),
        preprocessing=_preprocessing(_inputs(manifest)),
        labels=_labels(manifest) if manifest.get("class_names") else [],
        trials=sum(record.number > 0 and record.state == "complete" for record in records.values()),
        tested=bool(point.test_metrics),
        worst=_worst(manifest, result.reference.checkpoint().manifest),
        latency=None if spread is None else f"{100 * spread:.1f} %",
        threads=threads,
        batch=batch,
    )  # fmt: skip


def _scores(metrics: Mapping[str, float]) -> dict[str, float]:
    """The task's own metrics; others are those of the file."""
    return {name: value for name, value in metrics.items() if name not in STATIC and "_spread" not in name}


def _of_images(manifest: Mapping[str, Any]) -> bool:
    inputs = _inputs(manifest)
    return bool(manifest.get("class_counts")) and len(inputs.get("shape", ())) == 4


def _summary(point: ParetoModel, result: SearchResult) -> str:
    primary = result.objectives[0].metric
    parts = [f"{primary} {metric_text(primary, point.metrics[primary])}{error_text(point, primary)}"]
    for name in ("bytes", "params", "macs", "latency"):
        if name in point.ratios:
            parts.append(f"{100 * point.ratios[name]:.3g} % of the reference's {HEADINGS.get(name, name)}")
    return plain(", ".join(parts))


def _table(point: ParetoModel, reference: ParetoModel) -> list[list[str]]:
    rows = []
    for name, value in point.metrics.items():
        if name.endswith("_spread"):
            continue
        heading = f"{HEADINGS.get(name, name)}{' (validation)' if name not in STATIC else ''}"
        before = metric_text(name, reference.metrics[name]) + error_text(reference, name)
        ratio = f"{point.ratios[name]:.3g}" if name in point.ratios else "–"
        rows.append([plain(heading), before, metric_text(name, value) + error_text(point, name), ratio])
    for name, value in point.test_metrics.items():
        known = reference.test_metrics.get(name)
        shown = "–" if known is None else metric_text(name, known)
        rows.append([plain(f"{name} (test)"), shown, metric_text(name, value), "–"])
    return rows


def _settings(record: TrialRecord) -> list[tuple[str, dict[str, str]]]:
    return [
        (stage["method"], {name: shortened(value, 200) for name, value in changed.items()})
        for stage in record.config.get("stages", ())
        for changed in [changed_settings(stage["method"], stage["config"])]
    ]


def _preprocessing(inputs: Mapping[str, Any]) -> str:
    if "shape" not in inputs:
        named = ", ".join(f"`{name}` {shape} {dtype}" for name, shape, dtype in inputs["inputs"])
        return f"It is called with what its data loader yielded: {named}; the first size is the batch's."
    shape = ", ".join(["N", *map(str, inputs["shape"][1:])])
    if (inputs["scale"], inputs["mean"], inputs["std"]) == (1.0, [0.0], [1.0]):
        return f"Inputs are `({shape})`, {inputs['dtype']}, prepared as for the original model."
    return (
        f"Raw inputs `({shape})` become the model's, {inputs['dtype']}, by "
        f"`(raw * {inputs['scale']} - mean) / std` with mean {inputs['mean']} and std {inputs['std']} of "
        "each channel (`preprocessing.json`)."
    )


def _worst(manifest: Mapping[str, Any], before: Mapping[str, Any]) -> str:
    """The range of changes of accuracy over classes; empty where that is not known."""
    pairs = zip(manifest.get("class_counts", ()), before.get("class_counts", ()), strict=False)
    changes = [100 * (right - then) / total for (right, total), (then, _) in pairs if total]
    return f"{min(changes):+.1f} to {max(changes):+.1f} points" if changes else ""
