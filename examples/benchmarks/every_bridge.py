"""Every legal pair of cut points of mobilenet_v2 and a vision transformer: does the bridged model run,
train and export?

    python examples/benchmarks/every_bridge.py [--sizes 32 64 224] [--models mobilenet_v2 vit]

Random weights. For each pair one of the four kinds of translator is fitted, the bridged model takes a
training step and is exported, and the program must compute what the model does. About 40 minutes on
one core.
"""

from __future__ import annotations

import argparse
import copy
import time
from collections import Counter
from collections.abc import Callable

import torch
import torchvision.models as tv
from rich.console import Console
from rich.progress import track
from rich.table import Table
from torch import Tensor, nn

from autocompress.graph import TOLERANCE, Analysis, analyse, why_illegal
from autocompress.graph.bridging import Bridge, bridge, tap
from autocompress.graph.exporting import export
from autocompress.graph.proof import relative_difference
from autocompress.methods.depth.translator import fit
from autocompress.surgery.translators import KINDS, Kind, Translator

MODELS: dict[str, Callable[[int], nn.Module]] = {
    "mobilenet_v2": lambda size: tv.mobilenet_v2(num_classes=10),
    "vit": lambda size: tv.VisionTransformer(size, 16, 6, 4, 48, 96, num_classes=10),
}
Pair = tuple[int, int]
console = Console()


def tensors(model: nn.Module, analysis: Analysis, inputs: Tensor) -> dict[str, Tensor]:
    """What the model makes at each cut point."""
    names = [cut.node for cut in analysis.cut_points]
    whole = bridge(model, analysis, [])
    with torch.no_grad():
        return dict(zip(names, tap(whole, whole.graph, names).eval()(inputs), strict=True))


def tried(whole: nn.Module, analysis: Analysis, inputs: Tensor, made: dict[str, Tensor], pair: Pair) -> str:
    """What went wrong with a pair, or "right" if nothing did."""
    start, end = (analysis.cut_points[i] for i in pair)
    model = copy.deepcopy(whole)
    kind: Kind = KINDS[sum(pair) % len(KINDS)]
    try:
        translator = Translator(start.shape, end.shape, kind, start.tokens)
        fit(translator, made[start.node], made[end.node])
        bridged = bridge(model, analysis, [Bridge(start.node, end.node, "translator", translator)])
        loss = nn.functional.cross_entropy(bridged.train()(inputs), torch.tensor([0, 1, 2]))
        loss.backward()
        torch.optim.SGD(bridged.parameters(), lr=1e-3).step()
        program = export(bridged.eval(), inputs[:2]).module()
        with torch.no_grad():
            difference = relative_difference(bridged(inputs), program(inputs))
    except Exception as error:  # the table says which
        return f"{type(error).__name__}: {str(error).splitlines()[0][:80]}"
    finite = bool(torch.isfinite(loss))
    return "right" if finite and difference <= TOLERANCE else f"differs by {difference:.1e}"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--sizes", nargs="*", type=int, default=[32, 64, 224])
    parser.add_argument("--models", nargs="*", default=list(MODELS), choices=list(MODELS))
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    table = Table(title="Bridged models that run, train and export")
    for column in ("model", "size", "cut points", "legal pairs", "right", "minutes"):
        table.add_column(column)
    for name in arguments.models:
        for size in arguments.sizes:
            start = time.perf_counter()
            torch.manual_seed(0)
            model, inputs = MODELS[name](size).eval(), torch.randn(3, 3, size, size)
            analysis = analyse(model, inputs)
            cuts, made = analysis.cut_points, tensors(model, analysis, inputs)
            pairs = [
                (a, b) for b in range(len(cuts)) for a in range(b) if why_illegal(cuts[a], cuts[b]) is None
            ]
            outcomes = Counter(
                tried(model, analysis, inputs, made, pair) for pair in track(pairs, f"{name} {size}")
            )
            for reason in set(outcomes) - {"right"}:
                console.log(f"{name} {size}: {outcomes[reason]} × {reason}")
            minutes = (time.perf_counter() - start) / 60
            table.add_row(
                name, str(size), str(len(cuts)), str(len(pairs)), str(outcomes["right"]), f"{minutes:.1f}"
            )
    console.print(table)


if __name__ == "__main__":
    main()
