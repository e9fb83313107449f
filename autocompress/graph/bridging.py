"""Deletes all layers between two cut points of a model's graph and puts one module in their place."""

from __future__ import annotations

import copy
from collections.abc import Sequence, Set
from dataclasses import dataclass

from torch import fx, nn
from torch.fx.graph import CodeGen

from autocompress.graph.rewriting import call_layers
from autocompress.graph.structure import Analysis, graph_module
from autocompress.graph.topology import parameters_of

OUTPUT = "output"


@dataclass(frozen=True)
class Bridge:
    """From the tensor of one cut point to that of a later one, or to the model's output.

    Args:
        start: graph node of the earlier cut point.
        end: graph node of the later one, or `OUTPUT`.
        name: under which the bridging module is registered.
        module: takes the tensor of `start` and gives that of `end`.
    """

    start: str
    end: str
    name: str
    module: nn.Module


def bridge(model: nn.Module, analysis: Analysis, bridges: Sequence[Bridge]) -> fx.GraphModule:
    """A graph module in which these bridges stand for what lies between their ends.

    The layers in between stay registered, but nothing calls them.

    Args:
        model: whose layers and parameters the result shares.
        analysis: of this model.
        bridges: disjoint, from input to output.
    """
    traced = analysis.trace.graph
    graph = copy.deepcopy(traced)
    modules = call_layers(dict(zip(traced.nodes, list(graph.nodes), strict=True)), graph, model)
    order = list(graph.nodes)
    nodes = {node.name: node for node in order}
    between: set[fx.Node] = set()
    for link in bridges:
        end = _output(graph) if link.end == OUTPUT else nodes[link.end]
        start = order.index(next(node for node in order if node.name == link.start))
        between.update(order[start + 1 : order.index(end) + 1])
        with graph.inserting_after(nodes[link.start]):
            call = graph.call_module(link.name, (nodes[link.start],))
        end.replace_all_uses_with(call)
        nodes[link.end] = call
    erase_unused(graph, between)
    modules |= {link.name: link.module for link in bridges}
    module = graph_module(model, graph, analysis.trace.constants, modules)
    for name, layer in model.named_modules():
        leaf = not list(layer.children()) and next(layer.parameters(), None) is not None
        if name and leaf and name not in modules:
            module.add_submodule(name, layer)
    return module


def tap(model: nn.Module, graph: fx.Graph, names: Sequence[str]) -> nn.Module:
    """A module that gives the tensors of these nodes, or bridges, instead of the model's outputs."""
    tapped = copy.deepcopy(graph)
    order = list(tapped.nodes)
    nodes = {node.name: node for node in order}
    nodes |= {str(node.target): node for node in order if node.op == "call_module"}
    tapped.erase_node(order.pop())
    tapped.set_codegen(CodeGen())
    tapped.output(tuple(nodes[name] for name in names))
    last = max(order.index(nodes[name]) for name in names)
    erase_unused(tapped, set(order[last + 1 :]))
    return fx.GraphModule(model, tapped)


def layers_between(analysis: Analysis, start: str, end: str) -> tuple[str, ...]:
    """Layers with parameters that run after one cut point and up to another."""
    order = list(analysis.trace.graph.nodes)
    names = [node.name for node in order]
    last = len(order) if end == OUTPUT else names.index(end)
    layers: dict[str, None] = {}
    for node in order[names.index(start) + 1 : last + 1]:
        layers.update(dict.fromkeys(parameters_of(node)))
    return tuple(layers)


def _output(graph: fx.Graph) -> fx.Node:
    output: fx.Node = next(node for node in graph.nodes if node.op == "output")
    return output.all_input_nodes[0]


def erase_unused(graph: fx.Graph, between: Set[fx.Node] = frozenset()) -> None:
    """Erase nodes whose results nobody uses; of those that act besides, only some.

    Args:
        graph: changed in place.
        between: nodes that go even where they change a tensor: it is not used any more either.
    """
    for node in reversed(list(graph.nodes)):
        acts = _acts(node) and node not in between
        if node.op not in ("output", "placeholder") and not node.users and not acts:
            graph.erase_node(node)


def _acts(node: fx.Node) -> bool:
    """Whether a node changes a tensor in place, or begins or ends a `torch.vmap`."""
    schema = getattr(node.target, "_schema", None)
    module = getattr(node.target, "__module__", None)
    return module == "torch._functorch.predispatch" if schema is None else bool(schema.is_mutable)
