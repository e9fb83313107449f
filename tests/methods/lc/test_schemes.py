"""Each C step against NumPy and SciPy, at ordinary and at degenerate settings."""

from __future__ import annotations

import re
from collections.abc import Iterator

import numpy as np
import pytest
import torch
from scipy.optimize import minimize, minimize_scalar

from autocompress.errors import SettingsError
from autocompress.methods.lc import (
    Binary,
    Codebook,
    FixedPoint,
    HalfPrecision,
    LowRank,
    PenaltyL0,
    PenaltyL1,
    PruneL0,
    PruneL1,
    RankSelection,
    ScaledBinary,
    Scheme,
    Sum,
    Ternary,
)
from autocompress.methods.lc.scheme import View
from autocompress.methods.lc.schemes import SCHEMES, scheme_from
from autocompress.weights.encodings import Encoding, Factored, Summed
from autocompress.weights.folding import Folding

VECTORS = {
    "normal": np.random.default_rng(0).normal(size=200),
    "heavy": np.random.default_rng(1).standard_t(2, 200),
    "constant": np.full(30, -0.7),
    "zero": np.zeros(30),
    "single": np.array([0.4]),
    "ties": np.array([1.0, -1.0, 1.0, 0.5, -0.5, 0.5]),
}


def solved(
    scheme: Scheme, x: np.ndarray, mu: float = 1.0, shape: tuple[int, ...] | None = None
) -> np.ndarray:
    view = View((shape or x.shape,), reference_l1=float(np.abs(x).sum()))
    return scheme.solve(torch.from_numpy(x.reshape(-1)), mu, view).dense().numpy()


def error(x: np.ndarray, solution: np.ndarray) -> float:
    return float(np.square(x.reshape(-1) - solution).sum())


@pytest.mark.parametrize("x", VECTORS.values(), ids=VECTORS)
class TestVectors:
    def test_binary_is_the_nearest_sign(self, x: np.ndarray) -> None:
        assert np.array_equal(solved(Binary(), x), np.where(x < 0, -1.0, 1.0))

    def test_scaled_binary_is_optimal(self, x: np.ndarray) -> None:
        best = minimize_scalar(lambda c: np.square(np.abs(x) - c).sum()).fun
        assert error(x, solved(ScaledBinary(), x)) == pytest.approx(best, abs=1e-9)

    def test_ternary_is_optimal(self, x: np.ndarray) -> None:
        sizes = np.sort(np.abs(x))[::-1]
        best = min(
            np.square(sizes[:m] - sizes[:m].mean()).sum() + np.square(sizes[m:]).sum()
            for m in range(1, len(x) + 1)
        )
        assert error(x, solved(Ternary(), x)) == pytest.approx(best, abs=1e-9)

    @pytest.mark.parametrize("keep", [0.0, 0.1, 0.5, 1.0])
    def test_l0_keeps_the_largest(self, x: np.ndarray, keep: float) -> None:
        solution = solved(PruneL0(keep), x)
        kappa = round(keep * len(x))
        assert np.count_nonzero(solution) <= kappa
        left = np.sort(np.square(x))[: len(x) - kappa].sum()
        assert error(x, solution) == pytest.approx(left, abs=1e-9)

    @pytest.mark.parametrize("share", [0.0, 0.3, 1.0, 1.7])
    def test_l1_is_the_projection_on_the_ball(self, x: np.ndarray, share: float) -> None:
        solution = solved(PruneL1(share), x)
        radius = share * np.abs(x).sum()
        assert np.abs(solution).sum() <= radius + 1e-9
        if share >= 1:
            assert np.allclose(solution, x, rtol=1e-12)
            return
        # The projection is the soft threshold, by bisection, that meets the radius.
        low, high = 0.0, np.abs(x).max()
        for _ in range(200):
            middle = (low + high) / 2
            over = np.maximum(np.abs(x) - middle, 0).sum() > radius
            low, high = (middle, high) if over else (low, middle)
        assert np.allclose(solution, np.sign(x) * np.maximum(np.abs(x) - high, 0), atol=1e-8)

    @pytest.mark.parametrize("mu", [0.1, 3.0])
    def test_penalties_minimise_their_objective(self, x: np.ndarray, mu: float) -> None:
        alpha = 0.2
        grid = np.linspace(-8, 8, 3201)[:, None]
        few = x[:20]
        for scheme, cost in ((PenaltyL0(alpha), grid != 0), (PenaltyL1(alpha), np.abs(grid))):
            solution = solved(scheme, few, mu)
            ours = mu / 2 * np.square(few - solution) + alpha * (
                (solution != 0) if scheme.kind == "penalty_l0" else np.abs(solution)
            )
            best = (mu / 2 * np.square(few[None] - grid) + alpha * cost).min(0)
            zero = mu / 2 * np.square(few)
            assert (ours <= np.minimum(best, zero) + 1e-9).all()

    def test_half_precision_is_the_nearest_there_is(self, x: np.ndarray) -> None:
        assert np.array_equal(solved(HalfPrecision(), x), x.astype(np.float16).astype(x.dtype))
        assert np.isfinite(solved(HalfPrecision(), x * 1e9)).all()

    @pytest.mark.parametrize("bits", [1, 4, 8])
    def test_fixed_point_levels_are_powers_of_two_apart(self, x: np.ndarray, bits: int) -> None:
        solution = solved(FixedPoint(bits), x)
        assert len(np.unique(solution)) <= 2**bits
        # No step of a power of two is better.
        best = min(
            error(x, np.clip(np.round(x / 2.0**e), -(2 ** (bits - 1)), 2 ** (bits - 1) - 1) * 2.0**e)
            for e in range(-24, 8)
        )
        assert error(x, solution) <= best + 1e-9

    def test_a_codebook_as_large_as_the_vector_is_exact(self, x: np.ndarray) -> None:
        assert np.array_equal(solved(Codebook(max(len(x), 2)), x), x)


@pytest.mark.parametrize("shape", [(8, 6), (6, 20), (6, 4, 3, 3)])
@pytest.mark.parametrize("scheme", [0, 1])
def test_low_rank_is_the_truncated_svd(shape: tuple[int, ...], scheme: int) -> None:
    if len(shape) == 2 and scheme:
        with pytest.raises(SettingsError, match=re.escape("scheme must be in [0, 1) but got 1.")):
            solved(LowRank(1, scheme), np.ones(shape), shape=shape)
        return
    x = np.random.default_rng(0).normal(size=shape)
    folded = x.reshape(shape[0], -1) if scheme == 0 else x.transpose(0, 2, 1, 3).reshape(18, 12)
    values = np.linalg.svd(folded, compute_uv=False)
    for rank in (0, 1, 3, len(values), 99):
        solution = solved(LowRank(rank, scheme), x, shape=shape)
        assert error(x, solution) == pytest.approx(np.square(values[rank:]).sum(), abs=1e-8)


def drifting(shape: tuple[int, int], noise: float) -> Iterator[np.ndarray]:
    """Weights that move as those of an LC training do, from nothing of low rank towards rank 4 plus noise."""
    rng = np.random.default_rng(0)
    product = rng.normal(size=(shape[0], 4)) @ rng.normal(size=(4, shape[1])) / 2
    x = rng.normal(size=shape)
    for _ in range(12):
        x = 0.7 * x + 0.3 * product + noise * rng.normal(size=shape)
        yield x


def eigenvalues_taken(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """Sizes of the matrices whose eigenvalues are asked for from now on."""
    sizes: list[int] = []
    original = torch.linalg.eigh

    def counted(matrix: torch.Tensor) -> object:
        sizes.append(len(matrix))
        return original(matrix)

    monkeypatch.setattr(torch.linalg, "eigh", counted)
    return sizes


@pytest.mark.parametrize("shape", [(100, 180), (180, 100)])
@pytest.mark.parametrize("noise", [0.1, 1e-3])
def test_low_rank_from_the_last_solution_is_as_good_as_the_svd_and_less_work(
    shape: tuple[int, int], noise: float, monkeypatch: pytest.MonkeyPatch
) -> None:
    view, last = View((shape,)), None
    sizes = eigenvalues_taken(monkeypatch)
    for step, x in enumerate(drifting(shape, noise)):
        last = LowRank(4).solve(torch.from_numpy(x.reshape(-1)), 1.0, view, last)
        least = np.square(np.linalg.svd(x, compute_uv=False)[4:]).sum()
        assert error(x, last.dense().numpy()) <= least * (1 + 1e-3)
        if step:
            assert max(sizes) == 12
        sizes.clear()


@pytest.mark.parametrize("start", [np.eye(100)[:, :4], np.eye(100)[:, 90:94]])
def test_low_rank_from_a_bad_start_is_as_good_as_the_svd(start: np.ndarray) -> None:
    x = np.diag(1 + np.arange(100.0) / 100) + 0.01 * np.random.default_rng(0).normal(size=(100, 100))
    last = Factored(
        torch.from_numpy(start)[None], torch.zeros(1, 4, 100, dtype=torch.double), Folding((100, 100))
    )
    solution = LowRank(4).solve(torch.from_numpy(x.reshape(-1)), 1.0, View(((100, 100),)), last)
    least = np.square(np.linalg.svd(x, compute_uv=False)[4:]).sum()
    assert error(x, solution.dense().numpy()) <= least * (1 + 1e-3)


@pytest.mark.parametrize("noise", [0.1, 1e-3])
def test_rank_selection_from_the_last_solution_minimises_its_objective(
    noise: float, monkeypatch: pytest.MonkeyPatch
) -> None:
    view, last, alpha, ranks = View(((100, 180),)), None, 0.6, []
    sizes = eigenvalues_taken(monkeypatch)
    scheme = RankSelection(alpha)
    for x in drifting((100, 180), noise):
        last = scheme.solve(torch.from_numpy(x.reshape(-1)), 1.0, view, last)
        squares = np.square(np.linalg.svd(x, compute_uv=False))
        least = min(0.5 * squares[r:].sum() + alpha * r * 280 for r in range(101))
        reached = 0.5 * error(x, last.dense().numpy()) + scheme.penalty(last, view)
        assert reached <= min(least, alpha * 100 * 180) * (1 + 1e-3)
        ranks.append(last.rank if isinstance(last, Factored) else 0)
    assert ranks[-1] == 4
    assert sizes[-1] <= 12


def test_rank_selection_finds_a_rank_far_above_the_last_one() -> None:
    rng = np.random.default_rng(0)
    x = rng.normal(size=(100, 30)) @ rng.normal(size=(30, 180))
    view, scheme = View(((100, 180),)), RankSelection(0.01)
    one = LowRank(1).solve(torch.from_numpy(x.reshape(-1)), 1.0, view)
    later = scheme.solve(torch.from_numpy(x.reshape(-1)), 1.0, view, one)
    assert isinstance(later, Factored)
    assert later.rank == 30


@pytest.mark.parametrize("alpha", [0.0, 1e-3, 1e-2, 0.05, 1.0, 100.0])
def test_rank_selection_minimises_its_objective_over_all_ranks_and_dense(alpha: float) -> None:
    x = np.random.default_rng(0).normal(size=(10, 4)) @ np.random.default_rng(1).normal(size=(4, 100))
    x += 0.1 * np.random.default_rng(2).normal(size=x.shape)
    squares = np.square(np.linalg.svd(x, compute_uv=False))
    costs = {r: 0.5 * 3.0 * squares[r:].sum() + alpha * r * 110 for r in range(11)}
    view = View((x.shape,))
    encoding = RankSelection(alpha).solve(torch.from_numpy(x.reshape(-1)), 3.0, view)
    rank = min(costs, key=costs.__getitem__)
    if alpha * 1000 <= costs[rank]:
        assert np.array_equal(encoding.dense().numpy(), x.reshape(-1))
    elif rank == 0:
        assert not encoding.dense().any()
    else:
        assert isinstance(encoding, Factored)
        assert encoding.rank == rank
    # Ten ranks of a 10 × 100 matrix are 1,100 numbers instead of 1,000: never worth it.
    assert not (isinstance(encoding, Factored) and encoding.rank == 10)


def test_a_sum_is_no_worse_than_either_part_and_improves_from_where_it_was() -> None:
    x = VECTORS["heavy"]
    both = Codebook(2) + PruneL0(0.05)
    alone = [error(x, solved(part, x)) for part in both.parts]
    assert error(x, solved(both, x)) <= min(alone)
    view = View((x.shape,))
    first = both.solve(torch.from_numpy(x), 1.0, view)
    again = both.solve(torch.from_numpy(x), 1.0, view, first)
    assert error(x, again.dense().numpy()) <= error(x, first.dense().numpy()) + 1e-9


@pytest.mark.parametrize("alpha", [0.02, 0.1, 1.0])
@pytest.mark.parametrize("seed", range(5))
def test_a_sum_minimises_the_penalty_of_its_parts_too(alpha: float, seed: int) -> None:
    x, view = torch.from_numpy(np.random.default_rng(seed).normal(size=400)), View(((400,),))

    def objective(encoding: Encoding) -> float:
        assert isinstance(encoding, Summed)
        rest, kept = x.numpy() - encoding.dense().numpy(), encoding.parts[1].dense().numpy()
        return 0.5 * float(np.square(rest).sum()) + alpha * int(np.count_nonzero(kept))

    both = Codebook(3) + PenaltyL0(alpha)
    nearer = (Codebook(3) + PenaltyL0(alpha / 20)).solve(x, 1.0, view)
    reached = [objective(nearer)]
    for _ in range(4):
        nearer = both.solve(x, 1.0, view, nearer)
        reached.append(objective(nearer))
    assert reached == sorted(reached, reverse=True)
    assert reached[1] < reached[0]


def test_the_penalty_of_a_rank_is_what_its_selection_minimised() -> None:
    w = np.random.default_rng(0).normal(size=(10, 100))
    view, alpha = View(((10, 100),), (1,), (0,)), 0.02
    scheme = RankSelection(alpha=alpha)
    for x, numbers in ((w, 1000), (np.outer(w[:, 0], w[0]), 110), (0 * w, 0)):
        encoding = scheme.solve(torch.from_numpy(x.reshape(-1)), 1.0, view)
        assert scheme.penalty(encoding, view) == pytest.approx(alpha * numbers)


def test_three_parts_add_up() -> None:
    x = np.random.default_rng(0).normal(size=(12, 15))
    three = Codebook(2) + PruneL0(0.05) + LowRank(1)
    assert len(three.parts) == 3
    two = Codebook(2) + PruneL0(0.05)
    assert error(x, solved(three, x, shape=x.shape)) < error(x, solved(two, x))


def test_low_rank_of_several_layers_jointly_is_refused() -> None:
    with pytest.raises(SettingsError, match="must be given one layer but got 2 jointly"):
        LowRank(1).solve(torch.ones(8), 1.0, View(((2, 2), (2, 2)), (1, 1), (0, 0)))


def test_schemes_are_rebuilt_from_plain_data() -> None:
    from dataclasses import asdict

    for kind, cls in SCHEMES.items():
        scheme = Codebook(2) + PruneL0(0.1) if cls is Sum else cls()
        assert scheme.kind == kind
        assert scheme_from(asdict(scheme)) == scheme
    with pytest.raises(SettingsError, match="kind must be one of codebook"):
        scheme_from({"kind": "magic"})


def test_l1_projection_agrees_with_a_constrained_optimiser() -> None:
    x = np.array([0.9, -0.4, 0.2, -1.3])
    bound = {"type": "ineq", "fun": lambda t: 1.0 - np.abs(t).sum()}
    reference = minimize(lambda t: np.square(t - x).sum(), np.zeros(4), constraints=[bound], tol=1e-12)
    assert error(x, solved(PruneL1(1.0 / np.abs(x).sum()), x)) == pytest.approx(reference.fun, abs=1e-5)
