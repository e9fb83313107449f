"""Trials on another device than the CPU, without a GPU: on one that refuses what a GPU would."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

ROOT = Path(__file__).parents[2]


@pytest.fixture(scope="module")
def answers() -> dict[str, Any]:
    script = [sys.executable, "-m", "tests.devices.trials"]
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    done = subprocess.run(script, cwd=ROOT, env=environment, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr[-3000:]
    answers: dict[str, Any] = json.loads(done.stdout.splitlines()[-1])
    return answers


@pytest.mark.parametrize("model", ["residual", "positions"])
def test_every_method_ends_as_it_does_on_the_cpu(answers: dict[str, Any], model: str) -> None:
    for name, ends in answers["ends"][model].items():
        loss, *exact = ends["cpu"]
        assert ends["mirror"] == [pytest.approx(loss, rel=1e-3), *map(pytest.approx, exact)], name


def test_the_users_loss_stays_where_it_is(answers: dict[str, Any]) -> None:
    assert answers["devices"]["loss"] == "cpu"


def test_a_model_is_compressed_where_it_lies_and_made_for_a_search_on_the_cpu(
    answers: dict[str, Any],
) -> None:
    assert answers["devices"]["compressed"] == "mirror:0"
    assert answers["devices"]["made"] == "cpu"


def test_files_of_a_compressed_model_compute_what_it_does_wherever_it_lies(answers: dict[str, Any]) -> None:
    assert len(answers["differences"]) == 3
    assert max(answers["differences"]) < 1e-4


def test_steps_do_not_wait_for_the_device(answers: dict[str, Any]) -> None:
    assert {"lc", "lc, compact"} < answers["waits"].keys()
    for name, waits in answers["waits"].items():
        assert waits == {}, name
