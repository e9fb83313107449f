"""What a search returns: the front, ways to pick one point of it, and its export."""

from __future__ import annotations

import csv
import io
import math
import shutil
import tempfile
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

import numpy as np
from torch import nn

from autocompress.checkpoint import Checkpoint, export_onnx, open_checkpoint
from autocompress.checkpoint.onnx_options import OnnxOptions, adapt_onnx, free_size
from autocompress.checkpoint.openvino_ir import onnx_to_openvino
from autocompress.checkpoint.program import files_of
from autocompress.checkpoint.rebuilding import rebuild_on
from autocompress.checkpoint.store import ONNX, OPENVINO, PROGRAM, UNQUANTISED, WEIGHTS
from autocompress.errors import SettingsError, writing_to
from autocompress.measure import STATIC, Constraint, Objective
from autocompress.measure.resampling import REPLICATES
from autocompress.measure.subject import OF_FILES
from autocompress.pareto import knee
from autocompress.remote import refuse_address
from autocompress.tables import front_html, front_table, metric_text, plain_text, point_html, point_text
from autocompress.task.inputs import from_json

# What takes each format.
RUNTIMES = {
    "pt2": "PyTorch 2.9 or newer: torch.export.load(FILE).module() in Python; for C++ compile it there with "
    "torch._inductor.aoti_compile_and_package, or take onnx",
    "onnx": "ONNX Runtime: onnxruntime.InferenceSession(FILE) in Python, Ort::Session in C++, and C, C#, "
    "Java, JavaScript; other runtimes that read ONNX, as OpenVINO, TensorRT and OpenCV's DNN",
    "openvino": "OpenVINO: openvino.Core().compile_model(FILE, 'CPU') in Python, ov::Core in C++, C and "
    "JavaScript; its numbers are in the .bin beside it",
    "safetensors": "ac.rebuild(MyModel(), CHECKPOINT), which needs the edits beside them: tensors alone",
}
FORMATS = {"pt2": PROGRAM, "onnx": ONNX, "openvino": OPENVINO, "safetensors": WEIGHTS}
# What is said in the place of a point that could be picked.
NOTHING_ON_FRONT = (
    "no compressed model is on the front: each breaks a constraint, or the reference is at least as good in "
    "all objectives; train longer (--epochs), try more (--trials) or lift a bound (--constraint none)"
)
NOTHING_COMPLETED = (
    "no compressed model is on the front: no trial completed; `autocompress report` says why each failed"
)
# Quantiles of the standard normal distribution: two-sided 95 %, and one-sided.
Z95, Z95_ONE_SIDED = 1.95996, 1.64485
# A trial that would be on the front with fewer resamples of the validation rows than this share is dominated
# by more than noise.
LEAST_PROBABILITY = 0.05


def format_of(path: Path) -> str:
    """The format that a file's ending says; of another ending, the ending itself."""
    endings = {Path(name).suffix: format for format, name in FORMATS.items()}
    return endings.get(path.suffix, path.suffix.removeprefix("."))


@dataclass(frozen=True, repr=False)
class ParetoModel:
    """One trial's compressed model.

    Args:
        trial: number of the trial; 0 is the reference.
        path: its checkpoint folder.
        metrics: on the validation split; bytes, params, macs, latency and memory of the artefact.
        test_metrics: task metrics on the test split; empty where the task has none.
        config: the trial's configuration.
        ratios: each metric's value over the reference's.
        errors: standard errors of the task's metrics, from the validation rows; a metric whose error is
            not known has none.
        replicates: the same metrics over resamples of the validation rows, which all points share.
        validation_rows: how many they are.
        front_probability: how likely the point is to be on the front, were it judged by other rows.
        lineage: numbers of the trials that the model came from, each started from the one before it, itself
            last; the reference is not among them.
        make_model: makes a new model of the task, prepared as it says; None where the run does not tell.
    """

    trial: int
    path: Path
    metrics: Mapping[str, float]
    test_metrics: Mapping[str, float]
    config: Mapping[str, Any]
    ratios: Mapping[str, float]
    errors: Mapping[str, float] = field(default_factory=dict)
    replicates: Mapping[str, Sequence[float]] = field(default_factory=dict)
    validation_rows: int = 0
    front_probability: float = math.nan
    lineage: tuple[int, ...] = ()
    make_model: Callable[[], nn.Module] | None = field(default=None, compare=False)

    def __repr__(self) -> str:
        """A line: the metrics, their ratios to the reference's, and where the checkpoint lies."""
        return point_text(self)

    def _repr_html_(self) -> str:
        """What a notebook shows."""
        return point_html(self)

    def interval(self, metric: str) -> tuple[float, float]:
        """The 95 % interval of a task's metric: value ± 1.96 standard errors; NaN where none is known.

        Accuracy ends at 0 and 1.
        """
        half = Z95 * self.errors.get(metric, math.nan)
        low, high = self.metrics[metric] - half, self.metrics[metric] + half
        return (max(low, 0.0), min(high, 1.0)) if metric == "accuracy" else (low, high)

    @property
    def artifact(self) -> Path:
        """The file that is deployed, which `metrics` are of."""
        checkpoint = self.checkpoint()
        return checkpoint.artifact_file(checkpoint.manifest["artifact"])

    def checkpoint(self) -> Checkpoint:
        """The checkpoint, its files' hashes checked."""
        return open_checkpoint(self.path)

    def load(self) -> nn.Module:
        """A plain module for inference from `model.pt2`; no gates, no hooks.

        Where the run's artefact is quantised, as "onnx-int8" is, this is the model before quantisation.
        """
        return self.checkpoint().load()

    def module(self, decoded: bool = False) -> nn.Module:
        """The compressed model to train on: the user's class with smaller layers where surgery allows.

        Args:
            decoded: make plain parameters of weights that are stored as codes, of which the levels alone
                train otherwise; so each number trains, and the model can be compressed again.

        Raises:
            SettingsError: the run was made with a `Task` object that is not at hand; see `ac.rebuild`.
            CheckpointError: the checkpoint is damaged, or the task's model is another one now.
        """
        if self.make_model is None:
            raise SettingsError(
                f"the task's model must be known but this run was made with a Task object: "
                f"use ac.rebuild(MyModel(), '{self.path}')."
            )
        return rebuild_on(self.make_model(), self.checkpoint(), decoded)

    def export(self, path: str | Path, format: str | None = None, **onnx: Any) -> Path:
        """Copy the model out as `.pt2`, `.onnx`, `.xml` with `.bin` (OpenVINO) or `.safetensors`.

        Args:
            path: where to.
            format: "pt2", "onnx", "openvino" or "safetensors"; None reads it off the path's ending.
                `RUNTIMES` says what takes each.
            onnx: of an ONNX file: `opset`, `input_names`, `output_names`, `class_names` (the task's, where
                not given), `embed_preprocessing` and `dynamic_size`, see `OnnxOptions`.

        Raises:
            SettingsError: the format or an option is unknown, does not suit the model, or the format is not
                that of the quantised file that was measured.
            CheckpointError: the checkpoint is damaged.
            TrialError: the model cannot be exported in the format.
        """
        refuse_address("path", path)
        target = Path(path)
        if target.is_dir():
            raise SettingsError(f"path must be that of a file but '{target}' is a folder.")
        chosen = format or format_of(target)
        if chosen not in FORMATS:
            raise SettingsError(f"format must be one of {', '.join(FORMATS)} but got {chosen!r}.")
        ending = format_of(target)
        if ending != chosen and (ending in FORMATS or chosen == "openvino"):
            suffix = ".xml" if chosen == "openvino" else Path(FORMATS[chosen]).suffix
            raise SettingsError(f"path must end in {suffix} for the format {chosen} but got '{target}'.")
        checkpoint = self.checkpoint()
        measured = checkpoint.manifest["artifact"]
        if UNQUANTISED.get(measured, chosen) != chosen:
            raise SettingsError(
                f"format must be {UNQUANTISED[measured]} where int8 was measured, which the others are not, "
                f"but got {chosen!r}."
            )
        options = OnnxOptions.of(onnx, chosen)
        source = checkpoint.path / FORMATS[chosen]
        with writing_to("path", target):
            target.parent.mkdir(parents=True, exist_ok=True)
            if source.is_file() and options == OnnxOptions():
                for stored, written in zip(files_of(source), files_of(target), strict=True):
                    shutil.copyfile(stored, written)  # as it was measured
            elif chosen == "openvino":
                self._export_openvino(target)
            else:
                self._export_onnx(target, options)
        return target

    def _export_openvino(self, target: Path) -> None:
        """Write OpenVINO's files by way of ONNX."""
        with tempfile.TemporaryDirectory() as scratch:
            between = Path(scratch) / ONNX
            self._write_onnx(between)
            onnx_to_openvino(between, target)

    def _write_onnx(self, made: Path) -> None:
        """Write the ONNX file as it was measured, or as the model is exported."""
        checkpoint = self.checkpoint()
        if (checkpoint.path / ONNX).is_file():
            shutil.copyfile(checkpoint.path / ONNX, made)
        else:
            export_onnx(self.load(), from_json(checkpoint.manifest["input"]), made)

    def _export_onnx(self, target: Path, options: OnnxOptions) -> None:
        """Write the ONNX file aside, so that there is none where an option does not suit it."""
        checkpoint = self.checkpoint()
        described = checkpoint.manifest["input"]
        classes = tuple(checkpoint.manifest.get("class_names") or ())
        with tempfile.TemporaryDirectory() as scratch:
            made = Path(scratch) / ONNX
            if options.dynamic_size:
                if checkpoint.manifest["artifact"] in UNQUANTISED:
                    raise SettingsError(
                        "dynamic_size must be asked of the task where int8 was measured, as it is calibrated "
                        "with the sizes of its data: give Task(dynamic={2: 'height', 3: 'width'})."
                    )
                free_size(made, self.module().eval(), described)
            else:
                self._write_onnx(made)
            adapt_onnx(made, options, described, classes)
            shutil.copyfile(made, target)


@dataclass(frozen=True, repr=False)
class SearchResult:
    """A run's outcome.

    Args:
        out: the run folder.
        objectives: of the search, primary first.
        reference: trial 0.
        front: non-dominated, feasible models, best primary objective first.
        study: the `optuna.Study`.
        overhead: (wall time × workers − time in steps) ÷ time in steps, of this call; None where
            it ran no trial.
        interrupted: whether the search was ended by Ctrl-C.
        contenders: models that are not on the front by less than what other validation rows would change,
            the likeliest first.
        target: what the search was to reach; None where that was the whole front.
        address: where the run is in a store, without secrets, of which `out` is a copy on this machine; None
            where it is in a folder.
    """

    out: Path
    objectives: tuple[Objective, ...]
    reference: ParetoModel
    front: list[ParetoModel]
    study: Any
    overhead: float | None = None
    interrupted: bool = False
    contenders: Sequence[ParetoModel] = ()
    target: Constraint | None = None
    address: str | None = None

    @property
    def shown(self) -> str:
        """What commands and messages call the run: its folder, or its address in a store."""
        return str(self.out) if self.address is None else self.address

    def pick(
        self,
        rule: Literal["knee", "max-drop", "tau", "target"] | None = None,
        *,
        max_drop: float | None = None,
        sure: bool = False,
        budgets: Mapping[str, float] | None = None,
        tau: float | None = None,
    ) -> ParetoModel:
        """One point of the front, by need.

        Args:
            rule: "knee": farthest from the line between the front's ends; "max-drop": the smallest
                that loses at most `max_drop` of the primary objective; "tau": greatest
                τ·primary + (1 − τ)·(1 − cost ratio); "target": the cheapest, by the first objective that is
                a cost, that holds the search's target, or of a target on a cost the best that does. None is
                the rule whose argument is given, else "target" where a point holds it, else "knee".
            max_drop: absolute loss of the primary objective against the reference.
            sure: only points whose loss is within `max_drop` with 95 % certainty, by what the validation rows
                say of the difference to the reference; with "max-drop".
            budgets: metric → greatest value allowed, with any rule.
            tau: in [0, 1].

        Raises:
            SettingsError: an argument is unknown or out of range, or no point satisfies it.
        """
        if max_drop is not None and tau is not None:
            raise SettingsError("only one of max_drop and tau must be given.")
        for name, value, own in (("max_drop", max_drop, "max-drop"), ("tau", tau, "tau")):
            if value is not None and rule not in (None, own):
                raise SettingsError(f"{name} must be given with the rule {own!r} alone but that is {rule!r}.")
        rule = rule or ("max-drop" if max_drop is not None else "tau" if tau is not None else None)
        if sure and rule != "max-drop":
            raise SettingsError(f"sure must be given with max_drop alone but the rule is {rule!r}.")
        points = self._within(budgets or {})
        if rule in (None, "target"):
            answer = self._at_target(points)
            if answer is None and rule == "target":
                text = "none" if self.target is None else f"{self.target.text!r}, which no point holds"
                raise SettingsError(f"target must be held by a compressed model but the search's is {text}.")
            if answer is not None:
                return answer
            rule = "knee"
        if rule == "knee":
            # The reference is an end of the front, not a choice, unless there is no other.
            compressed = _compressed(points) or points
            return compressed[knee(self.costs(compressed))]
        if rule == "max-drop":
            return self._by_drop(points, max_drop, sure)
        if rule == "tau":
            return self._by_tau(points, tau)
        raise SettingsError(f"rule must be 'knee', 'max-drop', 'tau' or 'target' but got {rule!r}.")

    def __repr__(self) -> str:
        """The front as a table, as wide as the terminal is."""
        point, label = self.marked
        width = shutil.get_terminal_size((0, 0)).columns or None
        text = plain_text(front_table(self, point, label, width), width)
        return text if self.compressed else f"{text}\n{self.why_none}"

    def _repr_html_(self) -> str:
        """The front as a table of a notebook."""
        table = front_html(self, *self.marked)
        return table if self.compressed else f"{table}<p>{self.why_none}</p>"

    @property
    def why_none(self) -> str:
        """What is said where no compressed model is on the front, and what would help."""
        trials = [] if self.study is None else self.study.get_trials(deepcopy=False)
        states = {trial.state.name for trial in trials if trial.number}
        return NOTHING_COMPLETED if "FAIL" in states and "COMPLETE" not in states else NOTHING_ON_FRONT

    @property
    def compressed(self) -> list[ParetoModel]:
        """The front without the reference, which may be on it."""
        return _compressed(self.front)

    @property
    def marked(self) -> tuple[ParetoModel | None, str]:
        """The point that tables mark and what they call it: "target" where one answers it, else "knee".

        None and "" where no compressed model is on the front.
        """
        if not self.compressed:
            return None, ""
        answer = self._at_target(self.front)
        return (self.pick("knee"), "knee") if answer is None else (answer, "target")

    @property
    def first_cost(self) -> str:
        """The first objective that is a cost; bytes where there is none."""
        return next((o.metric for o in self.objectives if o.metric in STATIC), "bytes")

    def costs(self, points: Sequence[ParetoModel]) -> np.ndarray:
        """Objective values, all to be minimised; `(points, objectives)`."""
        signs = np.array([-1.0 if o.maximised else 1.0 for o in self.objectives])
        values = [[p.metrics[o.metric] for o in self.objectives] for p in points]
        costs: np.ndarray = np.asarray(values, dtype=np.float64) * signs
        return costs

    @property
    def disk_bytes(self) -> int:
        """Bytes of all files in the run folder."""
        return sum(file.stat().st_size for file in self.out.rglob("*") if file.is_file())

    def to_frame(self) -> Any:
        """All trials as a `pandas.DataFrame`."""
        return self.study.trials_dataframe()

    def to_json(self) -> dict[str, Any]:
        """What `autocompress front --json` prints; paths relative to the run folder."""
        return {
            "reference": {
                "metrics": dict(self.reference.metrics),
                "test_metrics": dict(self.reference.test_metrics),
            },
            "points": [
                {
                    "trial": p.trial,
                    "path": p.path.relative_to(self.out).as_posix(),
                    "metrics": dict(p.metrics),
                    "test_metrics": dict(p.test_metrics),
                    "config": dict(p.config),
                    "ratios": dict(p.ratios),
                    "errors": dict(p.errors),
                    "front_probability": p.front_probability,
                    "lineage": list(p.lineage),
                }
                for p in self.front
            ],
        }

    def to_csv(self) -> str:
        """What `autocompress front --csv` prints: a line per point, the reference first.

        Columns are the metrics, those of the test split (`test_…`), the ratios to the reference (`ratio_…`),
        the standard errors (`error_…`) and how likely the point is on the front; empty is what is not known.
        """
        rows = [self.reference, *self.compressed]
        columns = {
            "": [p.metrics for p in rows],
            "test_": [p.test_metrics for p in rows],
            "ratio_": [p.ratios for p in rows],
            "error_": [p.errors for p in rows],
        }
        names = {prefix: list(dict.fromkeys(n for m in of for n in m)) for prefix, of in columns.items()}
        buffer = io.StringIO()
        writer = csv.writer(buffer, lineterminator="\n")
        heads = [f"{prefix}{name}" for prefix, known in names.items() for name in known]
        writer.writerow(["trial", "path", *heads, "front_probability"])
        for row, p in enumerate(rows):
            cells = [columns[prefix][row].get(name, "") for prefix, known in names.items() for name in known]
            probability = p.front_probability if p.trial and math.isfinite(p.front_probability) else ""
            writer.writerow([p.trial, p.path.relative_to(self.out).as_posix(), *cells, probability])
        return buffer.getvalue()

    def _within(self, budgets: Mapping[str, float]) -> list[ParetoModel]:
        """The points of the front that keep to all budgets; raises SettingsError where there are none."""
        measured = self.reference.metrics
        for name, most in budgets.items():
            if name not in measured:
                wanted = f"{self.objectives[0].metric},{name}"
                remedy = f"; a search with --objectives {wanted} measures it" * (name in OF_FILES)
                raise SettingsError(
                    f"budgets must be on measured metrics ({', '.join(measured)}) but got {name!r}{remedy}."
                )
            least = min(self.front, key=lambda p: p.metrics[name], default=None)
            if least is not None and not least.metrics[name] <= most:
                smallest, given = metric_text(name, least.metrics[name]), metric_text(name, most)
                if smallest == given:
                    smallest, given = f"{least.metrics[name]:.10g}", f"{most:.10g}"
                raise SettingsError(
                    f"budgets must be met by a point of the front but the smallest {name} there is "
                    f"{smallest}, of {_called(least)}, and got {given}."
                )
        points = [p for p in self.front if all(p.metrics[name] <= most for name, most in budgets.items())]
        if not points:
            wanted = " and ".join(f"{name}<={metric_text(name, most)}" for name, most in budgets.items())
            if not self.front:
                raise SettingsError(f"a point must be on the front to be picked but {self.why_none}.")
            raise SettingsError(f"budgets must be met by a point of the front but none holds {wanted}.")
        return points

    def _at_target(self, points: list[ParetoModel]) -> ParetoModel | None:
        """The point that answers the target, judged on validation; None where there is none."""
        if self.target is None:
            return None
        base = self.reference.metrics
        holding = [p for p in points if p.trial and self.target.violation(p.metrics, base) <= 0]
        if set(self.target.metrics) <= set(STATIC):
            primary = self.objectives[0]
            sign = 1.0 if primary.maximised else -1.0
            return max(holding, key=lambda p: sign * p.metrics[primary.metric], default=None)
        return min(holding, key=lambda p: p.metrics[self.first_cost], default=None)

    def _by_drop(self, points: list[ParetoModel], max_drop: float | None, sure: bool) -> ParetoModel:
        if max_drop is None or not max_drop >= 0:
            raise SettingsError(f"max_drop must be at least 0 but got {max_drop}.")
        primary = self.objectives[0].metric
        margin = {p.trial: Z95_ONE_SIDED * self._drop_error(p) if sure else 0.0 for p in points}
        close = [p for p in points if self._drop(p) + margin[p.trial] <= max_drop + 1e-12]
        if close:
            return min(close, key=self._cost)
        rows = self.reference.validation_rows
        certainty = f" with 95 % certainty, on {rows} validation rows" if sure else ""
        remedy = " (give a larger max_drop, or more validation rows)" if sure else ""
        raise SettingsError(
            f"max_drop must be met by a point of the front but no point is within {max_drop} of "
            f"the reference's {primary} {self.reference.metrics[primary]:.4f}{certainty}{remedy}."
        )

    def _drop(self, point: ParetoModel) -> float:
        """Loss of the primary objective against the reference."""
        primary = self.objectives[0]
        sign = 1.0 if primary.maximised else -1.0
        return sign * (self.reference.metrics[primary.metric] - point.metrics[primary.metric])

    def _drop_error(self, point: ParetoModel) -> float:
        """Standard error of `_drop`: of the paired differences over the same resamples; infinite if unknown.

        Where two models are right on the same rows, no resample tells them apart; that bounds the share of
        rows on which they differ by 3/n with 95 % certainty (Hanley & Lippman-Hand, *If Nothing Goes Wrong,
        Is Everything All Right?*, JAMA 249, 1983), not by 0.
        """
        if point.trial == 0:
            return 0.0
        metric = self.objectives[0].metric
        own, base = (np.asarray(p.replicates.get(metric, ())) for p in (point, self.reference))
        if len(own) != len(base) or len(own) < REPLICATES:
            return math.inf
        deviation = float(np.std(own - base, ddof=1))
        if metric == "accuracy":
            return max(deviation, 3 / (Z95_ONE_SIDED * max(1, point.validation_rows)))
        return deviation or math.inf

    def _by_tau(self, points: list[ParetoModel], tau: float | None) -> ParetoModel:
        if tau is None or not 0 <= tau <= 1:
            raise SettingsError(f"tau must be in [0, 1] but got {tau}.")
        primary = self.objectives[0]
        sign = 1.0 if primary.maximised else -1.0

        def score(p: ParetoModel) -> float:
            return tau * sign * p.metrics[primary.metric] + (1 - tau) * (1 - self._cost(p))

        return max(points, key=score)

    def _cost(self, point: ParetoModel) -> float:
        """Mean ratio to the reference over the other objectives, inverted where they are maximised;
        of bytes where there are none."""
        others = self.objectives[1:] or (Objective("bytes", "minimize"),)
        costs = []
        for objective in others:
            ratio = point.ratios.get(objective.metric, 1.0)
            costs.append(1 / max(ratio, 1e-12) if objective.maximised else ratio)
        return sum(costs) / len(costs)


def _called(point: ParetoModel) -> str:
    return f"trial {point.trial}" if point.trial else "the reference"


def _compressed(points: Iterable[ParetoModel]) -> list[ParetoModel]:
    return [point for point in points if point.trial != 0]


def ratios(metrics: Mapping[str, float], reference: Mapping[str, float]) -> dict[str, float]:
    """Each metric over the reference's; metrics that are 0 there are left out."""
    return {
        name: value / reference[name]
        for name, value in metrics.items()
        if reference.get(name) and math.isfinite(value)
    }
