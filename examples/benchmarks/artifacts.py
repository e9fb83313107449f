"""What a call of each artefact of a front's models takes beside the dense one, in time and peak memory.

    autocompress search digits --objectives accuracy,bytes --trials 12 --out runs/digits
    python examples/benchmarks/artifacts.py runs/digits --task digits [--data-root DATA] [--trials 7 12]

Every file is written anew, by `export` or as `--artifact onnx-int8` makes it, for the reference and for the
run's models, and called with one row on one thread of a CPU. Times are relative to the reference's file of
the same kind, and for int8 to its float ONNX file; memory is the most that a process holds for a call. The
test accuracy is that of the file.
"""

from __future__ import annotations

import argparse
import tempfile
from pathlib import Path

import torch
from rich.console import Console
from rich.table import Table

import autocompress as ac
from autocompress.checkpoint import load_program
from autocompress.checkpoint.program import files_of
from autocompress.checkpoint.quantize import quantize_onnx
from autocompress.data import load_task
from autocompress.measure import measure_split
from autocompress.measure.artifact import peak_memory
from autocompress.measure.latency import LatencySettings, measure_latency
from autocompress.trial import Measuring
from autocompress.trial.int8 import int8_data

# Artefact → the format that it begins as, and the ending of its file.
KINDS = {
    "pt2": ("pt2", "pt2"),
    "onnx": ("onnx", "onnx"),
    "onnx-int8": ("onnx", "onnx"),
    "openvino": ("openvino", "xml"),
}
console = Console(width=120)


def written(point: ac.ParetoModel, kind: str, task: ac.Task, folder: Path) -> Path:
    """A model's artefact of a kind."""
    form, ending = KINDS[kind]
    path = folder / f"{point.trial}-{kind}.{ending}"
    point.export(path, form)
    if kind == "onnx-int8":
        calibration, control = int8_data(task, Measuring(artifact=kind))
        quantize_onnx(path, calibration, control=control)
    return path


def size(path: Path) -> int:
    return sum(part.stat().st_size for part in files_of(path))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("run", type=Path)
    parser.add_argument("--task", required=True, help="that was searched, by its name")
    parser.add_argument("--data-root")
    parser.add_argument("--trials", type=int, nargs="*", help="of the front; all by default")
    parser.add_argument("--kinds", nargs="*", default=list(KINDS), choices=list(KINDS))
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    result, task = ac.load_run(arguments.run), load_task(arguments.task, root=arguments.data_root)
    wanted = arguments.trials or [point.trial for point in result.front if point.trial]
    models = [result.reference, *(point for point in result.front if point.trial in wanted)]
    table = Table("model", "artefact", "test accuracy", "bytes", "time of a call", "peak memory")
    with tempfile.TemporaryDirectory() as scratch, task.opened() as opened:
        example = opened.example(1)
        floats = {
            kind: written(result.reference, form, opened, Path(scratch)) for kind, (form, _) in KINDS.items()
        }
        for point in models:
            for kind in arguments.kinds:
                path = written(point, kind, opened, Path(scratch))
                accuracy = measure_split(load_program(path), opened.test, opened, resampled=False).values
                timing = measure_latency(path, floats[kind], example, LatencySettings())
                cells = [
                    f"trial {point.trial}" if point.trial else "dense",
                    kind,
                    f"{accuracy['accuracy']:.2%}",
                    f"{size(path):,}",
                    f"{timing.ratio:.2f}",
                    f"{peak_memory(path, example) / 1e6:.1f} MB",
                ]
                console.log(*cells)
                table.add_row(*cells)
    console.print(table)


if __name__ == "__main__":
    main()
