"""The check that runs on machines with a GPU and little else runs without them too."""

from __future__ import annotations

import os
import subprocess
import sys
import tomllib
from pathlib import Path

ROOT = Path(__file__).parents[2]
NEEDED = {"torch", "torchvision", "numpy", "scipy", "safetensors"}
# What PyTorch brings along.
NEEDED |= {"filelock", "jinja2", "networkx"}
MODULES = {"scikit-learn": "sklearn", "optuna-dashboard": "optuna_dashboard"}
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
    listed = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["dependencies"]
    names = {name.partition("[")[0].partition(">=")[0] for name in listed}
    absent = {MODULES.get(name, name) for name in names - NEEDED}
    assert {"optuna", "ray", "rich", "sklearn", "typer"} <= absent
    code = HIDING.format(absent=absent, script=str(ROOT / "examples" / "benchmarks" / "gpu_check.py"))
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    done = subprocess.run([sys.executable, "-c", code], env=environment, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout[-3000:] + done.stderr[-3000:]
    for line in ("Trainer, lc", "resnet20 autoplastic", "recurrent alcn"):
        assert line in done.stdout
