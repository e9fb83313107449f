"""One trial as it runs in a notebook: no scheduler, a checkpoint measured as loaded."""

from __future__ import annotations

import json
import multiprocessing
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import onnx
import pytest
import torch
from safetensors.torch import load_file
from torch import Tensor, nn
from torch.utils.data import DataLoader, IterableDataset, TensorDataset
from torchmetrics.classification import MulticlassF1Score

import autocompress as ac
from autocompress.checkpoint import open_checkpoint
from autocompress.checkpoint.rebuilding import read_edits
from autocompress.errors import CheckpointError, DivergedError, ProofError, SettingsError, TaskError
from autocompress.graph import analysis
from autocompress.graph.costs import layer_macs
from autocompress.measure import measure_split
from autocompress.methods.base import Method, Session
from autocompress.surgery import KeepChannels
from autocompress.surgery.deployed import Deploy
from autocompress.surgery.plain_weights import FoldWeight
from autocompress.task.checks import fresh_model
from autocompress.training.loop import Plain, Trainer
from autocompress.trial import (
    CompressedStage,
    Measuring,
    Reference,
    Stage,
    TrialConfig,
    TrialResult,
    compressing_epochs,
    load_state,
    make_method,
    run_trial,
    rung_metrics,
    stages,
    train_reference,
)
from autocompress.trial.rungs import RungMeter
from tests.conftest import Residual

CONFIG = TrialConfig((Stage("alcn", {"initial_ratio": 0.3}),), epochs=2)


@pytest.fixture
def reference(residual_task: ac.Task, tmp_path: Path) -> Reference:
    checkpoint = train_reference(residual_task, tmp_path / "reference", Measuring())
    return Reference.of(checkpoint, residual_task.model())


def test_stored_metrics_are_those_of_the_loaded_program(
    residual_task: ac.Task, reference: Reference, tmp_path: Path
) -> None:
    result = run_trial(residual_task, reference, CONFIG, tmp_path / "0001")
    checkpoint = open_checkpoint(tmp_path / "0001")
    assert checkpoint.manifest["metrics"] == result.metrics
    scores = measure_split(checkpoint.load(), residual_task.val, residual_task)
    assert scores.values == {"accuracy": result.metrics["accuracy"]}
    assert checkpoint.manifest["errors"] == result.errors == scores.errors
    assert checkpoint.manifest["replicates"] == result.replicates == scores.replicates
    assert checkpoint.manifest["validation_rows"] == scores.rows == 96
    assert checkpoint.manifest["class_counts"] == [list(counts) for counts in scores.classes]
    layers = checkpoint.manifest["layers"]
    assert [layer["name"] for layer in layers] == ["stem", "branch", "depthwise", "side", "head"]
    assert all(layer["params"] <= result.metrics["params"] for layer in layers)
    assert result.metrics["bytes"] == (tmp_path / "0001" / "model.pt2").stat().st_size
    assert result.metrics["params"] < 0.7 * reference.metrics["params"]
    assert checkpoint.manifest["check"]["max_relative_difference"] == result.difference < 1e-4
    assert TrialConfig.from_json(checkpoint.manifest["config"]) == CONFIG
    assert 0 < result.step_seconds < result.seconds


class WithDropout(Residual):
    """A module that returns its input in evaluation, which the stored program must not show."""

    def __init__(self) -> None:
        super().__init__()
        self.dropout = nn.Dropout(0.2)

    def forward(self, x: Tensor) -> Tensor:
        return super().forward(self.dropout(x) + x)


def test_onnx_files_tell_classes_and_normalisation_as_they_are_measured(
    residual_task: ac.Task, tmp_path: Path
) -> None:
    spec = replace(residual_task.input, scale=1 / 255, mean=(0.5,), std=(0.25,))
    task = replace(residual_task, input=spec, classes=["a", "b", "c", "d", "e"])
    checkpoint = train_reference(
        task.with_recipe(epochs=1), tmp_path / "reference", Measuring(artifact="onnx")
    )
    told = {
        entry.key: json.loads(entry.value)
        for entry in onnx.load(checkpoint.path / "model.onnx").metadata_props
    }
    assert told["class_names"] == ["a", "b", "c", "d", "e"]
    assert told["normalization"] == {"scale": 1 / 255, "mean": [0.5], "std": [0.25], "embedded": False}
    assert checkpoint.manifest["metrics"]["bytes"] == (checkpoint.path / "model.onnx").stat().st_size


@pytest.mark.parametrize("model", [Residual, WithDropout])
def test_a_trial_exports_once_and_analyses_once(
    model: type[nn.Module], residual_task: ac.Task, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The second of two trials of one structure: the reference was analysed by the first."""
    residual_task = replace(residual_task, model=model)
    checkpoint = train_reference(residual_task, tmp_path / "reference", Measuring())
    reference = Reference.of(checkpoint, residual_task.model())
    nodes = torch.export.load(checkpoint.artifact_file("pt2")).graph.nodes
    assert not [node for node in nodes if "clone" in str(node.target)]
    run_trial(residual_task, reference, CONFIG, tmp_path / "0001")
    calls: Counter[str] = Counter()

    def count(owner: Any, name: str) -> None:
        counted = getattr(owner, name)

        def counting(*arguments: Any, **options: Any) -> Any:
            calls[name] += 1
            return counted(*arguments, **options)

        monkeypatch.setattr(owner, name, counting)

    count(torch.export, "export")
    count(torch.export, "load")
    count(analysis, "prove_groups")
    run_trial(residual_task, reference, replace(CONFIG, lr_scale=0.5), tmp_path / "0002")
    assert calls == {"export": 1, "load": 1}
    calls.clear()
    stages = (Stage("alcn", {"initial_ratio": 0.5}), Stage("alds", {"keep": 0.6}))
    run_trial(residual_task, reference, replace(CONFIG, stages=stages, epochs=3), tmp_path / "0003")
    # What the second stage begins with is a model that nobody has seen, and so is what it ends with.
    assert calls == {"export": 2, "load": 1, "prove_groups": 2}


def test_a_model_that_is_shut_out_is_measured_without_a_file(
    residual_task: ac.Task, reference: Reference, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    written = run_trial(residual_task, reference, CONFIG, tmp_path / "0001")
    asked: list[dict[str, float]] = []

    def shut_out(metrics: Mapping[str, float], replicates: Mapping[str, Sequence[float]]) -> bool:
        assert replicates == written.replicates
        asked.append(dict(metrics))
        return True

    result = run_trial(residual_task, reference, CONFIG, tmp_path / "0002", shut_out=shut_out)
    assert not (tmp_path / "0002").exists()
    assert result.estimated == ["bytes", "weight_bytes"]
    assert written.estimated == []
    sizes = {"bytes", "weight_bytes"}
    assert {k: v for k, v in result.metrics.items() if k not in sizes} == {
        k: v for k, v in written.metrics.items() if k not in sizes
    }
    # What batch norms may become is not foretold, nor how well weights deflate that they are folded into.
    assert 0.9 < result.metrics["weight_bytes"] / written.metrics["weight_bytes"] < 1.05
    assert result.metrics["bytes"] == pytest.approx(written.metrics["bytes"], rel=0.1)
    assert asked[0]["bytes"] == asked[0]["weight_bytes"] < written.metrics["bytes"]


def test_who_is_not_shut_out_or_needs_its_file_has_one(
    residual_task: ac.Task, reference: Reference, tmp_path: Path
) -> None:
    kept = run_trial(residual_task, reference, CONFIG, tmp_path / "0001", shut_out=lambda m, r: False)
    onnx = replace(Measuring(), artifact="onnx")
    assert not onnx.without_file
    assert not Measuring(("accuracy", "latency")).without_file
    assert open_checkpoint(tmp_path / "0001").manifest["metrics"] == kept.metrics
    assert kept.metrics["bytes"] == (tmp_path / "0001" / "model.pt2").stat().st_size


def test_acc_comp_has_the_error_of_its_accuracy(
    residual_task: ac.Task, reference: Reference, tmp_path: Path
) -> None:
    measuring = Measuring(("acc_comp", "bytes"), tau=0.8)
    result = run_trial(residual_task, reference, CONFIG, tmp_path / "0001", measuring)
    assert result.errors["acc_comp"] == pytest.approx(0.8 * result.errors["accuracy"])
    saved = 1 - result.metrics["params"] / reference.metrics["params"]
    assert result.replicates["acc_comp"] == pytest.approx(
        [0.8 * accuracy + 0.2 * saved for accuracy in result.replicates["accuracy"]], abs=2e-6
    )


def test_results_are_json_and_an_unknown_error_is_left_out(
    residual_task: ac.Task, reference: Reference, tmp_path: Path
) -> None:
    metrics = {"constant": lambda o, t: 0.5, "f1": MulticlassF1Score(5)}
    task = replace(residual_task, metrics=metrics)
    result = run_trial(task, reference, CONFIG, tmp_path / "0001", Measuring(("f1", "bytes")))
    assert set(result.metrics) >= {"constant", "f1"}
    assert set(result.errors) == {"f1"}
    assert TrialResult(**json.loads(json.dumps(asdict(result), allow_nan=False))) == result
    json.dumps(open_checkpoint(tmp_path / "0001").manifest, allow_nan=False)


def test_the_same_configuration_gives_the_same_model(
    residual_task: ac.Task, reference: Reference, tmp_path: Path
) -> None:
    results = [run_trial(residual_task, reference, CONFIG, tmp_path / name) for name in ("a", "b")]
    assert results[0].metrics == results[1].metrics
    assert results[0].history == results[1].history


def test_a_trial_that_diverges_leaves_no_checkpoint(
    residual_task: ac.Task, reference: Reference, tmp_path: Path
) -> None:
    broken = replace(residual_task, loss=lambda outputs, targets: outputs.sum() / 0)
    with pytest.raises(DivergedError):
        run_trial(broken, reference, CONFIG, tmp_path / "runs" / "0001")
    assert not (tmp_path / "runs").exists()
    nan = replace(residual_task, metrics={"score": lambda outputs, targets: float("nan")})
    with pytest.raises(DivergedError, match="metric score is nan"):
        run_trial(nan, reference, CONFIG, tmp_path / "runs" / "0001")
    assert list((tmp_path / "runs").iterdir()) == []


def test_own_weights_are_the_reference_untrained(residual_task: ac.Task, tmp_path: Path) -> None:
    torch.manual_seed(3)
    weights = residual_task.model().state_dict()
    checkpoint = train_reference(replace(residual_task, weights=weights), tmp_path / "r", Measuring())
    assert checkpoint.manifest["history"] == []
    assert torch.equal(checkpoint.load().state_dict()["head.weight"], weights["head.weight"])


def test_weights_that_do_not_fit_are_refused(residual_task: ac.Task) -> None:
    with pytest.raises(TaskError, match="weights must fit the model but: Missing key"):
        load_state(residual_task.model(), {})


def test_methods_have_their_share_of_a_trial_and_an_epoch_or_half_is_left_to_repair(
    residual_task: ac.Task,
) -> None:
    def epochs(trial: int, share: float, stages: int = 1, batches: int = 500) -> float:
        trainer = Trainer(residual_task, trial)
        trainer.__dict__["steps_per_epoch"] = batches
        return compressing_epochs(trainer, share, stages)

    assert [epochs(10, share) for share in (0.25, 0.5, 1.0)] == [2.5, 5, 9]
    assert epochs(3, 0.05) == pytest.approx(0.15)
    # 50 steps for each stage, where an epoch has as many.
    assert epochs(2, 0.01, stages=3) == pytest.approx(0.3)
    assert epochs(4, 0.1, batches=20) == 1
    assert epochs(4, 0.1, stages=2, batches=20) == 2
    assert epochs(1, 0.9) == epochs(1, 0.9, batches=20) == 0.5
    assert epochs(5, 0.5, stages=0) == epochs(0, 0.5) == 0


@pytest.mark.parametrize(("methods", "epochs"), [
    ([], []),
    ([ac.Alcn()], [5]),
    ([ac.Alcn(), ac.Lc()], [2.5, 2.5]),
    ([ac.Qat()], [10]),
    ([ac.Alcn(), ac.Qat()], [5, 5]),
    ([ac.Qat(), ac.Lc()], [2.5, 2.5]),
])  # fmt: skip
def test_what_fine_tuning_would_undo_trains_to_the_end(
    methods: list[Method], epochs: list[float], residual_task: ac.Task, monkeypatch: pytest.MonkeyPatch
) -> None:
    seen = []

    def stage(model: nn.Module, task: ac.Task, method: Method, trainer: Trainer, epochs: float) -> Any:
        seen.append(epochs)
        return CompressedStage(model, (), 0.0)

    monkeypatch.setattr(stages, "compress_stage", stage)
    trainer = Trainer(residual_task, 10)
    fitted = []
    monkeypatch.setattr(trainer, "fit", lambda model, epochs: fitted.append(epochs))
    stages.compress_in_stages(residual_task.model(), residual_task, methods, trainer, 0.5)
    assert seen == epochs
    assert fitted == [10 - sum(epochs)]


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"epochs": -1}, "epochs must be at least 0 but got -1"),
        ({"parent": -1}, "parent must be at least 0 but got -1"),
        ({"compress_share": 0.0}, r"compress_share must be in \(0, 1\] but got 0\.0"),
        ({"lr_scale": -1.0}, r"lr_scale must be greater than 0 but got -1\.0"),
    ],
)
def test_configurations_out_of_range_are_refused(options: dict[str, object], message: str) -> None:
    with pytest.raises(SettingsError, match=message):
        TrialConfig(**options)


def test_unknown_methods_and_fields_are_refused() -> None:
    with pytest.raises(SettingsError, match=r"methods must be among .*alcn.* but got 'nonsense'"):
        make_method(Stage("nonsense", {}))
    with pytest.raises(SettingsError, match="config of alcn is not usable"):
        make_method(Stage("alcn", {"nonsense": 1}))


def test_a_trial_whose_edits_lose_a_tensor_fails(
    residual_task: ac.Task, reference: Reference, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    described = KeepChannels.to_json

    def forgetful(edit: KeepChannels) -> dict[str, Any]:
        return {**described(edit), "kept": described(edit)["kept"][1:]}

    monkeypatch.setattr(KeepChannels, "to_json", forgetful)
    with pytest.raises(CheckpointError, match=r"must be of a Residual like this one but: .*size mismatch"):
        run_trial(residual_task, reference, CONFIG, tmp_path / "runs" / "0001")
    assert list((tmp_path / "runs").iterdir()) == []


def test_a_trial_whose_edits_make_another_model_of_the_same_tensors_fails(
    residual_task: ac.Task, reference: Reference, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    carried_out = KeepChannels.apply

    def careless(edit: KeepChannels, model: nn.Module, example: Tensor) -> nn.Module:
        edited: Any = carried_out(edit, model, example)
        edited.norm.eps = 10.0
        return edited

    monkeypatch.setattr(KeepChannels, "apply", careless)
    with pytest.raises(ProofError, match="rebuilding the model from edits and weights must leave outputs"):
        run_trial(residual_task, reference, CONFIG, tmp_path / "runs" / "0001")
    assert list((tmp_path / "runs").iterdir()) == []


def with_rungs(
    task: ac.Task, reference: Reference, config: TrialConfig, folder: Path, rungs: tuple[int, ...]
) -> tuple[TrialResult, list[Mapping[str, float]], dict[str, Tensor]]:
    """A trial's result, what it reported, and the tensors that it stored."""
    entries: list[Mapping[str, float]] = []
    result = run_trial(task, reference, config, folder, replace(Measuring(), rungs=rungs), entries.append)
    return result, entries, load_file(folder / "weights.safetensors")


@pytest.mark.parametrize("methods", [("depth", "alcn"), ("autoplastic",), ("alds", "lc")], ids="-".join)
def test_what_is_measured_at_rungs_leaves_no_trace_in_a_trial(
    methods: tuple[str, ...], residual_task: ac.Task, reference: Reference, tmp_path: Path
) -> None:
    rows = TensorDataset(torch.randn(40, 3, 8, 8), torch.randint(5, (40,)))
    loader = DataLoader(rows, 16, shuffle=True, generator=torch.Generator())
    task = replace(residual_task, train=loader, val=DataLoader(rows, 16, shuffle=True))
    task = task.with_recipe(mixup=0.4)
    config = TrialConfig(tuple(Stage(method, {}) for method in methods), epochs=5, distill_weight=0.5)
    result, entries, tensors = with_rungs(task, reference, config, tmp_path / "a", (1, 2, 3, 4))
    plain, without, expected = with_rungs(task, reference, config, tmp_path / "b", ())
    assert [bool(rung_metrics(entry)) for entry in entries] == [True, True, True, True, False]
    assert not any(rung_metrics(entry) for entry in without)
    assert result.metrics == plain.metrics
    assert result.history == plain.history
    assert tensors.keys() == expected.keys()
    assert all(torch.equal(tensors[name], expected[name]) for name in expected)


def test_a_teacher_of_the_tasks_own_stands_for_any_other(
    residual_task: ac.Task, reference: Reference, tmp_path: Path
) -> None:
    """Trial 7, which the configuration names, has no checkpoint to learn from."""

    class Teacher(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.net, self.seen = residual_task.model(), []

        def forward(self, x: Tensor) -> Tensor:
            self.seen.append((self.training, len(x)))
            return self.net(x)

    made: list[Teacher] = []

    def make() -> Teacher:
        made.append(Teacher())
        return made[-1]

    config = replace(CONFIG, epochs=1, distill_weight=0.5, teacher=7)
    run_trial(replace(residual_task, teacher=make), reference, config, tmp_path / "0001")
    assert made[0].seen == [(False, 32)] * 3
    given = Teacher()
    run_trial(replace(residual_task, teacher=given), reference, config, tmp_path / "0002")
    # It learned from a copy.
    assert (given.training, given.seen) == (True, [])
    run_trial(replace(residual_task, teacher=make), reference, replace(CONFIG, epochs=1), tmp_path / "0003")
    assert len(made) == 1


class Stream(IterableDataset[tuple[Tensor, Tensor]]):
    """Endless images, from a generator of its own that goes on from pass to pass."""

    def __init__(self) -> None:
        self.generator = torch.Generator().manual_seed(4)

    def __iter__(self) -> Iterator[tuple[Tensor, Tensor]]:
        while True:
            images = torch.randn(3, 8, 8, generator=self.generator)
            yield images + torch.rand(()), torch.tensor(int(images.mean() > 0))


@pytest.mark.parametrize(
    "options", [{}, {"num_workers": 1, "persistent_workers": True}], ids=["here", "kept"]
)
def test_trials_on_an_endless_stream_are_equal_whatever_was_drawn_before(
    options: dict[str, Any], residual_task: ac.Task, reference: Reference, tmp_path: Path
) -> None:
    task = replace(residual_task, train=DataLoader(Stream(), 8, **options))
    task = task.with_recipe(steps_per_epoch=3)
    config = replace(CONFIG, epochs=3)
    with task.opened() as opened:
        result, _, tensors = with_rungs(opened, reference, config, tmp_path / "a", (1, 2))
    with opened.opened() as opened_again:
        again, _, expected = with_rungs(opened_again, reference, config, tmp_path / "b", ())
    assert result.metrics == again.metrics
    assert result.history == again.history
    assert len({entry["loss"] for entry in result.history}) == 3
    assert all(torch.equal(tensors[name], expected[name]) for name in expected)
    assert multiprocessing.active_children() == []


def test_a_rung_tells_what_a_trial_that_ends_there_measures(
    residual_task: ac.Task, reference: Reference, tmp_path: Path
) -> None:
    entries: list[Mapping[str, float]] = []
    measuring = replace(Measuring(("accuracy", "acc_comp", "bytes")), rungs=(2, 3))
    result = run_trial(
        residual_task,
        reference,
        replace(CONFIG, epochs=3),
        tmp_path / "0001",
        measuring,
        entries.append,
        shut_out=lambda metrics, replicates: True,
    )
    assert rung_metrics(entries[2]) == result.metrics
    # The gates stood elsewhere, where the method's training was not at its end.
    assert rung_metrics(entries[1]).keys() == result.metrics.keys()
    assert result.metrics["macs"] < reference.metrics["macs"]


def test_a_rung_of_a_method_is_of_the_model_that_it_would_finish_with(
    residual_task: ac.Task, reference: Reference
) -> None:
    torch.manual_seed(0)
    session = ac.Alcn(initial_ratio=0.5).start(residual_task.model(), residual_task)
    meter = RungMeter(residual_task, reference, replace(Measuring(), rungs=(1, 2)))
    seen: list[Mapping[str, float]] = []

    def watch(epoch: int, watched: Session) -> Mapping[str, float]:
        seen.append(meter(epoch, watched))
        return seen[-1]

    trainer = Trainer(residual_task, 2, watch=watch)
    trainer.fit(session.model, 2, session)
    small = session.finish().model
    assert meter(3, session) == {}
    assert rung_metrics(seen[1])["params"] == sum(p.numel() for p in small.parameters())
    assert rung_metrics(seen[1])["macs"] == layer_macs(small, residual_task.example())[""]


def test_latency_is_not_measured_at_a_rung(residual_task: ac.Task, reference: Reference) -> None:
    measuring = replace(Measuring(("accuracy", "latency")), rungs=(1,))
    metrics = rung_metrics(RungMeter(residual_task, reference, measuring)(1, Plain(residual_task.model())))
    assert metrics.keys() == {"accuracy", "bytes", "weight_bytes", "params", "macs"}


def test_what_a_rung_takes_counts_as_steps(residual_task: ac.Task, monkeypatch: pytest.MonkeyPatch) -> None:
    now = [0.0]
    monkeypatch.setattr("autocompress.training.loop.time", SimpleNamespace(perf_counter=lambda: now[0]))

    def watch(epoch: int, session: Session) -> Mapping[str, float]:
        now[0] += 7.0
        return {}

    trainer = Trainer(residual_task, 2, watch=watch)
    trainer.fit(residual_task.model(), 2)
    assert trainer.clock.seconds == 14.0


class Branched(nn.Module):
    """A convolution with weight norm, two branches that can be merged, and a head that only trains."""

    class Branches(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.wide, self.narrow = nn.Conv2d(8, 8, 3, padding=1), nn.Conv2d(8, 8, 1)
            self.merged: nn.Module | None = None

        def forward(self, x: Tensor) -> Tensor:
            return self.wide(x) + self.narrow(x) if self.merged is None else self.merged(x)

        def reparameterize(self) -> None:
            self.merged = nn.Conv2d(8, 8, 3, padding=1)
            self.merged.weight.data = self.wide.weight + nn.functional.pad(self.narrow.weight, (1, 1, 1, 1))
            self.merged.bias.data = self.wide.bias + self.narrow.bias
            del self.wide, self.narrow

    def __init__(self) -> None:
        super().__init__()
        self.enter = nn.utils.parametrizations.weight_norm(nn.Conv2d(3, 8, 3, padding=1))
        self.body, self.head, self.auxiliary = self.Branches(), nn.Linear(8, 5), nn.Linear(8, 5)

    def forward(self, x: Tensor) -> Tensor:
        features = torch.relu(self.body(torch.relu(self.enter(x)))).mean((2, 3))
        scores = self.head(features)
        return scores + 0 * self.auxiliary(features) if self.auxiliary is not None else scores


def without_auxiliary(model: nn.Module) -> nn.Module:
    model.auxiliary = None
    return model


def test_trials_begin_with_the_prepared_reference_and_rebuild_prepares_alike(
    residual_task: ac.Task, tmp_path: Path
) -> None:
    torch.manual_seed(0)
    trained = Branched()
    x = residual_task.example(8)
    expected = trained.eval()(x).detach()
    task = replace(residual_task, model=Branched, weights=trained.state_dict(), prepare=without_auxiliary)
    stored = train_reference(task, tmp_path / "reference", Measuring())
    assert stored.manifest["prepare"] == "without_auxiliary"
    assert torch.allclose(stored.load()(x), expected, atol=1e-5)
    reference = Reference.of(stored, fresh_model(task))
    preparing = (FoldWeight("enter", "weight", "weight norm"), Deploy("reparameterize", ("body",)))
    assert reference.edits == preparing
    assert set(reference.state) == {
        f"{layer}.{tensor}" for layer in ("enter", "body.merged", "head") for tensor in ("weight", "bias")
    }
    run_trial(task, reference, CONFIG, tmp_path / "0001", trials=tmp_path)
    lc = TrialConfig((Stage("lc", {}),), parent=1, epochs=1, teacher=0, distill_weight=0.5)
    run_trial(task, reference, lc, tmp_path / "0002", trials=tmp_path)
    for folder in ("reference", "0001", "0002"):
        checkpoint = open_checkpoint(tmp_path / folder)
        assert tuple(read_edits(checkpoint.path))[:2] == preparing
        rebuilt = ac.rebuild(Branched(), checkpoint.path, prepare=without_auxiliary).eval()
        assert torch.allclose(rebuilt(x), checkpoint.load()(x), atol=1e-5)
        with pytest.raises(CheckpointError, match="must be without_auxiliary, which its task had, but"):
            ac.rebuild(Branched(), checkpoint.path)


def test_a_preparation_that_the_task_had_not_is_refused(
    residual_task: ac.Task, reference: Reference, tmp_path: Path
) -> None:
    with pytest.raises(CheckpointError, match="must be None: its task had none, but got without_auxiliary"):
        ac.rebuild(Residual(), tmp_path / "reference", prepare=without_auxiliary)


def test_compress_prepares_what_it_is_given_and_says_so_in_its_edits(
    residual_task: ac.Task, tmp_path: Path
) -> None:
    done = ac.compress(Branched(), replace(residual_task, model=Branched), ac.Alcn(initial_ratio=0.5))
    assert [edit.kind for edit in done.edits[:2]] == ["fold_weight", "deploy"]
    done.save(tmp_path / "saved")
    x = residual_task.example(8)
    assert torch.equal(ac.rebuild(Branched(), tmp_path / "saved").eval()(x), done.model(x))
