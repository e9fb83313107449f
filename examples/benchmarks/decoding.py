"""What it costs to run a model whose weights are stored as codes: each file against the dense model's.

    python examples/benchmarks/decoding.py [--rounds 2]

For resnet20 and LeNet300 with weights drawn at random: bytes of `model.pt2` and `model.onnx`, and the time
of a call in CPU time on one thread, relative to the dense model's file of the same kind.
"""

from __future__ import annotations

import argparse
import tempfile
from pathlib import Path

import torch
from rich.console import Console
from rich.table import Table
from torch import nn

from autocompress.checkpoint import export_onnx, export_program
from autocompress.measure.latency import LatencySettings, measure_latency
from autocompress.methods.lc import Codebook, LowRank, PruneL0, Scheme
from autocompress.methods.lc.scheme import View
from autocompress.models import model_factory
from autocompress.weights.encoded import encode_weight

MODELS = {"resnet20": (3, 32, 32), "lenet300": (1, 28, 28)}
SCHEMES: dict[str, Scheme] = {
    "1 bit": Codebook(2),
    "2 bits": Codebook(4),
    "4 bits": Codebook(16),
    "10 % of the weights": PruneL0(0.1),
    "2 bits + 1 %": Codebook(4) + PruneL0(0.01),
    "2 bits + rank 2": Codebook(4) + LowRank(2),
}


def encode(model: nn.Module, scheme: Scheme) -> nn.Module:
    """Every linear and convolution layer's weight as the scheme's nearest, in place."""
    for layer in [m for m in model.modules() if isinstance(m, (nn.Linear, nn.Conv2d))]:
        view = View((tuple(layer.weight.shape),))
        encode_weight(layer, scheme.solve(layer.weight.detach().reshape(-1), 1e-3, view))
    return model.eval()


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--rounds", type=int, default=2, help="measurements of each file; the median counts")
    rounds = parser.parse_args().rounds
    table = Table("model", "weights", "pt2 bytes", "pt2 time", "onnx bytes", "onnx time")
    with tempfile.TemporaryDirectory() as scratch:
        for name, shape in MODELS.items():
            torch.manual_seed(0)
            dense, example = model_factory(name, shape, 10)().eval(), torch.randn(2, *shape)
            for weights, scheme in {"dense": None, **SCHEMES}.items():
                torch.manual_seed(0)
                model = model_factory(name, shape, 10)().eval()
                cells = [name, weights]
                for kind, export in (("pt2", export_program), ("onnx", export_onnx)):
                    file, reference = Path(scratch) / f"coded.{kind}", Path(scratch) / f"{name}.{kind}"
                    if scheme is None:
                        export(dense, example, reference)
                        cells += [f"{reference.stat().st_size:,}", "1.00"]
                        continue
                    export(encode(model, scheme) if kind == "pt2" else model, example, file)
                    ratios = [
                        measure_latency(file, reference, example, LatencySettings()).ratio
                        for _ in range(rounds)
                    ]
                    cells += [f"{file.stat().st_size:,}", f"{sorted(ratios)[len(ratios) // 2]:.2f}"]
                table.add_row(*cells)
    Console().print(table)


if __name__ == "__main__":
    main()
