"""What a search's front is worth at equal training epochs, beside torch-pruning's.

    pip install torch-pruning
    python examples/benchmarks/search_efficiency.py --task digits --cost macs bytes [--trials 12] [--epochs 5]
        [--plot digits.png]

Everyone starts from one trained reference and trains as many trials of as many epochs by the task's recipe.
Fronts are chosen on validation and judged on test by their hypervolume: over test accuracy above 90 % of the
reference's (in units of the other 10 %) and the logarithm of the cost ratio down to 0.01 (in units of that).

torch-pruning removes the channels of least group magnitude, from the reference each time (sweep) or a little
more from what it trained last (iterative), with and without distillation from the best model so far; its
learning rate and its step are those of four and three that are best on validation, for each cost by itself;
`--rates` and `--steps` give others, or those that are known to be best.
Where the cost is bytes it is stored as int8 ONNX, and the search as it stores by itself; both relative to the
reference's parameters at four bytes each.

Printed by trial, and drawn against epochs spent, is what the models trained so far are worth, of the median
seed.
"""

from __future__ import annotations

import argparse
import copy
import functools
import itertools
import math
import statistics
import tempfile
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any
from unittest import mock

import matplotlib.pyplot as plt
import numpy as np
import torch
import torch.nn.functional as F
import torch_pruning
from rich.console import Console
from rich.table import Table
from torch import nn

import autocompress as ac
from autocompress.checkpoint import export_onnx, open_checkpoint
from autocompress.checkpoint.program import load_program
from autocompress.checkpoint.quantize import quantize_onnx
from autocompress.checkpoint.store import kept_trials, trial_folder
from autocompress.data import load_task, with_validation
from autocompress.engine.family import FamilyTree
from autocompress.engine.folder import RunFolder
from autocompress.engine.results import open_study
from autocompress.graph.costs import count_params, layer_macs
from autocompress.measure import measure_split
from autocompress.task.pretrained import load_weights, read_weights
from autocompress.training.distillation import Distillation
from autocompress.training.loop import Trainer
from autocompress.trial import seed_everything

FLOOR, SHARE = 0.01, 0.9
console = Console()


@dataclass(frozen=True)
class Point:
    """A model: its cost over the reference's, its accuracy on both splits, and how many epochs all models
    up to it were trained for."""

    cost: float
    val: float
    test: float
    spent: int = 0


@dataclass(frozen=True)
class Setting:
    """What all contenders have in common.

    Args:
        reference_costs: by name, of the costs that fronts are judged by.
        rates: factors on the recipe's that torch-pruning is tried at.
        steps: shares of the channels that it is tried to keep; rates are tried with the first.
    """

    task: ac.Task
    trials: int
    reference: nn.Module
    base: Point
    reference_costs: Mapping[str, float]
    folder: Path
    rates: Sequence[float] = (1.0, 2.0, 4.0, 8.0)
    steps: Sequence[float] = (0.84, 0.78, 0.9)


def hypervolume(points: Sequence[Point], base: Point, judged: Callable[[Point], float]) -> float:
    """Of the front that validation chooses, by `judged`; at most about 1."""
    front: list[Point] = []
    for point in sorted([*points, base], key=lambda p: (p.cost, -p.val)):
        if not front or point.val > front[-1].val:
            front.append(point)
    ends = [max(math.log(point.cost), math.log(FLOOR)) for point in front] + [0.0]
    level = area = 0.0
    for point, (start, end) in zip(front, itertools.pairwise(ends), strict=True):
        level = max(level, (judged(point) - SHARE * judged(base)) / ((1 - SHARE) * judged(base)))
        area += level * max(0.0, end - start)
    return area / -math.log(FLOOR)


def worth_on_test(points: Sequence[Point], base: Point) -> float:
    """Hypervolume of the front that validation chooses, as it is on test."""
    return hypervolume(points, base, lambda point: point.test)


def leading(curves: dict[str, list[float]]) -> str:
    """From which number of trials on the first contender is never behind another."""
    (name, own), *others = curves.items()
    last = max((i for i, worth in enumerate(own) if any(c[i] > worth for _, c in others)), default=-1)
    return (
        f"{name} leads from trial {last + 1} of {len(own) - 1} on"
        if last < len(own) - 1
        else f"{name} is not ahead"
    )


def draw(curves: dict[str, list[float]], title: str, epochs_a_trial: int, file: Path) -> None:
    """Hypervolume against epochs spent."""
    figure, axes = plt.subplots(figsize=(8, 5), layout="constrained")
    for name, worths in curves.items():
        epochs = [trials * epochs_a_trial for trials in range(len(worths))]
        axes.plot(epochs, worths, label=name, linestyle="--" if name.startswith("torch-pruning") else "-")
    axes.set(xlabel="epochs spent", ylabel="hypervolume on test", title=title)
    axes.legend(fontsize="small")
    figure.savefig(file, dpi=120)


def accuracy(program: Any, task: ac.Task, split: Any) -> float:
    return measure_split(program, split, task, resampled=False).values["accuracy"]


def judged_as_is(model: nn.Module, setting: Setting) -> dict[str, Point]:
    """By its multiply-accumulates, and as int8 ONNX by the size of the file."""
    task, model = setting.task, model.eval()
    programs: dict[str, tuple[float, Any]] = {}
    if "macs" in setting.reference_costs:
        programs["macs"] = float(layer_macs(model, task.example())[""]), model
    if "bytes" in setting.reference_costs:
        file = setting.folder / "model.onnx"
        export_onnx(model, task.example(), file)
        quantize_onnx(file, task.calibration())
        programs["bytes"] = float(file.stat().st_size), load_program(file)
    return {
        name: Point(
            cost / setting.reference_costs[name],
            accuracy(program, task, task.val),
            accuracy(program, task, task.test),
        )
        for name, (cost, program) in programs.items()
    }


def torch_pruned(
    setting: Setting, seed: int, *, iterative: bool, distilled: bool, rate: float, step: float
) -> dict[str, list[Point]]:
    """Trials of torch-pruning, from the reference each time or from one another, by each cost."""
    task, model = setting.task, setting.reference
    points: dict[str, list[Point]] = {name: [] for name in setting.reference_costs}
    teacher, best = setting.reference, setting.base.val
    for number in range(1, setting.trials + 1):
        model = copy.deepcopy(model if iterative else setting.reference)
        keep = step if iterative else step**number
        last = [m for m in model.modules() if isinstance(m, nn.Linear)][-1:]
        torch_pruning.pruner.BasePruner(
            model.train(),
            task.example(),
            torch_pruning.importance.GroupMagnitudeImportance(),
            pruning_ratio=1 - keep,
            ignored_layers=last,
        ).step()
        seed_everything(seed + number, task)
        taught = Distillation(copy.deepcopy(teacher).eval(), 0.5, 2.0) if distilled else None
        Trainer(task, task.recipe.epochs, rate, distillation=taught).fit(model, task.recipe.epochs)
        for name, point in judged_as_is(model, setting).items():
            points[name].append(replace(point, spent=number * task.recipe.epochs))
        val = accuracy(model, task, task.val)
        if val >= best:
            teacher, best = model, val
    return points


def searched(setting: Setting, cost: str, seed: int, name: str, **options: Any) -> list[Point]:
    """The models that a search keeps, each as stored, in the order in which they were trained."""
    result = ac.search(
        setting.task,
        objectives=["accuracy", cost],
        trials=setting.trials,
        workers=1,
        seed=seed,
        out=setting.folder / f"{name}-{cost}-{seed}",
        progress=ac.Progress(),
        **options,
    )
    study, _ = open_study(RunFolder(result.out))
    task, trials, points, spent = setting.task, result.out / "trials", [], 0
    kept = kept_trials(trials)
    for trial in study.ended():
        details = trial.user_attrs.get("details", {})
        spent += details.get("config", {}).get("epochs", 0) if trial.number else 0
        if trial.number and trial.number in kept:
            metrics = trial.user_attrs["metrics"]
            program = load_program(open_checkpoint(trial_folder(trials, trial.number)).artifact_file("pt2"))
            share = metrics[cost] / setting.reference_costs[cost]
            points.append(Point(share, metrics["accuracy"], accuracy(program, task, task.test), spent))
    return points


def without_parents(setting: Setting, cost: str, seed: int) -> list[Point]:
    """A search of trials that all start from the reference."""
    with mock.patch.object(FamilyTree, "_add"):
        return searched(setting, cost, seed, "without parents")


class TorchPruning:
    """torch-pruning at the rate and step that are best on validation with one seed.

    What it trained is judged by all costs at once, and serves each of them.
    """

    def __init__(self, setting: Setting, *, iterative: bool, distilled: bool) -> None:
        self._setting, self._iterative, self._distilled = setting, iterative, distilled
        self._trained = functools.cache(self._train)

    def tuned(self, cost: str) -> Callable[[int], list[Point]]:
        """Its points by this cost, by seed."""

        def worth(rate: float, step: float) -> float:
            points = self._trained(0, rate, step)[cost]
            return hypervolume(points, self._setting.base, lambda point: point.val)

        rates, steps = self._setting.rates, self._setting.steps
        rate = max(rates, key=lambda r: worth(r, steps[0])) if len(rates) > 1 else rates[0]
        step = max(steps, key=lambda s: worth(rate, s)) if len(steps) > 1 else steps[0]
        return lambda seed: self._trained(seed, rate, step)[cost]

    def _train(self, seed: int, rate: float, step: float) -> dict[str, list[Point]]:
        points = torch_pruned(
            self._setting, seed, iterative=self._iterative, distilled=self._distilled, rate=rate, step=step
        )
        worths = (f"{cost} {worth_on_test(own, self._setting.base):.3f}" for cost, own in points.items())
        console.print(f"  seed {seed}, rate {rate:g}, step {step:g}:", *worths, highlight=False)
        return points


def contenders(setting: Setting) -> dict[str, Callable[[str], Callable[[int], list[Point]]]]:
    """Name → what prepares it for a cost and gives, by seed, its points."""
    options: dict[str, dict[str, Any]] = {
        "autocompress": {},
        "early stopping": {"early_stopping": True},
        "the sampler alone": {"sampler": "tpe"},
        "random sampler": {"sampler": "random"},
        **{f"{name} alone": {"methods": [name]} for name in ("alcn", "alds", "autoplastic", "depth", "lc")},
    }
    by_name: dict[str, Callable[[str], Callable[[int], list[Point]]]] = {
        name: lambda cost, name=name, chosen=chosen: (
            lambda seed: searched(setting, cost, seed, name, **chosen)
        )
        for name, chosen in options.items()
    }
    by_name["without parents"] = lambda cost: lambda seed: without_parents(setting, cost, seed)
    for iterative, distilled in itertools.product((True, False), (False, True)):
        name = f"torch-pruning {'iterative' if iterative else 'sweep'}{', distilled' if distilled else ''}"
        by_name[name] = TorchPruning(setting, iterative=iterative, distilled=distilled).tuned
    return by_name


def pooled_mnist(root: str | None, folder: Path) -> str:
    """A table of 16 features: MNIST in 4 × 4 means; 7,494 rows to train on."""
    task = load_task("mnist", root=root)
    file = folder / "table.npz"
    arrays = {}
    for split, batches, rows in (("train", task.train, 7494), ("test", task.test, 10_000)):
        assert batches is not None
        x = torch.from_numpy(np.asarray(batches.x[:rows], dtype=np.float32))  # type: ignore[attr-defined]
        arrays[f"x_{split}"] = F.avg_pool2d(x.reshape(-1, 1, 28, 28), 7).flatten(1).numpy()
        arrays[f"y_{split}"] = batches.targets[:rows]  # type: ignore[attr-defined]
    np.savez(file, **arrays)
    return f"npz:{file}"


def mlp(inputs: int, classes: int) -> nn.Sequential:
    """The MLP 256-128-64."""
    widths = [inputs, 256, 128, 64]
    hidden = [layer for a, b in itertools.pairwise(widths) for layer in (nn.Linear(a, b), nn.ReLU())]
    return nn.Sequential(*hidden, nn.Linear(64, classes))


def table_mlp() -> nn.Sequential:
    return mlp(16, 10)


def prepared(args: argparse.Namespace, folder: Path) -> Setting:
    """The task with its splits, and the reference, trained once."""
    if args.task == "cifar10":
        weights = read_weights(Path(args.data_root) / "pretrained" / "resnet20-12fca82f.th")
        task = replace(load_task("cifar10", model="resnet20", root=args.data_root), weights=weights)
        task, _ = with_validation(task)
    else:
        name = pooled_mnist(args.data_root, folder) if args.task == "table" else args.task
        task, _ = with_validation(load_task(name, root=args.data_root))
        if args.task == "table":
            task = replace(task, model=table_mlp)
    task = task.with_recipe(epochs=args.epochs)
    if args.rows:
        drawn = np.sort(np.random.default_rng(0).permutation(len(task.train.targets))[: args.rows])
        task = replace(task, train=task.train.subset(drawn))
    seed_everything(0, task)
    model = task.model()
    if task.weights is None:
        epochs = args.reference_epochs or task.recipe.reference_epochs or 30
        Trainer(task, epochs, reference=True).fit(model, epochs)
        task = replace(task, weights={name: t.numpy() for name, t in model.state_dict().items()})
    else:
        load_weights(model, task.weights)
    model.eval()
    costs = {"macs": float(layer_macs(model, task.example())[""]), "bytes": 4.0 * count_params(model)}
    assert task.val is not None
    assert task.test is not None
    base = Point(1.0, accuracy(model, task, task.val), accuracy(model, task, task.test))
    setting = Setting(task, args.trials, model, base, {name: costs[name] for name in args.cost}, folder)
    return replace(setting, rates=args.rates or setting.rates, steps=args.steps or setting.steps)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--task", choices=["digits", "fashion_mnist", "cifar10", "table"], default="digits")
    parser.add_argument("--cost", choices=["macs", "bytes"], nargs="+", default=["macs"])
    parser.add_argument("--trials", type=int, default=12)
    parser.add_argument("--epochs", type=int, default=5)
    parser.add_argument("--reference-epochs", type=int)
    parser.add_argument("--rows", type=int, help="of the training split, drawn at random; all by default")
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--rates", type=float, nargs="+", help="that torch-pruning is tried at")
    parser.add_argument("--steps", type=float, nargs="+", help="that it is tried with; of one, none is tuned")
    parser.add_argument("--data-root")
    parser.add_argument("--plot", help="file of a plot of hypervolume against epochs spent")
    parser.add_argument("--only", nargs="*", help="names of contenders, or their beginnings")
    args = parser.parse_args()
    with tempfile.TemporaryDirectory() as scratch:
        setting = prepared(args, Path(scratch))
        costs = ", ".join(f"{value:.0f} {name}" for name, value in setting.reference_costs.items())
        console.print(
            f"reference: validation {setting.base.val:.4f}, test {setting.base.test:.4f}; {costs}",
            highlight=False,
        )
        every = contenders(setting)
        chosen = [name for name in every if not args.only or name.startswith(tuple(args.only))]
        if not chosen:
            parser.error(f"--only must name one of {', '.join(every)} but got {' '.join(args.only)}")
        for cost in args.cost:
            title = f"{args.task}, {args.trials} × {args.epochs} epochs, {cost}"
            curves = compared(setting, cost, {name: every[name] for name in chosen}, args.seeds, title)
            if len(curves) > 1:
                console.print(leading(curves))
            if args.plot:
                file = Path(args.plot)
                file = file.with_stem(f"{file.stem}-{cost}") if len(args.cost) > 1 else file
                draw(curves, title, args.epochs, file)


def compared(
    setting: Setting,
    cost: str,
    chosen: Mapping[str, Callable[[str], Callable[[int], list[Point]]]],
    seeds: int,
    title: str,
) -> dict[str, list[float]]:
    """A table of what the contenders' fronts are worth; of each the median seed's worth by trial."""
    base, epochs = setting.base, setting.task.recipe.epochs
    table = Table(title=title)
    for column in ("who", "hypervolume", "range", "points", "cheapest", "seconds a seed"):
        table.add_column(column, justify="left" if column == "who" else "right")
    curves: dict[str, list[float]] = {}
    for name, prepare in chosen.items():
        run = prepare(cost)
        begun = time.perf_counter()
        runs = []
        for seed in range(1, seeds + 1):
            runs.append(run(seed))
            console.print(f"  {name}, seed {seed}: {worth_on_test(runs[-1], base):.3f}", highlight=False)
        seconds = (time.perf_counter() - begun) / seeds
        worths = [worth_on_test(points, base) for points in runs]
        middle = runs[worths.index(statistics.median_low(worths))]
        curves[name] = [
            worth_on_test([p for p in middle if p.spent <= trials * epochs], base)
            for trials in range(setting.trials + 1)
        ]
        cheapest = min((p.cost for p in runs[0] if p.val >= SHARE * base.val), default=1.0)
        table.add_row(
            name,
            f"{statistics.median(worths):.3f}",
            f"{min(worths):.3f} to {max(worths):.3f}",
            str(len(runs[0])),
            f"{cheapest:.3f}",
            f"{seconds:.0f}",
        )
        console.print(
            f"{cost}: {name}", *(f"{worth:.3f}" for worth in worths), f"{seconds:.0f} s", highlight=False
        )
        console.print("  by trial", *(f"{worth:.2f}" for worth in curves[name]), highlight=False)
    console.print(table)
    return curves


if __name__ == "__main__":
    main()
