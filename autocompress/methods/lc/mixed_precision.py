"""How many levels each layer's codebook has, so that the model loses least for its bits."""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np
import torch
from numpy.typing import NDArray
from scipy.optimize import Bounds, LinearConstraint, milp
from torch import nn

from autocompress.graph.exporting import inference
from autocompress.graph.weights import Weight
from autocompress.methods.lc.kmeans import kmeans
from autocompress.methods.lc.quantization import Codebook, MixedPrecision
from autocompress.methods.lc.scheme import Scheme
from autocompress.methods.shared.divergence import output_loss
from autocompress.task import Task
from autocompress.task.inputs import call, moved
from autocompress.task.random_state import generators_of, random_state_kept
from autocompress.weights.encodings import Quantized

# What codebooks are chosen from, and the training rows that are looked at: on digits, front models of 700 to
# 14,000 weights without training, 16, 64 and 128 rows lose 0.008 of accuracy on test at 3.6 bits, as much as
# equal codebooks lose at 4; with fewer levels to choose from (2, 4, 8, 16, 32) they lose more.
_LEVELS, _ROWS = (2, 3, 4, 6, 8, 12, 16, 24, 32, 64, 128, 256), 32
_Views = list[tuple[tuple[Weight, ...], Scheme]]


def allocated(views: _Views, model: nn.Module, task: Task) -> _Views:
    """The views with a codebook of its own size for each whose scheme is `MixedPrecision`.

    What is lost is measured for each view and size on training rows, with all other weights as they are, and
    taken to add up; as in HAWQ-V3 (Yao et al., arXiv 2011.10680), sizes are chosen by a linear programme over
    whole numbers, here for codebooks: minimise Σᵢ lossᵢ(kᵢ) subject to Σᵢ (nᵢ log₂ kᵢ + 32 kᵢ) being at most
    what equal codebooks of the wanted bits take, with n weights in a view.

    Args:
        views: layers that are compressed together, with their scheme.
        model: that they are of; it is as before afterwards.
        task: whose training rows are used.
    """
    chosen = list(views)
    for bits in sorted({scheme.bits for _, scheme in views if isinstance(scheme, MixedPrecision)}):
        places = [place for place, (_, scheme) in enumerate(views) if scheme == MixedPrecision(bits=bits)]
        layers = [views[place][0] for place in places]
        levels = _levels(bits)
        for place, view, k in zip(places, layers, _choose(layers, levels, bits, model, task), strict=True):
            chosen[place] = view, Codebook(k=k)
    return chosen


def _levels(bits: float) -> tuple[int, ...]:
    """Sizes within four bits of those that are wanted; nobody gains by others."""
    return tuple(k for k in _LEVELS if abs(math.log2(k) - bits) <= 4)


def _choose(
    views: Sequence[tuple[Weight, ...]],
    levels: tuple[int, ...],
    bits: float,
    model: nn.Module,
    task: Task,
) -> list[int]:
    """The number of levels of each view."""
    if len(views) == 1:
        return [MixedPrecision(bits=bits).equal]
    losses = _losses(views, levels, model, task)
    weights = np.array([sum(layer.params for layer in view) for view in views])
    sizes = weights[:, None] * np.log2(levels) + 32 * np.array(levels)
    budget = float(weights.sum()) * bits + 32 * len(views) * 2**bits
    return [levels[position] for position in least_loss(losses, sizes, budget)]


def least_loss(losses: NDArray[np.float64], sizes: NDArray[np.float64], budget: float) -> list[int]:
    """The choice for each row that loses least in sum while sizes sum up to a budget at most.

    Args:
        losses: `(rows, choices)`.
        sizes: of the same shape.
        budget: at least the least that rows can take.
    """
    rows, choices = losses.shape
    one_each = np.kron(np.eye(rows), np.ones(choices))
    # Relative, because the solver's tolerances are absolute.
    solution = milp(
        losses.ravel() / (losses.max() or 1.0),
        integrality=np.ones(rows * choices),
        bounds=Bounds(0, 1),
        constraints=[
            LinearConstraint(one_each, 1, 1),
            LinearConstraint(sizes.reshape(1, -1) / budget, -np.inf, 1),
        ],
    )
    return [int(position) for position in solution.x.reshape(rows, choices).argmax(1)]


def _losses(
    views: Sequence[tuple[Weight, ...]], levels: tuple[int, ...], model: nn.Module, task: Task
) -> NDArray[np.float64]:
    """What the model loses with each view at each number of levels, `(views, levels)`, never rising."""
    device = next(model.parameters()).device
    losses = np.zeros((len(views), len(levels)))
    with random_state_kept(*generators_of(task.train), device=device), inference(model):
        inputs = moved(task.calibration_rows(_ROWS), device)
        expected = task.answer(call(model, inputs))
        for row, view in enumerate(views):
            weights = [layer.of(model) for layer in view]
            before = [weight.clone() for weight in weights]
            vector = torch.cat([weight.reshape(-1).float() for weight in before])
            for column, k in enumerate(levels):
                coded = Quantized(*kmeans(vector, k)).dense()
                parts = torch.split(coded, [weight.numel() for weight in weights])
                for weight, part in zip(weights, parts, strict=True):
                    weight.copy_(part.reshape(weight.shape))
                losses[row, column] = output_loss(
                    expected, task.answer(call(model, inputs)), task.cross_entropy
                )
            for weight, old in zip(weights, before, strict=True):
                weight.copy_(old)
    # What is not finite is the worst there is.
    finite = np.nan_to_num(losses, nan=np.inf, posinf=np.inf)
    finite[np.isinf(finite)] = finite[np.isfinite(finite)].max(initial=1.0) * 2
    return np.maximum.accumulate(finite[:, ::-1], axis=1)[:, ::-1]
