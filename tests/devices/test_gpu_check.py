"""The check that runs on machines with a GPU and little else runs without them too."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).parents[2]
# Dependencies of the package that training one trial must not need.
ABSENT = ("ray", "optuna", "sklearn", "rich", "torchmetrics", "typer", "matplotlib", "joblib", "pandas")
HIDING = """
import importlib.machinery, runpy, sys
class Absent:
    def find_spec(self, name, path=None, target=None):
        if name.partition(".")[0] in {absent}:
            return importlib.machinery.ModuleSpec(name, self)
    def create_module(self, spec):
        raise ModuleNotFoundError(f"No module named {{spec.name!r}}", name=spec.name)
    def exec_module(self, module):
        raise AssertionError
sys.meta_path.insert(0, Absent())
sys.argv = ["gpu_check.py", "--quick", "--device", "cpu", "--no-compile"]
runpy.run_path({script!r}, run_name="__main__")
"""


def test_it_runs_on_a_cpu_where_other_dependencies_are_absent() -> None:
    code = HIDING.format(absent=set(ABSENT), script=str(ROOT / "examples" / "benchmarks" / "gpu_check.py"))
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    done = subprocess.run([sys.executable, "-c", code], env=environment, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout[-3000:] + done.stderr[-3000:]
    for line in ("Trainer, lc", "resnet20 autoplastic", "recurrent alcn"):
        assert line in done.stdout
