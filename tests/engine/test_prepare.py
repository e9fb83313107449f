"""What is refused before anything is trained or written."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn
from torch.utils.data import DataLoader, IterableDataset, TensorDataset

import autocompress as ac
from autocompress.engine.identity import identity
from autocompress.engine.prepare import prepare
from autocompress.engine.settings import Settings, parse_amount, parse_duration
from autocompress.errors import TaskError
from tests.conftest import Residual


class BurnedBatch(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.head = nn.Linear(192, 5)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(x.reshape(2, -1)) if x.shape[0] == 2 else self.head(x.flatten(1))


def bad_labels() -> DataLoader[object]:
    labels = torch.zeros(40, dtype=torch.long)
    labels[-1] = 9
    return DataLoader(TensorDataset(torch.randn(40, 3, 8, 8), labels), batch_size=8)


class Endless(IterableDataset[tuple[Tensor, int]]):
    def __iter__(self) -> Iterator[tuple[Tensor, int]]:
        while True:
            yield torch.randn(3, 8, 8), 0


def stream() -> DataLoader[object]:
    return DataLoader(Endless(), batch_size=8)


def rows() -> TensorDataset:
    return TensorDataset(torch.randn(40, 3, 8, 8), torch.zeros(40, dtype=torch.long))


def one_logit() -> nn.Module:
    return nn.Sequential(nn.Flatten(), nn.Linear(192, 1))


def regression() -> DataLoader[object]:
    return DataLoader(TensorDataset(torch.randn(40, 3, 8, 8), torch.randn(40, 1)), batch_size=8)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"model": Residual()}, "model must be a function that makes a new nn.Module"),
        ({"model": lambda: "no"}, "must make an nn.Module but made a str"),
        ({"train": []}, "train must yield at least one batch"),
        ({"train": [{"x": 1}]}, "train: batches that are mappings must have one of labels"),
        ({"train": iter([])}, "train must be iterable more than once but is a list_iterator"),
        ({"train": lambda: iter([])}, "train must be iterable more than once but is a list_iterator"),
        ({"train": stream()}, r"train must have a length, or Recipe\(steps_per_epoch=\.\.\.\) say"),
        ({"train": stream, "weights": Residual().state_dict()}, "train must have a length, or Recipe"),
        (
            {"val": stream()},
            r"val must have a length, .* is a DataLoader of an IterableDataset .*FirstBatches\(val, 100\)",
        ),
        ({"test": stream}, "test must have a length, as nothing else says that it ends"),
        ({"val": rows()}, r"val must yield batches but is a TensorDataset.*DataLoader\(val, batch_size=64\)"),
        ({"train": rows}, "train must yield batches but is a TensorDataset, which holds rows"),
        (
            {"test": [(torch.randn(4, 3, 9), torch.zeros(4))]},
            r"test must yield inputs of the form that train's .*, but yields \(4, 3, 9\)",
        ),
        (
            {"model": one_logit, "train": regression(), "val": regression(), "loss": nn.MSELoss()},
            r"metrics must be given where outputs are not \(N, classes, \.\.\.\)",
        ),
        ({"val": []}, "val must yield at least one batch"),
        ({"loss": nn.CrossEntropyLoss(reduction="none")}, "loss must return a scalar tensor"),
        ({"loss": nn.MSELoss()}, "loss must accept outputs"),
        ({"loss": lambda o, t: (o.argmax(1) != t).float().mean()}, "loss must have a gradient"),
        ({"metrics": {"accuracy": lambda o, t: o.nothing}}, "metric 'accuracy' must accept outputs"),
        ({"model": BurnedBatch}, "its code fixes a size that must stay free"),
        ({"train": bad_labels()}, r"labels of the train split must be in \[0, 4\]"),
        ({"weights": {"stem.weight": torch.zeros(1)}}, "weights must fit the model"),
        ({"prepare": lambda model: None}, "prepare must return an nn.Module but returned NoneType"),
        (
            {"prepare": lambda model: model.fuse()},
            "prepare must take the model and return it prepared but: ",
        ),
        ({"teacher": "resnet"}, "teacher must be or make an nn.Module but got a str"),
        ({"teacher": nn.Linear(3, 5)}, r"teacher must accept inputs of shape \(2, 3, 8, 8\) as the model"),
        ({"teacher": one_logit}, r"teacher must return what the model does, \(2, 5\), but returned \(2, 1\)"),
    ],
)
def test_tasks_that_cannot_work_are_refused(
    changes: dict[str, object], message: str, residual_task: ac.Task
) -> None:
    with pytest.raises(ac.UsageError, match=message):
        prepare(replace(residual_task, **changes), Settings())


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (
            {"exclude": ("stme",)},
            "^exclude must name layers of the model but 'stme' names none .did you mean ",
        ),
        ({"at_least": {"stme": 0.5}}, "^at_least must name layers of the model but 'stme' names none "),
        ({"exclude": ("*",)}, "^exclude must leave something to compress but names all 11 parameters that "),
        (
            {"exclude": ("stem", "side"), "methods": ("alcn",)},
            "^methods must fit the model but 'alcn' does not: no channel group of the model can be removed "
            r"\(autocompress inspect says which layers stay, and why\)",
        ),
    ],
)
def test_limits_that_cannot_be_are_refused(
    options: dict[str, object], message: str, residual_task: ac.Task
) -> None:
    with pytest.raises(ac.UsageError, match=message):
        prepare(residual_task, Settings(**options))


def test_a_model_that_is_frozen_as_a_whole_is_refused(residual_task: ac.Task) -> None:
    task = replace(residual_task, model=lambda: Residual().requires_grad_(False))
    with pytest.raises(TaskError, match=r"^the model must have a parameter that trains but all 11 are "):
        prepare(task, Settings())


def test_what_stays_is_said_and_left_out_of_what_spaces_see(residual_task: ac.Task) -> None:
    prepared = prepare(residual_task, Settings(exclude=("stem",), at_least={"side": 0.5}))
    assert prepared.notes == ("1 of 6 layers stay as they are: stem",)
    assert [(group.name, group.least) for group in prepared.profile.groups] == [("side", 3)]
    assert "stem" not in [layer.name for layer in prepared.profile.layers]
    assert prepared.analysis.frozen["branch"] == "its channels are coupled with 'stem': excluded by 'stem'"


def test_streams_with_an_end_are_prepared_without_a_pass(residual_task: ac.Task) -> None:
    task = replace(
        residual_task, train=stream(), val=ac.FirstBatches(stream(), 2), test=ac.FirstBatches(stream(), 3)
    )
    prepared = prepare(task.with_recipe(steps_per_epoch=5), Settings())
    assert prepared.task.batches_per_epoch == 5
    assert identity(prepared)["recipe"]["steps_per_epoch"] == 5


def test_a_task_object_takes_no_options_of_named_tasks(residual_task: ac.Task) -> None:
    with pytest.raises(ac.UsageError, match="model must not be given beside a Task object but got 'mlp'"):
        prepare(residual_task, Settings(model="mlp"))


def test_labels_that_the_loss_ignores_are_no_fault(residual_task: ac.Task) -> None:
    labels = torch.arange(40) % 5
    labels[-1] = -1
    train = DataLoader(TensorDataset(torch.randn(40, 3, 8, 8), labels), batch_size=8)
    prepare(replace(residual_task, train=train, loss=nn.CrossEntropyLoss(ignore_index=-1)), Settings())


@pytest.mark.parametrize(
    ("objectives", "wanted"),
    [
        ("accuracy,latency,bytes", ("accuracy>=0.9*ref", "latency|bytes<=ref")),
        ("bytes,accuracy", ("bytes<=ref",)),
        ("accuracy", ("accuracy>=0.9*ref",)),
    ],
)
def test_by_default_models_keep_accuracy_and_are_smaller_or_faster(
    residual_task: ac.Task, objectives: str, wanted: tuple[str, ...]
) -> None:
    prepared = prepare(residual_task, Settings(objectives=tuple(objectives.split(","))))
    assert prepared.settings.constraints == wanted


def test_naming_a_default_is_no_other_run() -> None:
    plain = identity(prepare("digits", Settings()))
    named = Settings(model="small_cnn", epochs=12, constraints=("accuracy>=0.9*ref", "bytes<=ref"))
    assert identity(prepare("digits", named)) == plain


def test_spaces_of_one_name_are_told_apart_by_their_path(residual_task: ac.Task, tmp_path: Path) -> None:
    for folder in ("a", "b"):
        (tmp_path / folder).mkdir()
        (tmp_path / folder / "alcn.py").write_text("def suggest(trial, profile):\n    return None\n")
    files = tuple(str(tmp_path / folder / "alcn.py") for folder in ("a", "b"))
    assert tuple(prepare(residual_task, Settings(spaces=files)).spaces) == files


def test_what_a_space_moves_by_is_tried_before_training(residual_task: ac.Task, tmp_path: Path) -> None:
    (tmp_path / "mine.py").write_text(
        "def suggest(t, p): ...\ndef move(profile, keep):\n    return profile.nothing\n"
    )
    with pytest.raises(ac.UsageError, match=r"must say by move\(profile, keep\) how to keep half but"):
        prepare(residual_task, Settings(spaces=(str(tmp_path / "mine.py"),)))


def test_weights_may_be_of_another_dtype(residual_task: ac.Task) -> None:
    weights = {k: v.to(torch.bfloat16) for k, v in Residual().state_dict().items()}
    prepared = prepare(replace(residual_task, weights=weights), Settings())
    assert torch.equal(prepared.model.stem.weight, weights["stem.weight"].float())


def test_whole_checkpoints_are_weights_and_a_search_says_what_was_taken(
    residual_task: ac.Task, tmp_path: Path
) -> None:
    state = Residual().state_dict()
    torch.save(
        {"state_dict": {f"module.{name}": value for name, value in state.items()}}, tmp_path / "w.ckpt"
    )
    prepared = prepare(replace(residual_task, weights=tmp_path / "w.ckpt"), Settings())
    assert torch.equal(prepared.model.stem.weight, state["stem.weight"])
    assert prepared.task.weights.keys() == state.keys()
    assert prepared.notes == (
        "weights are taken from 'state_dict', without the names of wrappers, as in 'module.stem.weight'",
    )


def test_metrics_are_tried_on_the_weights_that_were_given(residual_task: ac.Task) -> None:
    weights = Residual().state_dict()
    weights["head.weight"], weights["head.bias"] = torch.zeros(5, 224), torch.arange(5.0)
    seen: list[Tensor] = []

    def metric(outputs: Tensor, targets: Tensor) -> float:
        seen.append(outputs)
        return 0.0

    task = replace(residual_task, weights=weights, metrics={"accuracy": metric})
    prepare(task, Settings())
    assert torch.equal(seen[0], torch.arange(5.0).expand(96, 5))


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"trials": "ten"}, "trials must be of type int but got 'ten'"),
        ({"epochs": 1.5}, r"epochs must be of type int \| None but got 1\.5"),
        ({"early_stopping": 1}, "early_stopping must be of type bool but got 1"),
        ({"methods": ()}, "methods must name at least one method"),
        ({"cpus_per_trial": 0.0}, r"cpus_per_trial must be greater than 0 but got 0\.0"),
        ({"gpus_per_trial": -1.0}, r"gpus_per_trial must be at least 0 but got -1\.0"),
    ],
)
def test_settings_refuse_wrong_types_and_ranges(options: dict[str, object], message: str) -> None:
    with pytest.raises(ac.UsageError, match=message):
        Settings(**options)


@pytest.mark.parametrize(("text", "seconds"), [("90", 90), ("90s", 90), ("30m", 1800), ("0.5h", 1800)])
def test_durations_are_seconds(text: str, seconds: float) -> None:
    assert parse_duration("timeout", text) == seconds


@pytest.mark.parametrize(
    ("name", "text", "amount"),
    [
        ("bytes", "9kB", 9000),
        ("bytes", "1.5 MB", 1.5e6),
        ("bytes", "100", 100),
        ("bytes", "9K", 9000),
        ("bytes", "7B", 7),
        ("memory", "2MiB", 2 * 1024**2),
        ("params", "10k", 10_000),
        ("macs", "1.5M", 1.5e6),
    ],
)
def test_amounts_are_read_as_tables_print_them(name: str, text: str, amount: float) -> None:
    assert parse_amount(name, text) == amount


@pytest.mark.parametrize(
    ("name", "text"), [("bytes", "nan"), ("bytes", "-1"), ("bytes", "3iB"), ("macs", "3MB")]
)
def test_amounts_of_another_form_are_refused(name: str, text: str) -> None:
    with pytest.raises(ac.UsageError, match=f"{name} must read like '9000'"):
        parse_amount(name, text)


def test_a_search_says_where_validation_comes_from(residual_task: ac.Task) -> None:
    carved = prepare(replace(residual_task, val=None), Settings())
    assert carved.notes == ("validation is 10 rows carved from train, stratified",)
    weights = residual_task.model().state_dict()
    test = residual_task.val
    halved = prepare(replace(residual_task, val=None, test=test, weights=weights), Settings(seed=3))
    assert halved.notes[0] == "the reference has the weights that were given, and is not trained"
    assert halved.notes[1].startswith("validation is half of test, 48 rows")
    assert prepare(residual_task, Settings()).notes == ()


@pytest.mark.parametrize(("capability", "emulated"), [("AVX2", True), ("DEFAULT", True), ("AVX512", False)])
def test_a_search_says_where_a_cpu_has_no_bfloat16(
    capability: str, emulated: bool, residual_task: ac.Task, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(torch.backends.cpu, "get_cpu_capability", lambda: capability)
    halves = residual_task.with_recipe(mixed_precision=True)
    notes = prepare(halves, Settings()).notes
    assert [note.startswith("mixed_precision trains in bfloat16") for note in notes] == [True] * emulated
    assert prepare(halves, Settings(ray_address="cluster:6379")).notes == ()
    assert prepare(residual_task, Settings()).notes == ()


def test_macs_of_a_model_that_has_none_are_no_objective() -> None:
    rows = DataLoader(TensorDataset(torch.randint(0, 20, (64, 5)), torch.arange(64) % 3), batch_size=16)

    class Means(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.words = nn.Embedding(20, 3)

        def forward(self, x: Tensor) -> Tensor:
            return self.words(x).mean(1)

    task = ac.Task(Means, rows, val=rows)
    with pytest.raises(
        ac.UsageError, match=r"must be on what the model has but it has no macs, .* use bytes"
    ):
        prepare(task, Settings(objectives=("accuracy", "macs")))
    assert prepare(task, Settings(objectives=("accuracy", "bytes"))).profile.macs == 0


@pytest.mark.parametrize(
    ("target", "said"),
    [
        ("bytes>=0.5*ref", "target must read like 'bytes<=…', as less of bytes is better"),
        ("accuracy<=0.5", "target must read like 'accuracy>=…', as more of accuracy is better"),
    ],
)
def test_a_target_asks_for_what_is_better(target: str, said: str, residual_task: ac.Task) -> None:
    with pytest.raises(ac.UsageError, match=f"^{said}, but got"):
        prepare(residual_task, Settings(target=target))


def test_what_a_space_tells_to_suggest_has_names(residual_task: ac.Task) -> None:
    def suggest(trial: Any, profile: ac.ModelProfile) -> Any:
        return ac.Alcn.Config(initial_ratio=trial.suggest_float("ratio", 0.2, 0.8))

    suggest.move = lambda profile, keep: 5  # type: ignore[attr-defined]
    with pytest.raises(ac.UsageError, match=r"^space 'suggest' must return by move.* but returned 5\.$"):
        prepare(residual_task, Settings(spaces=(suggest,)))


def own_space(told: Mapping[str, Any]) -> Any:
    def suggest(t: Any, p: ac.ModelProfile) -> Any:
        ratio = t.suggest_float("ratio", 0.2, 0.8)
        if ratio == 0.7:
            raise ValueError("0.7 is too much")
        return ac.Alcn.Config(initial_ratio=ratio, lambda_sparse=t.suggest_float("left_open", 0, 1))

    suggest.move = lambda profile, keep: told  # type: ignore[attr-defined]
    return suggest


def test_a_name_that_a_move_gives_and_nothing_asks_for_is_told(residual_task: ac.Task) -> None:
    aside = "move names what suggest does not ask for, which is left aside: 'ratoi' of space 'suggest'"
    assert aside in prepare(residual_task, Settings(spaces=(own_space({"ratoi": 0.5}),))).notes
    notes = prepare(residual_task, Settings(spaces=(own_space({"ratio": 0.5}),))).notes
    assert not [note for note in notes if "left aside" in note]


def test_a_move_from_the_reference_that_cannot_be_suggested_is_refused(residual_task: ac.Task) -> None:
    said = r"^space 'suggest' must suggest for the model what its move says but: .*0\.7 is too much"
    with pytest.raises(ac.UsageError, match=said):
        prepare(residual_task, Settings(spaces=(own_space({"ratio": 0.7}),)))


def test_the_order_of_methods_makes_no_other_run(residual_task: ac.Task) -> None:
    ways = [prepare(residual_task, Settings(methods=order)) for order in (("lc", "alcn"), ("alcn", "lc"))]
    assert ways[0].settings.methods == ways[1].settings.methods


def test_every_seed_of_a_search_compares_models_on_the_same_rows(residual_task: ac.Task) -> None:
    task = replace(residual_task, val=None)
    first, second = (prepare(task, Settings(seed=seed)).task.val for seed in (0, 1))
    assert np.array_equal(first.x, second.x)


def test_a_loader_whose_last_row_cannot_be_trained_on_is_refused_before_training() -> None:
    def model() -> nn.Module:
        return nn.Sequential(nn.Linear(6, 8), nn.BatchNorm1d(8), nn.ReLU(), nn.Linear(8, 3))

    loader = DataLoader(TensorDataset(torch.randn(65, 6), torch.arange(65) % 3), batch_size=64)
    with pytest.raises(TaskError, match="use drop_last=True or another batch_size"):
        prepare(ac.Task(model, loader, val=loader), Settings())
    # Carved, the rows that stay are other ones.
    prepare(ac.Task(model, loader), Settings())


class Encoder(Residual):
    """A model whose class has more than `forward`."""

    def encode(self, x: Tensor) -> Tensor:
        return self.stem(x).mean((2, 3))


def contrast(model: nn.Module, batch: Any) -> Tensor:
    loss = nn.functional.cross_entropy(model(batch[0]), batch[1])
    return loss + model.encode(batch[0]).square().mean()


def test_methods_that_leave_a_graph_are_not_tried_where_the_step_needs_the_class(
    residual_task: ac.Task,
) -> None:
    task = replace(residual_task, model=Encoder, step=contrast)
    prepared = prepare(task, Settings())
    assert set(prepared.spaces) == {"alcn", "alds", "lc"}
    (note,) = [note for note in prepared.notes if "encode" in note]
    assert note.startswith("the task's own step does not train the model's graph, without the methods of its")
    assert ", so autoplastic, depth are not tried: step must take each batch but failed on one" in note
    assert "\n" not in note
    with pytest.raises(
        ac.UsageError, match=r"methods must fit the model but 'depth' does not: it leaves of t"
    ):
        prepare(task, Settings(methods=("depth",)))
    assert set(prepare(replace(task, step=None), Settings()).spaces) >= {"autoplastic", "depth"}
    # What is left trains.
    ac.compress(Encoder(), task.with_recipe(epochs=1), ac.Alcn(initial_ratio=0.5))
    with pytest.raises(
        ac.UsageError, match=r"^step must train what Depth leaves of the model, its graph with"
    ):
        ac.compress(Encoder(), task, ac.Depth(cuts=[(0, 1)]))


def test_a_teacher_is_left_out_where_training_calls_the_model_otherwise(residual_task: ac.Task) -> None:
    class Reporting(Residual):
        """Gives its own loss in training, as detectors do."""

        def forward(self, x: Tensor, targets: Tensor | None = None) -> Any:
            outputs = super().forward(x)
            if targets is None:
                return outputs
            return {"loss": nn.functional.cross_entropy(outputs, targets)}

    def step(model: nn.Module, batch: Any) -> Any:
        return model(batch[0], batch[1])

    task = replace(residual_task, model=Reporting, step=step)
    prepared = prepare(task, Settings())
    assert not prepared.distill
    assert [note for note in prepared.notes if note.startswith("no trial learns from a teacher beside")]
    assert prepare(residual_task, Settings()).distill
    silent = prepare(task, Settings(distill=False))
    assert not silent.distill
    assert not [note for note in silent.notes if "teacher" in note]


class FixedWidth(nn.Module):
    """The code fixes the width of one of its groups of channels."""

    def __init__(self) -> None:
        super().__init__()
        self.free, self.fixed, self.head = nn.Linear(6, 16), nn.Linear(16, 12), nn.Linear(6, 3)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(torch.relu(self.halves(x).sum(1)))

    def halves(self, x: Tensor) -> Tensor:
        return self.fixed(torch.relu(self.free(x))).view(-1, 2, 6)


def smooth(model: nn.Module, batch: Any) -> Tensor:
    loss = nn.functional.cross_entropy(model(batch[0]), batch[1])
    return loss + model.halves(batch[0]).square().mean()


def test_channels_whose_number_the_code_fixes_stay_where_the_step_needs_the_class() -> None:
    rows = TensorDataset(torch.randn(32, 6), torch.randint(0, 3, (32,)))
    task = ac.Task(FixedWidth, DataLoader(rows, 8), DataLoader(rows, 8), recipe=ac.Recipe(epochs=1))
    assert [group.name for group in prepare(task, Settings()).profile.groups] == ["free", "fixed"]
    task = replace(task, step=smooth)
    prepared = prepare(task, Settings())
    assert [group.name for group in prepared.profile.groups] == ["free"]
    assert "the task's own step does not train its graph" in prepared.analysis.frozen["fixed"]
    assert any("; all channels of 1 layers stay" in note for note in prepared.notes)
    done = ac.compress(
        FixedWidth(), task, [ac.Alcn(initial_ratio=0.5), ac.Lc(schemes={"*": ac.Codebook(k=4)})]
    )
    assert isinstance(done.model, FixedWidth)
    assert done.model.free.out_features < 16


def test_what_trains_for_int8_files_is_tried_where_these_are_made(
    residual_task: ac.Task, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("autocompress.engine.prepare._check_export", lambda *given: None)
    others = set(prepare(residual_task, Settings()).spaces)
    assert "qat" not in others
    assert set(prepare(residual_task, Settings(artifact="onnx-int8")).spaces) == {*others, "qat"}
    with pytest.raises(
        ac.UsageError,
        match=r"^methods must fit the artifact but 'qat' trains for onnx-int8 and artifact is 'onnx' "
        r"\(give artifact onnx-int8\)\.$",
    ):
        prepare(residual_task, Settings(methods=("alcn", "qat"), artifact="onnx"))


def test_steps_of_an_epoch_may_be_a_setting(residual_task: ac.Task) -> None:
    task = replace(residual_task, train=stream())
    prepared = prepare(task, Settings(steps_per_epoch=3, methods=("alcn",)))
    assert prepared.task.recipe.steps_per_epoch == prepared.settings.steps_per_epoch == 3
    # Naming the task's own is no other run.
    named = replace(task, recipe=replace(task.recipe, steps_per_epoch=3))
    assert prepare(named, Settings(methods=("alcn",))).settings == prepared.settings
    with pytest.raises(ac.UsageError, match=r"^steps_per_epoch must be at least 1 but got 0\.$"):
        Settings(steps_per_epoch=0)
