"""Trained weights fit a model by one rule, in whatever file, checkpoint or wrapper they come."""

from __future__ import annotations

import argparse
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import save_file, save_model
from torch import Tensor, nn
from torch.optim.swa_utils import AveragedModel

from autocompress.errors import TaskError
from autocompress.task.pretrained import fit, load_weights, read_weights


class Net(nn.Module):
    def __init__(self, classes: int = 5) -> None:
        super().__init__()
        self.features = nn.Sequential(nn.Conv2d(3, 8, 3), nn.BatchNorm2d(8))
        self.head = nn.Linear(8, classes)
        self.register_buffer("order", torch.arange(3), persistent=False)


class Tied(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.embedding, self.head = nn.Embedding(6, 4), nn.Linear(4, 6, bias=False)
        self.head.weight = self.embedding.weight


class Trained(nn.Module):
    """A module of a training framework, which holds a model and a loss."""

    def __init__(self, model: nn.Module) -> None:
        super().__init__()
        self.model, self.criterion = model, nn.CrossEntropyLoss(torch.ones(5))


NET = Net()
STATE = NET.state_dict()
AVERAGED = Net()
OPTIMIZER = {"state": {0: {"step": torch.ones(()), "exp_avg": torch.ones(2)}}, "param_groups": [{"lr": 1.0}]}


def prefixed(prefix: str, state: dict[str, Tensor] = STATE) -> dict[str, Tensor]:
    return {prefix + name: value for name, value in state.items()}


def without(word: str) -> dict[str, Tensor]:
    return {name: value for name, value in STATE.items() if word not in name}


def is_loaded(model: nn.Module, state: dict[str, Tensor]) -> bool:
    return all(map(torch.equal, model.state_dict().values(), state.values()))


@pytest.mark.parametrize(
    "weights",
    [
        STATE,
        NET,
        {name: value.numpy() for name, value in STATE.items()},
        without("num_batches_tracked"),
        {**STATE, "total_ops": torch.zeros(1), "features.0.total_params": torch.zeros(1)},
        {**STATE, "order": torch.arange(3)},
    ],
)
def test_a_state_dict_is_taken_as_it_is_and_what_only_counts_does_not_matter(weights: Any) -> None:
    model = Net()
    assert load_weights(model, weights).note is None
    assert is_loaded(model, STATE)


FIRST = next(iter(STATE))
UNWRAPPED = "weights are without the names of wrappers, as in"


@pytest.mark.parametrize(
    ("weights", "note"),
    [
        (prefixed("_orig_mod."), f"{UNWRAPPED} '_orig_mod.{FIRST}'"),
        (prefixed("module._orig_mod."), f"{UNWRAPPED} 'module._orig_mod.{FIRST}'"),
        (nn.DataParallel(NET), f"{UNWRAPPED} 'module.{FIRST}'"),
        (AveragedModel(NET), f"{UNWRAPPED} 'module.{FIRST}'"),
        (
            {name.replace("features.", "features.module."): value for name, value in STATE.items()},
            f"{UNWRAPPED} 'features.module.{FIRST.removeprefix('features.')}'",
        ),
        (prefixed("model."), "weights are taken from the names that begin with 'model.'"),
        (prefixed("encoder.net."), "weights are taken from the names that begin with 'encoder.net.'"),
        ({"params": STATE, "epoch": torch.tensor(3)}, "weights are taken from 'params'"),
        ({"model": STATE, "optimizer": OPTIMIZER}, "weights are taken from 'model'"),
        ({"checkpoint": {"model": NET}}, "weights are taken from 'checkpoint.model'"),
        (
            {"model_state_dict": prefixed("module.")},
            "weights are taken from 'model_state_dict', without the names of wrappers, "
            f"as in 'module.{FIRST}'",
        ),
        (
            {"state_dict": Trained(NET).state_dict(), "epoch": 3},
            "weights are taken from the names that begin with 'model.' in 'state_dict', "
            "'criterion.weight' left out",
        ),
        (
            {"state_dict": AVERAGED.state_dict(), "state_dict_ema": STATE},
            "weights are taken from 'state_dict_ema', 'state_dict' would fit too",
        ),
        (
            {"net": STATE, "swa": AVERAGED.state_dict()},
            "weights are taken from 'net', 'swa' would fit too",
        ),
    ],
)
def test_whole_checkpoints_and_names_of_wrappers_are_understood_and_said(weights: Any, note: str) -> None:
    model = Net()
    assert load_weights(model, weights).note == note
    assert is_loaded(model, STATE)


@pytest.mark.parametrize(
    "wrapped", [nn.DataParallel, torch.compile, lambda net: nn.ModuleDict({"model": net})]
)
def test_weights_of_what_a_model_wraps_fit_it(wrapped: Callable[[nn.Module], nn.Module]) -> None:
    inner = Net()
    load_weights(wrapped(inner), STATE)
    assert is_loaded(inner, STATE)


def test_a_name_that_only_looks_like_a_wrapper_stays() -> None:
    model = nn.ModuleDict({"module": nn.Linear(2, 3), "other": nn.Linear(2, 3)})
    state = {name: torch.randn_like(value) for name, value in model.state_dict().items()}
    assert load_weights(model, prefixed("module.", state)).note is not None
    assert is_loaded(model, state)
    assert load_weights(model, state).note is None


def test_a_tensor_of_two_names_may_be_given_by_one(tmp_path: Path) -> None:
    given, model = Tied(), Tied()
    save_model(given, str(tmp_path / "tied.safetensors"))
    load_weights(model, tmp_path / "tied.safetensors")
    assert torch.equal(model.head.weight, given.embedding.weight)
    assert model.head.weight is model.embedding.weight


@pytest.mark.parametrize(
    ("weights", "message"),
    [
        (
            Net(7),
            r"'head.weight' is \(7, 8\) in them and \(5, 8\) in the model: make the model with 7 outputs",
        ),
        (
            {**STATE, "features.0.weight": torch.zeros(8, 3, 5, 5)},
            r"'features.0.weight' is \(8, 3, 5, 5\) in them and \(8, 3, 3, 3\) in the model\.$",
        ),
        (without("head.bias"), r"weights must fit the model but have no 'head.bias'\.$"),
        (
            {name.replace("head", "haed"): value for name, value in STATE.items()},
            r"have no 'head.weight', 'head.bias' \(the nearest is 'haed.weight'\)",
        ),
        (
            {**STATE, "aux.weight": torch.zeros(1)},
            r"hold 'aux.weight', which the model has not \(the nearest is 'head.weight'\)",
        ),
        (
            {"x": torch.zeros(1)},
            "have none of its names: theirs begin with 'x', its own with 'features.0.weight'",
        ),
        ({"epoch": 3}, "weights must fit the model but hold no tensors"),
        (
            {"student": STATE, "teacher": STATE},
            "must hold the model once but hold it as 'student' and 'teacher': give one of them alone",
        ),
        (
            prefixed("student.") | prefixed("teacher."),
            "as the names that begin with 'student.' and the names that begin with 'teacher.'",
        ),
    ],
)
def test_what_does_not_fit_is_told_by_name(weights: Any, message: str) -> None:
    with pytest.raises(TaskError, match=message) as raised:
        fit(weights, Net())
    assert "\n" not in str(raised.value)


@pytest.mark.parametrize("suffix", [".safetensors", ".npz", ".pt", ".ckpt"])
def test_weights_are_read_from_common_files(suffix: str, tmp_path: Path) -> None:
    path = tmp_path / f"w{suffix}"
    if suffix == ".safetensors":
        save_file(STATE, path)
    elif suffix == ".npz":
        np.savez(path, names=np.array(["a", "b"]), **{name: value.numpy() for name, value in STATE.items()})
    else:
        # As training scripts store them, with their arguments and the best score.
        beside = {"args": argparse.Namespace(lr=0.1), "best": np.float64(0.9), "epoch": 3}
        torch.save({"state_dict": prefixed("module."), **beside}, path)
    model = Net()
    load_weights(model, path)
    assert is_loaded(model, STATE)


class Trap:
    def __reduce__(self) -> Any:
        return exec, ("raise SystemExit('this code must not run')",)


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (
            {"state_dict": STATE, "logger": Trap()},
            r"would run the code of 'builtins.exec' \(store model.state_dict",
        ),
        (NET, r"would run the code of 'tests.task.test_pretrained.Net', .* and \d more"),
        ([1, 2], "must be a state dict but is of type list"),
    ],
)
def test_no_code_of_a_file_is_run(content: Any, message: str, tmp_path: Path) -> None:
    torch.save(content, tmp_path / "w.pt")
    with pytest.raises(TaskError, match=message):
        read_weights(tmp_path / "w.pt")


@pytest.mark.parametrize("name", ["w.pt", "w.safetensors", "w.npz"])
def test_damaged_and_missing_files_are_refused(name: str, tmp_path: Path) -> None:
    with pytest.raises(TaskError, match="weights must be an existing file but"):
        read_weights(tmp_path / name)
    (tmp_path / name).write_text("no weights")
    with pytest.raises(TaskError, match=rf"weights '.*{name}' must be a state dict but: \w+: ") as raised:
        read_weights(tmp_path / name)
    assert "\n" not in str(raised.value)
