"""A search leaves alone what it is told to, in every model that it keeps, codes at its end included."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from safetensors import safe_open

import autocompress as ac
from autocompress.checkpoint.store import kept_trials, trial_folder

pytestmark = pytest.mark.usefixtures("shared_ray")


def test_what_is_excluded_stays_in_every_model_of_a_search(tmp_path: Path, digits: ac.Task) -> None:
    result = ac.search(
        "digits",
        trials=2,
        epochs=1,
        workers=1,
        constraints=[],
        out=tmp_path / "run",
        exclude=["features.0"],
        at_least={"features.4": 0.9},
        progress=ac.Progress(),
    )
    plain = digits.model().get_parameter("features.0.weight")
    stages = set()
    for number in kept_trials(result.out / "trials"):
        folder = trial_folder(result.out / "trials", number)
        with safe_open(str(folder / "weights.safetensors"), "pt") as stored:
            weight = stored.get_tensor("features.0.weight")
            assert weight.shape == plain.shape
            assert weight.dtype == torch.float32
            assert weight.unique().numel() > 0.9 * weight.numel()
        model = ac.rebuild(digits.model(), folder)
        assert model.get_submodule("features.4").out_channels >= 44
        config = result.study.trials[number].user_attrs["details"]["config"]
        stages |= {stage["method"] for stage in config["stages"]}
    assert {"alcn", "lc"} <= stages
