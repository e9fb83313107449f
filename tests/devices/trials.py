"""Every method on a device that is not the CPU: the same trial, ending alike; and how often its steps wait.

Run as a script, because the device is registered for the whole process. Prints one JSON object.
"""

from __future__ import annotations

import json
import tempfile
import warnings
from collections import Counter
from collections.abc import Mapping
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

import autocompress as ac
from autocompress.checkpoint import load_program
from autocompress.graph.proof import relative_difference
from autocompress.methods import alcn, alds, autoplastic, depth, lc, qat
from autocompress.methods.base import Session
from autocompress.task.checks import make_model
from autocompress.task.copying import copied
from autocompress.training.loop import Plain, Trainer, device_of
from autocompress.trial import (
    Measuring,
    Reference,
    Stage,
    TrialConfig,
    make_method,
    run_trial,
    rung_metrics,
    train_reference,
)
from tests.conftest import Residual, image_batches
from tests.devices import mirror

CONFIGS: dict[str, Any] = {
    "alcn": alcn.Config(),
    "alcn rounded": alcn.Config(round_to=4, cost="macs"),
    "depth": depth.Config(cuts=((0, 1),), refine_steps=3),
    "alds": alds.Config(),
    "alds data": alds.Config(measure="data", lambda_rank=0.1),
    "autoplastic": autoplastic.Config(),
    "autoplastic published": autoplastic.Config(rule="published", add_attention=True),
    # With one C step, which is the last: it waits, the other steps are not to.
    "lc": lc.Config(steps=1),
    "lc sum": lc.Config(schemes={"*": lc.Codebook(k=2) + lc.PruneL0(keep=0.05)}, steps=1),
    "lc straight": lc.Config(schemes={"*": lc.Budget(bits=2.0)}, straight_through=True, steps=1),
    "qat": qat.Config(),
}


class Positions(nn.Module):
    """Makes tensors when it is called, as exported graphs then do."""

    def __init__(self) -> None:
        super().__init__()
        self.enter, self.place = nn.Linear(24, 32), nn.Embedding(8, 32)
        self.inner, self.head = nn.Linear(32, 32), nn.Linear(32, 5)

    def forward(self, x: Tensor) -> Tensor:
        rows = x.flatten(2).transpose(1, 2).reshape(-1, 8, 24)
        rows = self.enter(rows) + self.place(torch.arange(8, device=x.device))
        mixed = (torch.eye(8, device=x.device) + torch.zeros(8, 8).to(x.device)) @ rows
        return self.head((rows + torch.relu(self.inner(mixed)).to(torch.float32)).mean(1))


class Counting(Plain):
    """A session that writes down what waited in each step."""

    def __init__(self, session: Session) -> None:
        super().__init__(session.model)
        self.session, self.steps = session, list[Counter[str]]()
        self.param_groups, self.penalty = session.param_groups, session.penalty

    def after_step(self, progress: float) -> None:
        self.session.after_step(progress)
        self.steps.append(mirror.waits.copy())
        mirror.waits.clear()


def task_of(model: Any) -> ac.Task:
    batches = image_batches()
    recipe = ac.Recipe(epochs=2, augment="crop-flip-erase", mixup=0.2, label_smoothing=0.1)
    loss = nn.CrossEntropyLoss(weight=torch.linspace(0.5, 1.5, 5))
    val = image_batches(shuffle=False)
    return ac.Task(model=model, train=batches, val=val, recipe=recipe, loss=loss, input=batches.spec)


def trials(task: ac.Task, names: list[str], folder: Path) -> dict[str, Any]:
    """Name of a configuration → last loss, accuracy, parameters on each device, and these two at a rung."""
    stored = train_reference(task, folder / "reference", Measuring())
    reference = Reference.of(stored, task.model())
    measuring = Measuring(rungs=(1,))
    by_name: dict[str, Any] = {}
    for name in names:
        stage = Stage(name.partition(" ")[0], asdict(CONFIGS[name]))
        config = TrialConfig((stage,), epochs=2, distill_weight=0.3)
        for device in ("cpu", mirror.NAME):
            entries: list[Mapping[str, float]] = []
            checkpoint = folder / f"{name} {device}"
            done = run_trial(task, reference, config, checkpoint, measuring, entries.append, device)
            rung = rung_metrics(entries[0])
            ends = [done.history[-1]["loss"], done.metrics["accuracy"], done.metrics["params"]]
            ends += [rung["accuracy"], rung["params"]]
            by_name.setdefault(name, {})[device] = ends
    return by_name


def waits_in_steps(task: ac.Task, name: str) -> dict[str, dict[str, int]]:
    """What waits in the steps of an epoch but the first and last, with a method, and of the compact model."""
    torch.manual_seed(0)
    method = make_method(Stage(name.partition(" ")[0], asdict(CONFIGS[name])))
    session = method.start(task.model().to(mirror.NAME), task)
    counting = Counting(session)
    Trainer(task, 1).fit(session.model, 1, counting)
    compact = Counting(Plain(session.finish().model))
    Trainer(task, 1).fit(compact.model, 1, compact)
    return {
        label: dict(sum(counted.steps[1:-1], Counter[str]()))
        for label, counted in ((name, counting), (f"{name}, compact", compact))
    }


def main() -> None:
    warnings.simplefilter("ignore")
    residual, positions = task_of(Residual), task_of(Positions)
    many_steps = replace(residual, train=replace(image_batches(), batch_size=16))
    waits: dict[str, dict[str, int]] = {}
    for name in CONFIGS:
        waits |= waits_in_steps(many_steps, name)
    with tempfile.TemporaryDirectory() as scratch:
        ends = {
            "residual": trials(residual, list(CONFIGS), Path(scratch) / "residual"),
            "positions": trials(positions, ["alcn", "depth", "autoplastic"], Path(scratch) / "positions"),
        }
    loss: Any = residual.loss
    compressed = ac.compress(Residual().to(mirror.NAME), residual.with_recipe(epochs=1), ac.Alcn())
    with tempfile.TemporaryDirectory() as scratch:
        saved = compressed.save(Path(scratch) / "saved")
        files = [compressed.export(Path(scratch) / name) for name in ("model.pt2", "model.onnx")]
        expected = copied(compressed.model).to("cpu")(residual.example())
        differences = [
            relative_difference(expected, program(residual.example()))
            for program in (saved.load(), *map(load_program, files))
        ]
    made = make_model(replace(residual, model=lambda: Residual().to(mirror.NAME)))
    devices = {
        "loss": str(loss.weight.device),
        "compressed": str(device_of(compressed.model)),
        "made": str(device_of(made)),
    }
    print(json.dumps({"ends": ends, "waits": waits, "devices": devices, "differences": differences}))


if __name__ == "__main__":
    main()
