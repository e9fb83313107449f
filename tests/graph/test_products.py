"""Products with parameters: units follow a parameter's dimensions, whatever function multiplies with it."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from autocompress.graph import analyse, compact
from autocompress.graph.rules.products import _dimension_names

# Rows of 6 words of 8 features go in; what is made of the hidden units has 5.
Product = Callable[[Tensor, Tensor], Tensor]
FORMS: dict[str, tuple[tuple[int, ...], Product]] = {
    "right": ((8, 12), lambda x, w: x @ w),
    "right, transposed": ((12, 8), lambda x, w: x @ w.t()),
    "left": ((12, 8), lambda x, w: (w @ x.transpose(1, 2)).transpose(1, 2)),
    "linear, transposed": ((8, 12), lambda x, w: F.linear(x, w.T)),
    "mm": ((8, 12), lambda x, w: torch.mm(x.flatten(0, 1), w).reshape(-1, 6, 12)),
    "addmm": ((8, 12), lambda x, w: torch.addmm(w[0], x.flatten(0, 1), w).reshape(-1, 6, 12)),
    "bmm": ((1, 8, 12), lambda x, w: torch.bmm(x, w.expand(x.shape[0], 8, 12))),
    "baddbmm": ((8, 12), lambda x, w: torch.baddbmm(w[:1], x, w.expand(x.shape[0], 8, 12))),
    "einsum": ((8, 12), lambda x, w: torch.einsum("btc,cd->btd", x, w)),
    "einsum, parameter first": ((12, 8), lambda x, w: torch.einsum("dc,btc->btd", w, x)),
    "einsum with dots": ((8, 12), lambda x, w: torch.einsum("...c,cd->...d", x, w)),
    "einsum, result implied": ((8, 12), lambda x, w: torch.einsum("abc,cd", x, w)),
}


class Form(nn.Module):
    """A parameter between two layers."""

    def __init__(self, shape: tuple[int, ...], product: Product) -> None:
        super().__init__()
        self.enter, self.head = nn.Linear(32, 8), nn.Linear(12, 5)
        self.weight = nn.Parameter(torch.randn(shape))
        self.product = product

    def forward(self, x: Tensor) -> Tensor:
        x = torch.relu(self.enter(x.flatten(1).reshape(-1, 6, 32)))
        return self.head(torch.relu(self.product(x, self.weight))).mean(1)


@pytest.mark.parametrize("name", FORMS)
def test_a_parameter_reads_and_makes_channels_whatever_multiplies_with_it(name: str, images: Tensor) -> None:
    model = Form(*FORMS[name]).eval()
    analysis = analyse(model, images)
    assert {group.name: group.width for group in analysis.groups} == {"enter": 8, "weight": 12}
    smaller, difference = compact(model, analysis, {"enter": [0, 5, 7], "weight": [1, 2, 3, 9]}, images)
    assert difference < 1e-5
    assert sorted(smaller.get_parameter("weight").squeeze().shape) == [3, 4]


class Heads(nn.Module):
    """Attention whose projections have a dimension for heads."""

    def __init__(self) -> None:
        super().__init__()
        self.enter, self.head = nn.Linear(32, 8), nn.Linear(8, 5)
        self.query, self.key, self.value = (nn.Parameter(torch.randn(8, 3, 4)) for _ in range(3))
        self.join = nn.Parameter(torch.randn(3, 4, 8))

    def forward(self, x: Tensor) -> Tensor:
        x = self.enter(x.flatten(1).reshape(-1, 6, 32))
        q, k, v = (torch.einsum("btc,chd->bhtd", x, w) for w in (self.query, self.key, self.value))
        mixed = torch.einsum("bhts,bhsd->bhtd", (q @ k.transpose(2, 3)).softmax(-1), v)
        return self.head(x + torch.einsum("bhtd,hdc->btc", mixed, self.join)).mean(1)


def test_a_dimension_for_heads_makes_heads_the_units(images: Tensor) -> None:
    model = Heads().eval()
    analysis = analyse(model, images)
    assert {group.name: group.width for group in analysis.groups} == {"enter": 8, "query": 3}
    smaller, difference = compact(model, analysis, {"query": [0, 2]}, images)
    assert difference < 1e-5
    assert type(smaller) is Heads
    assert smaller.join.shape == (2, 4, 8)


class Stack(nn.Module):
    """Matrices side by side, each for its own part of the channels."""

    def __init__(self, matrices: int, inputs: int) -> None:
        super().__init__()
        self.sizes = (matrices, inputs)
        self.enter, self.head = nn.Linear(192, matrices * inputs), nn.Linear(matrices * 3, 5)
        self.weight = nn.Parameter(torch.randn(matrices, inputs, 3))

    def forward(self, x: Tensor) -> Tensor:
        x = torch.relu(self.enter(x.flatten(1))).reshape(-1, *self.sizes)
        return self.head(torch.einsum("bgc,gcd->bgd", x, self.weight).flatten(1))


@pytest.mark.parametrize(
    ("matrices", "inputs", "widths"), [(6, 4, {"enter": 6}), (2, 8, {"enter": 8, "weight": 3})]
)
def test_stacks_of_matrices_go_whole_where_they_are_many(
    matrices: int, inputs: int, widths: dict[str, int], images: Tensor
) -> None:
    model = Stack(matrices, inputs).eval()
    analysis = analyse(model, images)
    assert {group.name: group.width for group in analysis.groups} == widths
    keep = {name: range(0, width, 2) for name, width in widths.items()}
    assert compact(model, analysis, keep, images)[1] < 1e-5


def test_tied_embeddings_are_cut_with_what_reads_them() -> None:
    class Tied(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.table, self.scores = nn.Embedding(20, 8), nn.Linear(8, 20, bias=False)
            self.norm, self.scores.weight = nn.LayerNorm(8), self.table.weight

        def forward(self, x: Tensor) -> Tensor:
            return self.scores(self.norm(self.table(x)))

    words, model = torch.randint(20, (3, 4)), Tied().eval()
    analysis = analyse(model, words)
    assert {group.name: group.width for group in analysis.groups} == {"table": 8}
    smaller, difference = compact(model, analysis, {"table": [0, 3, 4]}, words)
    assert difference < 1e-5
    assert smaller.scores.weight is smaller.table.weight
    assert (smaller.table.embedding_dim, smaller.scores.in_features) == (3, 3)


def test_dimensions_of_einsum_have_the_names_that_pytorch_gives_them() -> None:
    assert _dimension_names("b...c, cd -> ...bd", [4, 2]) == (
        [["b", "1", "0", "c"], ["c", "d"]],
        ["1", "0", "b", "d"],
    )
    assert _dimension_names("zc,ca", [2, 2])[1] == ["a", "z"]
