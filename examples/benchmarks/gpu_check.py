"""Training on a GPU: trials as right as on the CPU, and steps as fast as those of a loop written by hand.

    python examples/benchmarks/gpu_check.py [--data-root DATA] [--quick] [--device cuda]

Needs torch, torchvision, numpy, scipy, safetensors and this package, and no other of its dependencies.

trials: every method through `run_trial` on the device and on the CPU, from the same weights, over the same
batches in the same order, in full single precision. The stored file must compute on the device what it does
on the CPU, and both trials must end alike.
speed: steps per second of resnet20 on images of CIFAR-10's size (or on CIFAR-10 itself, from DATA) in
batches of 512, bfloat16, channels-last, images shifted and mirrored: `Trainer` by itself and with each
method, against a plain PyTorch loop with the same data, augmentation, optimiser and precision. `waits` is
how often a step waits for the device.

Under 6 minutes on an H100. `--quick` is tiny, and runs on a CPU in a minute. Ends with 1 where a trial fails
or `Trainer` reaches less than 60 % of the plain loop.
"""

from __future__ import annotations

import argparse
import math
import statistics
import sys
import tempfile
import time
import warnings
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from torch import Tensor, nn

from autocompress import plugins
from autocompress.checkpoint import load_program
from autocompress.checkpoint.program import program_on
from autocompress.data.arrays import TensorBatches
from autocompress.data.sources import torchvision_arrays
from autocompress.errors import AutocompressError, one_line
from autocompress.graph import analyse
from autocompress.graph.costs import profile
from autocompress.graph.proof import relative_difference
from autocompress.methods.base import Session
from autocompress.models.resnet_cifar import ResNetCifar
from autocompress.models.small_cnn import SmallCnn
from autocompress.task import InputSpec, ModelProfile, Recipe, Task
from autocompress.training.loop import Plain, Trainer
from autocompress.trial import (
    Measuring,
    Reference,
    Stage,
    TrialConfig,
    make_method,
    run_trial,
    seed_everything,
    train_reference,
)

METHODS = ("alcn", "depth", "alds", "autoplastic", "lc")
CLASSES = 10
# Outputs of the stored file on the device and on the CPU; both in single precision.
OUTPUTS_DIFFER = 1e-4
# Of two trials over the same batches, which drift apart by rounding alone: their last loss, relative, their
# accuracy, and the share of their parameters that a unit more or less at a threshold makes.
LOSS_DIFFERS, ACCURACY_DIFFERS, SIZE_DIFFERS = 0.05, 0.05, 0.05
LEAST_RATIO = 0.6
MOST_COMPILING = 60.0  # seconds


class Recurrent(nn.Module):
    """Rows of an image, one after the other, with their positions; `(B, 3, H, W)` → `(B, classes)`.

    The states of the LSTM and the positions are tensors that the model makes when it is called.
    """

    def __init__(self, side: int) -> None:
        super().__init__()
        self.enter, self.place = nn.Linear(3 * side, 32), nn.Embedding(side, 32)
        self.rnn = nn.LSTM(32, 24, batch_first=True)
        self.hidden, self.head = nn.Linear(24, 40), nn.Linear(40, CLASSES)

    def forward(self, x: Tensor) -> Tensor:
        rows = self.enter(x.transpose(1, 2).flatten(2))
        states, _ = self.rnn(torch.relu(rows + self.place(torch.arange(rows.shape[1], device=x.device))))
        outputs: Tensor = self.head(torch.relu(self.hidden(states[:, -1])))
        return outputs


@dataclass(frozen=True)
class Sizes:
    """How much is run: images and epochs of a trial; images, batch size and timed epochs of the speed."""

    trial_images: int
    trial_side: int
    trial_epochs: int
    blocks: int
    images: int
    batch_size: int
    timed_epochs: int


FULL = Sizes(1024, 32, 4, 3, 97 * 512, 512, 4)
QUICK = Sizes(192, 16, 2, 1, 2 * 16, 16, 1)


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--data-root", help="folder with CIFAR-10; random images without it")
    parser.add_argument("--quick", action="store_true", help="tiny sizes, to see that it runs")
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    parser.add_argument("--parts", default="trials,speed", help="which of trials, speed")
    parser.add_argument("--no-compile", action="store_true", help="leave torch.compile out")
    arguments = parser.parse_args()
    sizes, device = QUICK if arguments.quick else FULL, torch.device(arguments.device)
    name = torch.cuda.get_device_name(device) if device.type == "cuda" else "CPU"
    print(f"{name}, torch {torch.__version__}, {torch.get_num_threads()} threads\n")
    start, faults = time.perf_counter(), []
    if "speed" in arguments.parts:
        faults += speed(sizes, device, arguments.data_root, not arguments.no_compile)
    if "trials" in arguments.parts:
        faults += trials(sizes, device)
    print(f"{time.perf_counter() - start:.0f} s in all")
    for fault in faults:
        print("FAULT", fault)
    return 1 if faults else 0


# --- trials -----------------------------------------------------------------------------------------------


def trials(sizes: Sizes, device: torch.device) -> list[str]:
    """Run every method on the device and on the CPU; what was wrong."""
    side = sizes.trial_side
    models: dict[str, Callable[[], nn.Module]] = {
        "small_cnn": lambda: SmallCnn(3, CLASSES),
        "resnet20": lambda: ResNetCifar(sizes.blocks, 3, CLASSES),
        "recurrent": lambda: Recurrent(side),
    }
    rows, faults = [], []
    for name, model in models.items():
        task = trial_task(model, sizes)
        with tempfile.TemporaryDirectory() as scratch, single_precision():
            reference = stored_reference(task, Path(scratch), device)
            seen = profile_of(model(), task)
            for method in METHODS:
                label = f"{name} {method}"
                unsupported = plugins.compressor(method).unsupported(seen)
                if unsupported:
                    rows.append([label, unsupported])
                    continue
                cells, wrong = compared(
                    task, reference, config_of(method, seen, sizes), Path(scratch), device
                )
                rows.append([label, *cells])
                faults += [f"{label}: {what}" for what in wrong]
                # At once, for whoever ends it before its end.
                print("  ".join(rows[-1]), flush=True)
    print()
    columns = ("trial", "outputs differ", "accuracy", "on CPU", "parameters", "on CPU", "loss", "on CPU", "s")
    show(
        f"trials on {device}; outputs may differ by {OUTPUTS_DIFFER:g}, accuracy by {ACCURACY_DIFFERS:g}, "
        f"parameters by {SIZE_DIFFERS:.0%}, loss by {LOSS_DIFFERS:.0%}",
        columns,
        rows,
    )
    return faults


@contextmanager
def single_precision() -> Iterator[None]:
    """Convolutions in single precision, as on the CPU, and not in TF32."""
    before = torch.backends.cudnn.allow_tf32
    torch.backends.cudnn.allow_tf32 = False
    try:
        yield
    finally:
        torch.backends.cudnn.allow_tf32 = before


def trial_task(model: Callable[[], nn.Module], sizes: Sizes) -> Task:
    """Images of ten classes that can be told apart, in an order that is the same on every device."""
    x, y = images(sizes.trial_images, sizes.trial_side)
    spec = InputSpec(x.shape[1:], "float32", 1 / 255, (0.5,) * 3, (0.25,) * 3)
    batches = TensorBatches(x, y, spec, 64)
    recipe = Recipe(epochs=sizes.trial_epochs, reference_epochs=2, lr=2e-3)
    return Task(
        model=model, train=batches, val=batches.subset(np.arange(len(x) // 2)), recipe=recipe, input=spec
    )


def images(count: int, side: int) -> tuple[NDArray[np.uint8], NDArray[np.int64]]:
    """Noise around one smooth image for each class."""
    rng = np.random.default_rng(0)
    y = rng.integers(0, CLASSES, count)
    means = rng.normal(128, 40, (CLASSES, 3, 4, 4)).repeat(side // 4, 2).repeat(side // 4, 3)
    x = means[y] + rng.normal(0, 60, (count, 3, side, side))
    return x.clip(0, 255).astype(np.uint8), y.astype(np.int64)


def stored_reference(task: Task, folder: Path, device: torch.device) -> Reference:
    checkpoint = train_reference(task, folder / "reference", Measuring(), device=str(device))
    return Reference.of(checkpoint, task.model())


def profile_of(model: nn.Module, task: Task) -> ModelProfile:
    example = task.example()
    return profile(model, example, analyse(model, example))


def config_of(method: str, seen: ModelProfile, sizes: Sizes) -> TrialConfig:
    """A method with its own settings, except for what depends on the model."""
    config: dict[str, Any] = asdict(plugins.compressor(method).Config())
    if method == "alds":
        config |= {"keep": 0.85}  # which the recurrent model can be cut to
    if method == "depth":
        pairs = [(a, cut.partners[0]) for a, cut in enumerate(seen.cut_points) if cut.partners]
        config |= {"cuts": (pairs[len(pairs) // 2],), "refine_steps": 5}
    return TrialConfig((Stage(method, config),), epochs=sizes.trial_epochs, distill_weight=0.3)


def compared(
    task: Task, reference: Reference, config: TrialConfig, folder: Path, device: torch.device
) -> tuple[list[str], list[str]]:
    """One trial on the device and on the CPU: cells of the table, and what differs too much."""
    start = time.perf_counter()
    try:
        near = run_trial(task, reference, config, folder / "device", device=str(device))
        seconds = time.perf_counter() - start
        far = near if device.type == "cpu" else run_trial(task, reference, config, folder / "cpu")
    except (AutocompressError, RuntimeError) as error:
        return [one_line(error)], [one_line(error)]
    file, example = folder / "device" / "model.pt2", task.example(64)
    program, where = program_on(file, device, example)
    with torch.no_grad():
        difference = relative_difference(load_program(file)(example), program(example.to(where)).cpu())
    losses = near.history[-1]["loss"], far.history[-1]["loss"]
    accuracies = near.metrics["accuracy"], far.metrics["accuracy"]
    params = near.metrics["params"], far.metrics["params"]
    wrong = {
        f"the stored file runs on {where} alone": where.type != device.type,
        f"outputs of the stored file differ by {difference:.1e}": not difference <= OUTPUTS_DIFFER,
        f"accuracies are {accuracies}": abs(accuracies[0] - accuracies[1]) > ACCURACY_DIFFERS,
        f"losses are {losses}": not abs(losses[0] - losses[1]) <= LOSS_DIFFERS * abs(losses[1]),
        f"parameters are {params}": abs(params[0] - params[1]) > SIZE_DIFFERS * params[1],
    }
    cells = [f"{difference:.1e}", *(f"{value:.4f}" for value in accuracies)]
    cells += [*(f"{value:.0f}" for value in params), *(f"{value:.4f}" for value in losses), f"{seconds:.1f}"]
    return cells, [what for what, is_so in wrong.items() if is_so]


# --- speed ------------------------------------------------------------------------------------------------


def speed(sizes: Sizes, device: torch.device, root: str | None, compiling: bool) -> list[str]:
    """Time the plain loop and ours; what was too slow."""
    x, y = (None, None) if root is None else torchvision_arrays("cifar10", Path(root))[:2]
    if x is None or y is None:
        x, y = images(sizes.images, 32)
    else:
        x, y = np.ascontiguousarray(x[: sizes.images].transpose(0, 3, 1, 2)), y[: sizes.images]
    spec = InputSpec((3, 32, 32), "float32", 1 / 255, (0.5,) * 3, (0.25,) * 3)
    recipe = Recipe(epochs=1, lr=1e-3, augment="crop-flip", mixed_precision=True)
    batches = TensorBatches(x, y, spec, sizes.batch_size, shuffle=True)
    task = Task(
        model=lambda: ResNetCifar(sizes.blocks, 3, CLASSES),
        train=batches,
        val=batches,
        recipe=recipe,
        input=spec,
    )
    rows, faults = [], []

    def add(label: str, run: Run, against: float) -> float:
        rows.append(
            [label, f"{run.rate:.1f}", f"{run.rate / against:.2f}" if against else "", f"{run.waits:.1f}"]
        )
        print("  ".join(rows[-1]), flush=True)
        return run.rate / against if against else 1.0

    bare = PlainLoop(task, device).run(sizes)
    add("a plain PyTorch loop", bare, bare.rate)
    ratio = add("Trainer", timed(task, device, sizes), bare.rate)
    if ratio < LEAST_RATIO:
        faults.append(f"Trainer reaches {ratio:.2f} of the plain loop, not {LEAST_RATIO}")
    for method in METHODS:
        config = config_of(method, profile_of(task.model(), task), sizes).stages[0].config
        add(f"Trainer, {method}", timed(task, device, sizes, method, config), bare.rate)
    if compiling:
        start = time.perf_counter()
        bare_compiled = PlainLoop(task, device, compiled=True).run(sizes)
        seconds = time.perf_counter() - start - sum(bare_compiled.epochs[1:])
        add(f"the plain loop, torch.compile ({seconds:.0f} s)", bare_compiled, bare.rate)
        if seconds < MOST_COMPILING:
            run = timed(task.with_recipe(compile=True), device, sizes)
            add("Trainer, compile=True", run, bare.rate)
            rows[-1][2] += f", {run.rate / bare_compiled.rate:.2f} of the compiled loop"
    print()
    model = "resnet20" if sizes.blocks == 3 else "a small ResNet"
    show(
        f"{model}, batches of {sizes.batch_size}, bfloat16, channels-last, crop and flip",
        ("loop", "steps/s", "of the plain loop", "waits/step"),
        rows,
    )
    return faults if device.type != "cpu" else []


@dataclass(frozen=True)
class Run:
    """Seconds of each epoch, the first of which warms up, its steps, and how often one waits."""

    epochs: list[float]
    steps: int
    waits: float

    @property
    def rate(self) -> float:
        """Steps per second, by the median of the epochs after the first."""
        return self.steps / statistics.median(self.epochs[1:])


class PlainLoop:
    """What one writes by hand for this model and these data, with the usual care for speed."""

    def __init__(self, task: Task, device: torch.device, compiled: bool = False) -> None:
        batches = task.train
        assert isinstance(batches, TensorBatches)
        self.recipe, self.device, self.size = task.recipe, device, batches.batch_size
        self.count = len(batches.x)
        raw = torch.from_numpy(batches.x).to(device).contiguous(memory_format=torch.channels_last)
        # Zeros after normalisation, as ours are.
        mean, std = (
            torch.tensor(v, device=device).view(1, 3, 1, 1) for v in (batches.spec.mean, batches.spec.std)
        )
        normalised = ((raw.float() * batches.spec.scale - mean) / std).bfloat16()
        self.images = F.pad(normalised, (4,) * 4).permute(0, 2, 3, 1).contiguous()  # (N, 40, 40, 3)
        self.targets = torch.from_numpy(batches.targets).to(device)
        self.side = torch.arange(32, device=device)
        seed_everything(0)
        self.model = task.model().to(device, memory_format=torch.channels_last).train()
        self.forward: Any = torch.compile(self.model) if compiled else self.model
        fused = True if device.type == "cuda" else None
        self.optimizer = torch.optim.AdamW(
            self.model.parameters(), self.recipe.lr, weight_decay=self.recipe.weight_decay, fused=fused
        )

    def run(self, sizes: Sizes) -> Run:
        steps = -(-self.count // self.size)
        seconds, taken, total = [], 0, (sizes.timed_epochs + 2) * steps
        for _ in range(sizes.timed_epochs + 1):
            start = time.perf_counter()
            taken = self.epoch(taken, total)
            seconds.append(time.perf_counter() - start)
        with waits_counted(self.device) as seen:
            self.epoch(taken, total)
        return Run(seconds, steps, len(seen) / steps)

    def epoch(self, taken: int, total: int) -> int:
        order = torch.randperm(self.count, device=self.device)
        sum_of_losses = torch.zeros((), device=self.device)
        for index in order.split(self.size):
            self.optimizer.param_groups[0]["lr"] = (
                self.recipe.lr * 0.5 * (1 + math.cos(math.pi * taken / total))
            )
            self.optimizer.zero_grad(set_to_none=True)
            with torch.autocast(self.device.type, torch.bfloat16):
                loss = F.cross_entropy(self.forward(self.batch(index)), self.targets[index])
            loss.backward()
            self.optimizer.step()
            sum_of_losses += loss.detach()
            taken += 1
        assert math.isfinite(float(sum_of_losses))
        return taken

    def batch(self, index: Tensor) -> Tensor:
        """Images shifted by up to 4 and mirrored at random, in one gather."""
        count = len(index)
        offsets = torch.randint(0, 9, (2, count, 1), device=self.device)
        mirrored = torch.rand(count, 1, device=self.device) < 0.5
        columns = torch.where(mirrored, 31 - self.side, self.side) + offsets[1]
        rows = self.side + offsets[0]
        return self.images[index[:, None, None], rows[:, :, None], columns[:, None, :]].permute(0, 3, 1, 2)


def timed(
    task: Task, device: torch.device, sizes: Sizes, method: str = "", config: Mapping[str, Any] | None = None
) -> Run:
    """`Trainer` by itself, or with a method attached."""
    seed_everything(0)
    model = task.model().to(device)
    session: Session = Plain(model)
    if method:
        session = make_method(Stage(method, dict(config or {}))).start(model, task)
    ends = [time.perf_counter()]
    epochs = sizes.timed_epochs + 1
    trainer = Trainer(task, epochs + 1, report=lambda entry: ends.append(time.perf_counter()))
    trainer.fit(session.model, epochs, session)
    with waits_counted(device) as seen:
        trainer.fit(session.model, 1, session)
    steps = len(task.train)  # type: ignore[arg-type]
    return Run(
        [end - begin for begin, end in pairwise(ends[: epochs + 1])],
        steps,
        len(seen) / steps,
    )


@contextmanager
def waits_counted(device: torch.device) -> Iterator[list[object]]:
    """PyTorch's own warnings of calls that wait for the GPU, one entry for each."""
    seen: list[object] = []
    with warnings.catch_warnings(record=True) as recorded:
        warnings.simplefilter("always")
        if device.type == "cuda":
            torch.cuda.set_sync_debug_mode("warn")
        try:
            yield seen
        finally:
            if device.type == "cuda":
                torch.cuda.set_sync_debug_mode("default")
    seen += [entry for entry in recorded if "synchronizing" in str(entry.message)]


def show(title: str, columns: Sequence[str], rows: Sequence[Sequence[str]]) -> None:
    """A table in plain text; a row that is shorter ends with a remark."""
    print(title)
    full = [columns, *(row for row in rows if len(row) == len(columns))]
    widths = [max(len(row[i]) for row in full) for i in range(len(columns))]
    widths[0] = max(len(row[0]) for row in (columns, *rows))
    for row in (columns, *rows):
        print("  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=False)).rstrip())
    print()


if __name__ == "__main__":
    sys.exit(main())
