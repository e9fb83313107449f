"""What int8 costs and saves: float, all in int8, int8 as far as it is faster and exact, and with weights of
4 bits as far as that is exact; and OpenVINO's files.

    python examples/benchmarks/int8_control.py --data-root DATA [--models resnet20 mobilenet_v3_small vit]
        [--tune EPOCHS] [--rows ROWS]

resnet20 with its published weights on CIFAR-10; torchvision's mobilenet_v3_small on Fashion-MNIST in
32 × 32, and a vision transformer of four blocks on the digits, both trained here for some epochs. Accuracy is
that on the test split, of the file as loaded; time that of a call with one row, CPU, one thread, relative to
the float file's in the same format. With `--tune` the same files follow of the model after so many more
epochs, at the least rate that searches use: as ever, and at the numbers of int8 (`ac.Qat`).
"""

from __future__ import annotations

import argparse
import copy
import tempfile
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import torch
from published import resnet20
from rich.console import Console
from rich.table import Table
from torch import Tensor, nn
from torchvision.models import mobilenet_v3_small

import autocompress as ac
from autocompress.checkpoint import export_onnx, export_openvino, load_program
from autocompress.checkpoint.openvino_int8 import quantize_openvino
from autocompress.checkpoint.program import files_of
from autocompress.checkpoint.quantize import Quantized, quantize_onnx
from autocompress.checkpoint.timing import seconds_of
from autocompress.data import load_task
from autocompress.measure.latency import LatencySettings, measure_latency
from autocompress.task.pretrained import load_weights
from autocompress.training.loop import Trainer
from autocompress.trial import Measuring, compress_in_stages, seed_everything
from autocompress.trial.int8 import int8_data

console = Console(width=140)
# Of the recipe's learning rate.
LR_SCALE = 0.2
NODES = ("in int8", "int8 weights", "floats", "of 4 bits")
COLUMNS = ("model", "more epochs", "file", "test accuracy", "other answers", "bytes", "time", *NODES)


class Vit(nn.Module):
    """A transformer on patches of 2 × 2 pixels of an image of 8 × 8."""

    def __init__(self) -> None:
        super().__init__()
        self.patch = nn.Conv2d(1, 96, 2, 2)
        self.place = nn.Parameter(0.02 * torch.randn(1, 16, 96))
        block = nn.TransformerEncoderLayer(
            96, 4, 192, 0.0, batch_first=True, norm_first=True, activation="gelu"
        )
        self.blocks = nn.TransformerEncoder(block, 4, enable_nested_tensor=False)
        self.head = nn.Linear(96, 10)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.blocks(self.patch(x).flatten(2).transpose(1, 2) + self.place).mean(1))


class Mobile(nn.Module):
    """mobilenet_v3_small on grey images, enlarged to 32 × 32."""

    def __init__(self) -> None:
        super().__init__()
        self.net = mobilenet_v3_small(num_classes=10)
        # Smaller images than it was made for: the first step down is left out.
        self.net.features[0][0] = nn.Conv2d(1, 16, 3, padding=1, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        return self.net(nn.functional.pad(x, (2, 2, 2, 2)))


@dataclass(frozen=True)
class Case:
    """A task, and the epochs that its model is trained for; none where it has weights."""

    task: Callable[[Path], ac.Task]
    epochs: int = 0


def mobile(root: Path) -> ac.Task:
    task = load_task("fashion_mnist", root=root)
    rows = np.arange(12_000)
    return replace(task, model=Mobile, train=task.train.subset(rows), model_name="mobilenet_v3_small")


def vit(root: Path) -> ac.Task:
    return replace(load_task("digits"), model=Vit, model_name="vit")


CASES = {
    "resnet20": Case(lambda root: resnet20(str(root))),
    "mobilenet_v3_small": Case(mobile, epochs=6),
    "vit": Case(vit, epochs=20),
}


def trained(case: Case, task: ac.Task) -> nn.Module:
    seed_everything(0, task)
    model = task.model()
    if task.weights is not None:
        load_weights(model, task.weights)
    else:
        Trainer(task, case.epochs, reference=True).fit(model, case.epochs)
    return model.eval()


def tuned(model: nn.Module, task: ac.Task, epochs: int, methods: list[ac.Qat]) -> nn.Module:
    """A copy of a model after some more epochs, with these methods."""
    seed_everything(0, task)
    trainer = Trainer(task.with_recipe(epochs=epochs), epochs, lr_scale=LR_SCALE)
    return compress_in_stages(copy.deepcopy(model), task, methods, trainer, 0.5).model.eval()


def models(model: nn.Module, task: ac.Task, epochs: int) -> dict[str, nn.Module]:
    """The model, and where it is to be tuned, two that were."""
    if not epochs:
        return {"": model}
    plain, aware = (tuned(model, task, epochs, methods) for methods in ([], [ac.Qat()]))
    return {"": model, f"{epochs}": plain, f"{epochs}, QAT": aware}


def files(model: nn.Module, task: ac.Task, folder: Path) -> dict[str, tuple[Path, Quantized | None]]:
    """ONNX's float file, that of plain quantisation, and those under control."""
    calibration, control = int8_data(task, Measuring(artifact="onnx-int8"))
    made: dict[str, tuple[Path, Quantized | None]] = {}
    for name in ("float", "all in int8", "as it is chosen", "4 bits as chosen"):
        path = folder / f"{name}.onnx"
        export_onnx(model, task.example(), path)
        how = None
        if name != "float":
            controlled = None if name == "all in int8" else control
            four_bits = name == "4 bits as chosen"
            how = quantize_onnx(path, calibration, control=controlled, four_bits=four_bits)
        made[name] = path, how
    return made


def openvino_files(model: nn.Module, task: ac.Task, folder: Path) -> dict[str, tuple[Path, Quantized | None]]:
    """OpenVINO's float file, and that in int8 under control."""
    made: dict[str, tuple[Path, Quantized | None]] = {}
    for name in ("OpenVINO float", "OpenVINO int8"):
        path, how = folder / f"{name}.xml", None
        export_openvino(model, task.example(), path)
        if name == "OpenVINO int8":
            calibration, control = int8_data(task, Measuring(artifact="openvino-int8"))
            how = quantize_openvino(path, calibration, control=control)
        made[name] = path, how
    return made


def answers(path: Path, task: ac.Task) -> Tensor:
    """The class that a file gives each row of the test split."""
    program = load_program(path)
    return torch.cat([task.answer(program(task.inputs_of(batch))).argmax(1) for batch in task.test or ()])


def rows_of(name: str, arguments: argparse.Namespace) -> Iterator[list[str]]:
    """A row of the table for each file of a model."""
    case = CASES[name]
    task = case.task(arguments.data_root)
    with tempfile.TemporaryDirectory() as scratch, task.opened() as opened:
        assert opened.test is not None
        targets = torch.cat([opened.targets_of(batch) for batch in opened.test])
        model = trained(case, opened)
        if arguments.rows:
            opened = replace(opened, train=opened.train.subset(np.arange(arguments.rows)))
        for tuning, tuned_model in models(model, opened, arguments.tune).items():
            made = files(tuned_model, opened, Path(scratch))
            contents = [path.read_bytes() for path, _ in made.values()]
            seconds = seconds_of(contents, [opened.example(1).numpy()])
            ratios = [taken / seconds[0] for taken in seconds]
            others = openvino_files(tuned_model, opened, Path(scratch))
            reference = others["OpenVINO float"][0]
            for path, _ in others.values():
                ratios.append(measure_latency(path, reference, opened.example(1), LatencySettings()).ratio)
            in_floats = answers(made["float"][0], opened)
            for (kind, (path, how)), ratio in zip((made | others).items(), ratios, strict=True):
                given = answers(path, opened)
                accuracy, kept = ((given == other).float().mean() for other in (targets, in_floats))
                parts = (how.int8, how.weights, how.floats, how.four_bits) if how else ()
                nodes = [len(part) for part in parts] or [""] * len(NODES)
                size = f"{sum(part.stat().st_size for part in files_of(path)):,}"
                cells = [f"{accuracy:.2%}", f"{1 - kept:.2%}", size, f"{ratio:.2f}"]
                yield [name, tuning, kind, *cells, *map(str, nodes)]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--data-root", type=Path, required=True)
    parser.add_argument("--models", nargs="*", default=list(CASES), choices=list(CASES))
    parser.add_argument("--tune", type=int, default=0, help="more epochs, with and without QAT")
    parser.add_argument("--rows", type=int, help="of the training split, in these epochs")
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    table = Table(*COLUMNS)
    for name in arguments.models:
        for cells in rows_of(name, arguments):
            table.add_row(*cells)
            console.log(*cells)
    console.print(table)


if __name__ == "__main__":
    main()
