"""Jobs on several machines, one of which is lost, or which do not see the run: nodes of Ray on this one."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import tempfile
from pathlib import Path

import pytest
import torch

import autocompress as ac

SCRIPT = """
import json, sys
from pathlib import Path
from types import SimpleNamespace

from autocompress.distribute import Cluster, Driver, WaitJob, connection, execute
from autocompress.distribute.folders import Folders
import ray
from ray.cluster_utils import Cluster as Machines

folder = Path(sys.argv[1])


class Waits(Driver):
    # Three jobs that wait, and one for each that is lost.
    interrupted = False

    def __init__(self):
        self.asked, self.left = 0, 3
        self.running, self.ended, self.lost, self.taken = set(), [], [], None

    def next(self):
        if not self.left:
            return None
        self.left -= 1
        self.asked += 1
        return WaitJob(-self.asked, folder / "go-on")

    def overdue(self, number, seconds):
        self.running.add(number)
        gpus = ray.available_resources().get("GPU", 0.0)
        if len(self.running) == 3 and self.taken is None and gpus < 3 - 0.5:
            self.taken = 3 - gpus
            machines.remove_node(lost, allow_graceful=False)
        return False

    def completed(self, number, result):
        self.ended.append(number)

    def died(self, number):
        self.lost.append(number)
        self.left += 1
        (folder / "go-on").touch()


machine = {"num_cpus": 1, "num_gpus": 1}
machines = Machines(initialize_head=True, head_node_args=machine)
lost, stays = machines.add_node(**machine), machines.add_node(**machine)
driver, shared = Waits(), SimpleNamespace(root=folder, folders=Folders(folder), memory=None, threads=1)
with connection(machines.address):
    finished = execute(driver, shared, Cluster(workers=3, cpus=1.0, gpus=0.25))
machines.shutdown()
print(json.dumps([finished, driver.taken, sorted(driver.lost + driver.ended), len(driver.lost)]))
"""


def test_jobs_of_a_machine_that_is_lost_are_told_of_and_others_go_on_with_a_quarter_of_a_gpu_each(
    tmp_path: Path,
) -> None:
    command = [sys.executable, "-c", SCRIPT, str(tmp_path)]
    child = subprocess.run(command, capture_output=True, text=True, check=False)
    assert child.returncode == 0, child.stderr
    assert json.loads(child.stdout.splitlines()[-1]) == [True, 0.75, [-4, -3, -2, -1], 1]


BLIND = """
import json, sys
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path

import ray, torch
from ray.cluster_utils import Cluster as Machines
from torch import nn

import autocompress as ac
import autocompress.engine.run as engine

# What is true of a worker on another machine: neither the run nor the mark in it is there.
Shared, serving = engine.Shared, engine.serving
engine.Shared = lambda **given: Shared(**{**given, "root": Path("/nowhere/run")})


@contextmanager
def blind(root, cluster):
    with serving(root, cluster) as served:
        yield replace(served, mark=Path("/nowhere/run/mark"))


engine.serving = blind
rows = torch.randn(96, 8, generator=torch.Generator().manual_seed(0))
task = ac.Task(
    model=lambda: nn.Sequential(nn.Linear(8, 48), nn.ReLU(), nn.Linear(48, 24), nn.ReLU(), nn.Linear(24, 2)),
    train=torch.utils.data.DataLoader(
        torch.utils.data.TensorDataset(rows, (rows[:, 0] > 0).long()), batch_size=16
    ),
    recipe=ac.Recipe(epochs=1),
    name="tiny",
)
machines = Machines(initialize_head=True, head_node_args={"num_cpus": 0})
machines.add_node(num_cpus=2)
result = ac.search(
    task, trials=3, workers=1, constraints=[], methods=["alcn"], keep="all", out=sys.argv[1],
    ray_address=machines.address, progress=ac.Progress(),
)
machines.shutdown()
parents = [t.user_attrs["details"]["config"]["parent"] for t in result.study.trials[1:]]
print(json.dumps({"parents": parents, "states": [t.state.name for t in result.study.trials]}))
"""


def test_workers_that_do_not_see_a_run_in_a_store_are_sent_what_they_need_and_send_what_they_made(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    address = f"file://{tmp_path}/store/run"
    command = [sys.executable, "-c", BLIND, address]
    scratch = tmp_path / "scratch"
    scratch.mkdir()
    own = {"XDG_CACHE_HOME": str(tmp_path / "driver"), "TMPDIR": str(scratch)}
    own["RAY_TMPDIR"] = tempfile.gettempdir()  # the path of a socket is short
    child = subprocess.run(command, capture_output=True, text=True, check=False, env={**os.environ, **own})
    assert child.returncode == 0, child.stderr
    said = json.loads(child.stdout.splitlines()[-1])
    assert said["states"] == ["COMPLETE"] * 4
    assert max(said["parents"]) > 0
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "reader"))
    result = ac.load_run(address)
    assert {path.name for path in (result.out / "trials").iterdir()} == {"0001", "0002", "0003"}
    for point in result.front:
        assert point.load()(torch.zeros(2, 8)).shape == (2, 2)
    assert not Path("/nowhere").exists()
    assert not list(scratch.glob("autocompress-*"))
