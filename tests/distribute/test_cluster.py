"""Jobs on several machines, one of which is lost: three nodes of Ray on this one."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

SCRIPT = """
import json, sys
from pathlib import Path
from types import SimpleNamespace

from autocompress.distribute import Cluster, Driver, WaitJob, connection, execute
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
driver, shared = Waits(), SimpleNamespace(computed=folder, memory=None, threads=1)
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
