"""The shape of a model's graph: cut points, and branches beside shortcuts."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import networkx
import torch
from torch import Tensor, fx

from autocompress.graph.tracing import shape_of

_ADDITIONS = ("add", "add_")


@dataclass(frozen=True)
class CutPoint:
    """A tensor that every path from input to output passes through.

    Args:
        node: the graph node that makes it.
        name: the module that makes it; the last layer before it where that is the model's own code.
        shape: without the batch, `(C, H, W)` and other grids, `(T, C)` or `(C,)`.
        tokens: two dimensions are `(T, C)`; otherwise `(C, L)`, as 1-d convolutions make.
        layers: layers with parameters that ran before, in order.
    """

    node: str
    name: str
    shape: tuple[int, ...]
    tokens: bool
    layers: tuple[str, ...]


@dataclass(frozen=True)
class ResidualBranch:
    """A branch that an addition joins with a shortcut from the same tensor.

    Args:
        node: the addition.
        side: the node whose tensor the branch brings to it.
        fork: the node where branch and shortcut part.
        name: the module in which both are added.
        shape: of the sum, without the batch.
        branch: layers of the branch.
        shortcut: layers of the shortcut; none where it is the tensor itself.
    """

    node: str
    side: str
    fork: str
    name: str
    shape: tuple[int, ...]
    branch: tuple[str, ...]
    shortcut: tuple[str, ...]


def data_nodes(graph: fx.Graph) -> list[fx.Node]:
    """Nodes whose tensors depend on the model's input, in order; sizes are not tensors."""
    dependent: dict[fx.Node, None] = {}
    for node in graph.nodes:
        if node.op == "placeholder" or (
            any(source in dependent for source in node.all_input_nodes) and _tensors(node)
        ):
            dependent[node] = None
    return list(dependent)


def layer_of(node: fx.Node) -> str:
    """Name of the innermost module whose code made a node; "" is the model itself."""
    stack = list((node.meta.get("nn_module_stack") or {}).values())
    name = stack[-1][0] if stack else ""
    return "" if name.startswith("_empty_nn_module") else name.partition("@")[0]


def parameters_of(node: fx.Node) -> list[str]:
    """Layers whose tensors a node reads."""
    owners = [str(s.target).rpartition(".")[0] for s in node.all_input_nodes if s.op == "get_attr"]
    return list(dict.fromkeys(owners))


def find_cut_points(graph: fx.Graph) -> tuple[CutPoint, ...]:
    """Cut points between uses of layers, from input to output; of a run without any the last one.

    Tensors in which the batch is not the first dimension, or a part of it, are none.
    """
    nodes = data_nodes(graph)
    position = {node: i for i, node in enumerate(nodes)}
    last_use = [max((position[u] for u in n.users if u in position), default=i) for i, n in enumerate(nodes)]
    cuts: dict[int, CutPoint] = {}
    layers: dict[str, None] = {}
    furthest = weighing = 0
    for i, node in enumerate(nodes[:-1]):
        if _weighs(node):
            weighing += 1
            layers.update(dict.fromkeys(parameters_of(node)))
        # All earlier tensors have had their last use: this one alone goes on.
        alone = furthest <= i and _batch_first(node, nodes[0])
        furthest = max(furthest, last_use[i])
        if alone and node.op != "placeholder" and layers:
            name = layer_of(node) or list(layers)[-1]
            cuts[weighing] = CutPoint(node.name, name, shape_of(node)[1:], _is_sequence(node), tuple(layers))
    # After the last layer comes the output.
    cuts.pop(sum(map(_weighs, nodes)), None)
    return tuple(cuts.values())


def _is_sequence(node: fx.Node) -> bool:
    """Whether a tensor of two dimensions is `(T, C)`, judged by the last operator that settles it."""
    if len(shape_of(node)) != 3:
        return False
    while node.op == "call_function" and any(s.op != "get_attr" for s in node.all_input_nodes):
        if _operator(node) in ("conv1d", "conv_transpose1d", "batch_norm"):
            return False
        if _operator(node) in ("linear", "layer_norm", "transpose", "permute", "matmul", "bmm"):
            return True
        node = next(source for source in node.all_input_nodes if source.op != "get_attr")
    return True


def why_illegal(start: CutPoint, end: CutPoint) -> str | None:
    """Why no translator leads from one cut point to another; None where one does.

    `(C, H, W)` and other grids may shrink, `(T, C)` keeps its T, and all may be pooled to `(C,)`.
    """
    if len(end.shape) == 1 or (start.shape, start.tokens) == (end.shape, end.tokens):
        return None
    if len(start.shape) != len(end.shape):
        return f"tensors of {len(start.shape)} dimensions do not lead to {len(end.shape)}"
    if start.tokens != end.tokens:
        return "a sequence of tokens and a grid do not lead to each other"
    if start.tokens:
        same = start.shape[0] == end.shape[0]
        return None if same else f"{start.shape[0]} tokens do not lead to {end.shape[0]}"
    if any(b > a for a, b in zip(start.shape[1:], end.shape[1:], strict=True)):
        return f"a grid of {start.shape[1:]} does not lead to a larger one of {end.shape[1:]}"
    return None


def find_residuals(graph: fx.Graph) -> tuple[ResidualBranch, ...]:
    """Additions whose two sides part at one tensor, from input to output."""
    nodes = data_nodes(graph)
    dominator = _dominators(nodes)
    residuals = []
    for node in nodes:
        sides = [a for a in node.args if isinstance(a, fx.Node) and a in dominator]
        if _operator(node) not in _ADDITIONS or len(sides) != 2:
            continue
        weighted = node.kwargs.get("alpha", 1) != 1
        if sides[0] is sides[1] or weighted or shape_of(sides[0]) != shape_of(sides[1]):
            continue
        fork = dominator[node]
        if fork is None:
            continue
        parts = [(_layers_between(fork, side), side) for side in sides]
        # A shortcut leads past all layers, or else is the side with fewer, such as a projection.
        order = sorted(parts, key=lambda part: (not _passes_by(fork, part[1]), len(part[0])))
        (shortcut, _), (branch, side) = order
        if branch and not set(branch) & set(shortcut):
            place, shape = layer_of(node), shape_of(node)[1:]
            residuals.append(ResidualBranch(node.name, side.name, fork.name, place, shape, branch, shortcut))
    return tuple(residuals)


def _dominators(nodes: list[fx.Node]) -> Mapping[fx.Node, fx.Node | None]:
    """Immediate dominator of each node: the last node that all paths from the model's inputs to it pass; None
    where there is none."""
    flow: networkx.DiGraph[fx.Node | str] = networkx.DiGraph()
    before_inputs = "before all inputs"
    known = set(nodes)
    flow.add_nodes_from(nodes)
    flow.add_edges_from(
        (source, node) for node in nodes for source in node.all_input_nodes if source in known
    )
    flow.add_edges_from((before_inputs, node) for node in nodes if node.op == "placeholder")
    dominators = networkx.immediate_dominators(flow, before_inputs)
    known_dominators = ((node, dominators[node]) for node in nodes if node in dominators)
    return {node: last if isinstance(last, fx.Node) else None for node, last in known_dominators}


def _layers_between(fork: fx.Node, end: fx.Node) -> tuple[str, ...]:
    """Layers on the paths from a node, which dominates the end, to the end."""
    seen: set[fx.Node] = {fork}
    layers: list[str] = []
    waiting = [end]
    while waiting:
        node = waiting.pop()
        if node in seen:
            continue
        seen.add(node)
        layers += reversed(parameters_of(node))
        waiting += [s for s in node.all_input_nodes if s.op != "get_attr"]
    return tuple(dict.fromkeys(reversed(layers)))


def _passes_by(fork: fx.Node, end: fx.Node) -> bool:
    """Whether some path from a node to a later one leads through no layer."""
    seen: set[fx.Node] = set()
    waiting = [end]
    while waiting:
        node = waiting.pop()
        if node is fork:
            return True
        if node not in seen and not parameters_of(node):
            waiting += node.all_input_nodes
        seen.add(node)
    return False


def _weighs(node: fx.Node) -> bool:
    """Whether a node multiplies with parameters, as layers do and normalisations do not."""
    return any(
        s.op == "get_attr" and isinstance(s.meta.get("val"), Tensor) and s.meta["val"].dim() > 1
        for s in node.all_input_nodes
    )


def _batch_first(node: fx.Node, start: fx.Node) -> bool:
    """Whether a node yields one tensor whose first dimension is the batch, as the input's is."""
    output = node.meta["val"]
    if not isinstance(output, Tensor) or not output.dim():
        return False
    sizes = [str(tensor.shape[0]) for tensor in (output, start.meta["val"])]
    return sizes[0] == sizes[1]


def _operator(node: fx.Node) -> str:
    schema = getattr(node.target, "_schema", None)
    return schema.name.split("::")[-1] if schema is not None else str(node.target)


def _tensors(node: fx.Node) -> bool:
    output: Any = node.meta.get("val")
    if isinstance(output, (tuple, list)):
        return any(isinstance(t, torch.Tensor) for t in output)
    return isinstance(output, torch.Tensor)
