"""Do two measurements of one model agree while the machine is busy?

    python examples/benchmarks/latency_agreement.py [--load 2] [--repeats 4]

Halves the channels of a few models, exports both forms, starts `--load` processes that keep
the CPU busy, and measures each ratio several times as a search does at its end. The bar: any two
measurements of one model agree within 5 %.
"""

from __future__ import annotations

import argparse
import contextlib
import os
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path

import torch
from rich.console import Console
from rich.table import Table

from autocompress.checkpoint import export_onnx, export_program
from autocompress.graph import analyse, compact
from autocompress.measure.latency import LatencySettings, measure_latency
from autocompress.models.registry import model_factory

# Model → side of its images.
MODELS = {"resnet20": 32, "mobilenet_v2": 64, "shufflenet_v2_x1_0": 64, "resnet18": 64}
BAR = 0.05


@contextlib.contextmanager
def busy(count: int) -> Iterator[None]:
    """Processes that use the CPU and memory as training does."""
    code = "import torch; torch.set_num_threads(1); a = torch.randn(700, 700)\nwhile True: a @ a"
    processes = [subprocess.Popen([sys.executable, "-c", code]) for _ in range(count)]
    try:
        yield
    finally:
        for process in processes:
            process.kill()


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--load", type=int, default=os.cpu_count() or 1)
    parser.add_argument("--repeats", type=int, default=4)
    arguments = parser.parse_args()
    table = Table(title=f"CPU-time ratio to the reference, {arguments.load} busy processes")
    for column in ("model", "format", "ratios", "spread of pairs", "largest disagreement", "within 5 %"):
        table.add_column(column)
    with tempfile.TemporaryDirectory() as scratch, busy(arguments.load):
        for name, side in MODELS.items():
            torch.manual_seed(0)
            model = model_factory(name, (3, side, side), 10)().eval()
            x = torch.randn(2, 3, side, side)
            analysis = analyse(model, x)
            keep = {g.name: range((g.width + 1) // 2) for g in analysis.groups}
            smaller, _ = compact(model, analysis, keep, x)
            for suffix, write in (("pt2", export_program), ("onnx", export_onnx)):
                files = [Path(scratch) / f"{name}-{which}.{suffix}" for which in ("small", "whole")]
                for file, subject in zip(files, (smaller, model), strict=True):
                    write(subject, x, file)
                timings = [measure_latency(*files, x, LatencySettings()) for _ in range(arguments.repeats)]
                ratios = [one.ratio for one in timings]
                apart = max(ratios) / min(ratios) - 1
                spread = max(one.spread for one in timings)
                cells = (" ".join(f"{r:.3f}" for r in ratios), f"{spread:.1%}", f"{apart:.1%}")
                table.add_row(name, suffix, *cells, "yes" if apart <= BAR else "NO")
                Console().print(f"{name} {suffix} done", highlight=False)
    Console(width=120).print(table)


if __name__ == "__main__":
    main()
