"""Every torchvision classification and segmentation constructor, random weights: what is free, and is
a random removal exact?

    python examples/benchmarks/every_architecture.py [NAME ...]

One line a model as it is done: share of the output channels of all layers that may be removed, share of
the parameters left after a random removal from every group at once, the greatest relative difference
to the masked model, seconds of `torch.export` and of our analysis on top. About 40 minutes on 2 cores.
"""

from __future__ import annotations

import argparse
import time
from collections import Counter

import torch
from torch import nn
from torchvision import models

from autocompress.errors import AutocompressError
from autocompress.graph import TOLERANCE, Analysis, analyse, compact
from autocompress.graph.exporting import export
from autocompress.graph.proof import random_keep

# Sizes that the architectures ask for; all others take 64 × 64.
SIZES = {"vit_": 224, "maxvit": 224, "inception": 96, "googlenet": 96}
OPTIONS = {"googlenet": {"init_weights": False}, "inception_v3": {"init_weights": False}}


def free_share(model: nn.Module, analysis: Analysis) -> float:
    """Share of the output channels of layers with weight matrices that are in a group."""
    made: Counter[tuple[str, int]] = Counter()
    for group in analysis.groups:
        for member in group.members:
            if member.role != "in":
                made[member.tensor, member.dim] += int((member.unit_of >= 0).sum())
    free = total = 0
    for name, parameter in model.named_parameters():
        if parameter.dim() > 1:
            dim = next((d for d in range(parameter.dim()) if (name, d) in made), 0)
            total += parameter.shape[dim]
            free += made[name, dim]
    return free / total


def measure(name: str) -> tuple[str, bool]:
    """One line of the table, and whether all is right."""
    size = next((s for prefix, s in SIZES.items() if name.startswith(prefix)), 64)
    options = OPTIONS.get(name, {})
    if name in models.list_models(models.segmentation):
        options = {"weights_backbone": None}
    torch.manual_seed(0)
    model = models.get_model(name, weights=None, **options).eval()
    example = torch.randn(2, 3, size, size)
    start = time.perf_counter()
    export(model, example)
    exported = time.perf_counter() - start
    start = time.perf_counter()
    try:
        analysis = analyse(model, example)
        keep = random_keep(analysis, [group.name for group in analysis.groups], seed=1)
        own = time.perf_counter() - start - exported
        smaller, difference = compact(model, analysis, keep, torch.randn(3, 3, size, size))
    except AutocompressError as error:
        return f"{name:28} {error}", False
    left = sum(p.numel() for p in smaller.parameters()) / sum(p.numel() for p in model.parameters())
    reasons = Counter(analysis.frozen.values()).most_common(1)
    line = (
        f"{name:28} {len(analysis.groups):>6} {free_share(model, analysis):>6.1%} {left:>6.1%} "
        f"{difference:>8.1e} {exported:>7.1f} {max(own, 0):>7.1f}  "
        f"{len(analysis.frozen)} frozen: {reasons[0][0] if reasons else ''}"
    )
    return line, difference <= TOLERANCE and bool(analysis.groups)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("names", nargs="*", help="all constructors where none is given")
    everything = models.list_models(models) + models.list_models(models.segmentation)
    names = parser.parse_args().names or everything
    heads = ("model", "groups", "free", "left", "differs", "export", "ours", " reasons")
    print("{:28} {:>6} {:>6} {:>6} {:>8} {:>7} {:>7} {}".format(*heads))
    wrong = []
    for name in names:
        line, right = measure(name)
        print(line, flush=True)
        if not right:
            wrong.append(name)
    print(f"{len(names) - len(wrong)} of {len(names)} right; not right: {', '.join(wrong) or 'none'}")


if __name__ == "__main__":
    main()
