"""What each layer is stored as, so that the model loses least for its bytes: levels, zeros, ranks."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from scipy.optimize import Bounds, LinearConstraint, milp
from torch import Tensor, nn

from autocompress.graph.exporting import inference
from autocompress.graph.weights import Weight
from autocompress.methods.lc.assignment import view_of
from autocompress.methods.lc.compression import DECODING_BYTES, stored_bytes
from autocompress.methods.lc.entropy import entropy, priced_codebooks
from autocompress.methods.lc.kmeans import kmeans
from autocompress.methods.lc.low_rank import LowRank
from autocompress.methods.lc.quantization import Budget, Codebook, EntropyCodebook, MixedPrecision
from autocompress.methods.lc.scheme import Scheme
from autocompress.methods.shared.divergence import output_loss
from autocompress.task import Limits, Task
from autocompress.task.inputs import call, moved
from autocompress.task.random_state import generators_of, random_state_kept
from autocompress.weights.encodings import Encoding, Quantized

# What codebooks are chosen from, and the training rows that are looked at: on digits, front models of 700 to
# 14,000 weights without training, 16, 64 and 128 rows lose 0.008 of accuracy on test at 3.6 bits, as much as
# equal codebooks lose at 4; with fewer levels to choose from (2, 4, 8, 16, 32) they lose more.
_LEVELS, _ROWS = (2, 3, 4, 6, 8, 12, 16, 24, 32, 64, 128, 256), 32
# How many bits more and fewer than the budget a weight may have, a quarter of a bit apart; and the shares of
# the budget that a product of floats may take.
_MORE, _FEWER, _LEAST_BITS = 2.0, 4.0, 0.01
_RANK_SHARES = (0.5, 1.0, 2.0)
_Layers = tuple[Weight, ...]
_Views = list[tuple[_Layers, Scheme]]


def allocated(views: _Views, model: nn.Module, task: Task, limits: Limits) -> _Views:
    """The views with a scheme of its own for each whose scheme is `MixedPrecision` or `Budget`.

    What is lost is measured for each view and each of its choices on training rows, with all other weights as
    they are, and taken to add up; as in HAWQ-V3 (Yao et al., arXiv 2011.10680), choices are made by a linear
    programme over whole numbers: minimise Σᵢ lossᵢ(cᵢ) subject to Σᵢ sizeᵢ(cᵢ) being at most what the wanted
    bits allow. Choices of `MixedPrecision` are codebooks, n log₂ k + 32 k bits each for n weights in a view;
    those of `Budget` are codebooks by their entropy, whose zeros prune, and products, by what each is stored
    in.

    Args:
        views: layers that are compressed together, with their scheme.
        model: that they are of; it is as before afterwards.
        task: whose training rows are used.
        limits: of the model's ranks.
    """
    chosen = list(views)
    allocating = [scheme for _, scheme in views if isinstance(scheme, (MixedPrecision, Budget))]
    for scheme in dict.fromkeys(allocating):
        places = [place for place, (_, own) in enumerate(views) if own == scheme]
        choices = _choices([views[place][0] for place in places], scheme, model, task, limits)
        for place, choice in zip(places, choices, strict=True):
            chosen[place] = views[place][0], choice
    return chosen


def _choices(
    views: Sequence[_Layers], scheme: MixedPrecision | Budget, model: nn.Module, task: Task, limits: Limits
) -> list[Scheme]:
    """What each view becomes."""
    if len(views) == 1:
        return [scheme.equal]
    tried = _tried(views, scheme, model, task, limits)
    sizes = np.array([[choice.bits for choice in row] for row in tried])
    weights = sum(layer.params for view in views for layer in view)
    budget = weights * scheme.bits
    if isinstance(scheme, MixedPrecision):
        budget += 32 * len(views) * 2**scheme.bits
    # What is decoded takes more than it holds, and more than a small budget is.
    budget = max(budget, float(sizes.min(axis=1).sum()))
    best = least_loss(_falling(tried), sizes, budget)
    return [row[place].scheme for row, place in zip(tried, best, strict=True)]


@dataclass(frozen=True)
class _Choice:
    """What a view may become: its scheme, the bits that it takes, and what the model loses."""

    scheme: Scheme
    bits: float
    loss: float


def _tried(
    views: Sequence[_Layers], scheme: MixedPrecision | Budget, model: nn.Module, task: Task, limits: Limits
) -> list[list[_Choice]]:
    """The choices of each view, as many for each."""
    device = next(model.parameters()).device
    tried = []
    with random_state_kept(*generators_of(task.train), device=device), inference(model):
        inputs = moved(task.calibration_rows(_ROWS), device)
        expected = task.answer(call(model, inputs))
        for view in views:
            weights = [layer.of(model) for layer in view]
            before = [weight.clone() for weight in weights]
            vector = torch.cat([weight.reshape(-1).float() for weight in before])
            choices = []
            for offered, encoding in _offered(view, scheme, vector, limits):
                parts = torch.split(encoding.dense(), [weight.numel() for weight in weights])
                for weight, part in zip(weights, parts, strict=True):
                    weight.copy_(part.reshape(weight.shape))
                loss = output_loss(expected, task.answer(call(model, inputs)), task.cross_entropy)
                choices.append(_Choice(offered, _bits(offered, encoding), loss))
            for weight, old in zip(weights, before, strict=True):
                weight.copy_(old)
            tried.append(choices)
    return tried


def _offered(
    view: _Layers, scheme: MixedPrecision | Budget, vector: Tensor, limits: Limits
) -> Iterator[tuple[Scheme, Encoding]]:
    """Schemes of a view, and what its weights become by each, as many for each view."""
    if isinstance(scheme, MixedPrecision):
        # Within four bits of those that are wanted; nobody gains by others.
        for k in (k for k in _LEVELS if abs(math.log2(k) - scheme.bits) <= 4):
            yield Codebook(k=k), Quantized(*kmeans(vector, k))
        return
    most = min(scheme.bits + _MORE, 8.0)
    # A bit less makes the squared error four times as large, and so what a bit is worth.
    least = max(scheme.bits - _FEWER, -1.0)
    prices = 4.0 ** -np.arange(most, least, -0.25)
    for levels, codes in priced_codebooks(vector, EntropyCodebook.of(most).k, prices.tolist()):
        bits = entropy(codes, len(levels))
        yield EntropyCodebook.of(min(max(bits, _LEAST_BITS), 8.0)), Quantized(levels, codes, "nonzero")
    for share in _RANK_SHARES:
        product = _product_of(view, share * scheme.bits)
        yield product, product.solve(vector, 1.0, view_of(view, 0.0, limits))


def _product_of(view: _Layers, bits: float) -> Scheme:
    """A product of floats that takes so many bits a weight; of layers that none stands for, a codebook."""
    first = view[0]
    rows, columns = first.product_shape[0], math.prod(first.product_shape[1:])
    rank = int(bits * rows * columns / (32 * (rows + columns)))
    if rank and len(view) == 1 and first.groups == 1:
        return LowRank(rank=rank)
    return EntropyCodebook.of(min(bits, 8.0))


def _bits(scheme: Scheme, encoding: Encoding) -> float:
    """What a choice takes: codebooks by their levels, all else by what it is stored in, and decoded by."""
    if isinstance(scheme, Codebook):
        assert isinstance(encoding, Quantized)
        return len(encoding.codes) * math.log2(scheme.k) + 32 * scheme.k
    return 8.0 * (stored_bytes(encoding) + DECODING_BYTES)


def _falling(tried: Sequence[Sequence[_Choice]]) -> NDArray[np.float64]:
    """What choices lose, `(views, choices)`: never more of a kind where it takes more bits; what is not
    finite is the worst."""
    losses = np.array([[choice.loss for choice in row] for row in tried], dtype=np.float64)
    losses[~np.isfinite(losses)] = losses[np.isfinite(losses)].max(initial=1.0) * 2
    for row, choices in zip(losses, tried, strict=True):
        largest_first = sorted(range(len(choices)), key=lambda place: -choices[place].bits)
        for kind in {choice.scheme.kind for choice in choices}:
            places = [place for place in largest_first if choices[place].scheme.kind == kind]
            row[places] = np.maximum.accumulate(row[places])
    return losses


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
