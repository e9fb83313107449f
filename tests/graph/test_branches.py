"""Gates on branches: what they compute, and how they are folded and dropped."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from autocompress.graph import analyse
from autocompress.graph.branch_gate import BranchGate
from autocompress.graph.branches import drop_branch, fold_gate, gate_branches, gates_in
from autocompress.graph.proof import relative_difference


class Block(nn.Module):
    """A residual branch that ends in what is asked for."""

    def __init__(self, last: nn.Module) -> None:
        super().__init__()
        self.stem, self.head = nn.Conv2d(3, 8, 3), nn.Linear(8, 5)
        self.branch = nn.Sequential(nn.Conv2d(8, 8, 3, padding=1), nn.ReLU(), last)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = self.stem(x)
        return self.head((x + self.branch(x)).mean((2, 3)))


X = torch.randn(4, 3, 8, 8, generator=torch.Generator().manual_seed(0))
LINEAR = {
    "conv": nn.Conv2d(8, 8, 1),
    "batch norm": nn.BatchNorm2d(8),
    "dropout": nn.Sequential(nn.Conv2d(8, 8, 1, bias=False), nn.Dropout(0.2)),
    "upsampled": nn.Sequential(nn.Conv2d(8, 8, 3, 2, 1), nn.Upsample(size=6)),
}


def gated(last: nn.Module, factor: float) -> tuple[torch.fx.GraphModule, str]:
    model = Block(last).eval()
    analysis = analyse(model, X)
    (branch,) = analysis.residuals
    return gate_branches(model, analysis, {branch.node: ("gate_add", BranchGate(factor))}).eval(), "gate_add"


def test_a_gate_multiplies_its_branch() -> None:
    made, name = gated(nn.Conv2d(8, 8, 1), 0.4)
    with torch.no_grad():
        stem = made.get_submodule("stem")(X)
        branch = stem
        for part in ("branch.0", "branch.2"):
            branch = (
                made.get_submodule(part)(branch).relu()
                if part == "branch.0"
                else made.get_submodule(part)(branch)
            )
        expected = made.get_submodule("head")((stem + 0.4 * branch).mean((2, 3)))
        assert relative_difference(expected, made(X)) < 1e-6
    assert list(gates_in(made.graph, made)) == [name]


@pytest.mark.parametrize("last", sorted(LINEAR))
def test_a_gate_behind_a_linear_layer_is_folded_into_it(last: str) -> None:
    made, name = gated(LINEAR[last], 0.4)
    with torch.no_grad():
        before = made(X)
        assert fold_gate(made.graph, gates_in(made.graph, made)[name], made)
        made.recompile()
        assert relative_difference(before, made(X)) < 1e-6
    assert not gates_in(made.graph, made)


def test_a_gate_behind_a_non_linearity_stays() -> None:
    made, name = gated(nn.Sequential(nn.Conv2d(8, 8, 1), nn.ReLU()), 0.4)
    assert not fold_gate(made.graph, gates_in(made.graph, made)[name], made)
    assert list(gates_in(made.graph, made)) == [name]


def test_a_gate_behind_a_layer_that_runs_twice_stays() -> None:
    class Twice(Block):
        def forward(self, x: torch.Tensor) -> torch.Tensor:
            x = self.stem(x)
            return self.head((x + self.branch[0](self.branch[0](x))).mean((2, 3)))

    model = Twice(nn.Identity()).eval()
    analysis = analyse(model, X)
    (branch,) = analysis.residuals
    made = gate_branches(model, analysis, {branch.node: ("gate_add", BranchGate(0.5))})
    (call,) = gates_in(made.graph, made).values()
    assert not fold_gate(made.graph, call, made)


def test_a_gate_behind_a_weight_that_is_read_elsewhere_stays() -> None:
    class Tied(Block):
        def forward(self, x: torch.Tensor) -> torch.Tensor:
            x = self.stem(x).mean((2, 3))
            x = x + self.branch(torch.tanh(x))
            return self.head(nn.functional.linear(x, self.branch.weight.t()))

    model = Tied(nn.Identity())
    model.branch = nn.Linear(8, 8)
    analysis = analyse(model.eval(), X)
    (branch,) = analysis.residuals
    made = gate_branches(model, analysis, {branch.node: ("gate", BranchGate(0.5))})
    (call,) = gates_in(made.graph, made).values()
    assert not fold_gate(made.graph, call, made)


def test_a_gate_behind_attention_is_folded() -> None:
    class Attended(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.attention, self.head = nn.MultiheadAttention(8, 2, batch_first=True), nn.Linear(8, 5)

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return self.head((x + self.attention(x, x, x, need_weights=False)[0]).mean(1))

    torch.manual_seed(0)
    model, tokens = Attended().eval(), torch.randn(3, 6, 8)
    analysis = analyse(model, tokens)
    (branch,) = analysis.residuals
    made = gate_branches(model, analysis, {branch.node: ("gate", BranchGate(0.4))}).eval()
    with torch.no_grad():
        before = made(tokens)
        folded = fold_gate(made.graph, gates_in(made.graph, made)["gate"], made)
        made.recompile()
        assert relative_difference(before, made(tokens)) < 1e-6
    assert folded == (
        "attention.out_proj" in {str(n.target) for n in made.graph.nodes if n.op == "call_module"}
    )


def test_a_dropped_branch_leaves_its_shortcut() -> None:
    made, name = gated(nn.Conv2d(8, 8, 1), 0.0)
    with torch.no_grad():
        before = made(X)
        drop_branch(made.graph, gates_in(made.graph, made)[name])
        made.recompile()
        assert relative_difference(before, made(X)) < 1e-6
    called = {str(node.target) for node in made.graph.nodes if node.op == "call_module"}
    assert called == {"stem", "head"}
