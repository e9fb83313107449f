"""Deletes all layers between two cut points of a model's graph and puts one module in their place."""

from __future__ import annotations

import copy
from collections.abc import Sequence
from dataclasses import dataclass

from torch import fx, nn
from torch.fx.graph import CodeGen

from autocompress.graph.rewriting import call_layers
from autocompress.graph.structure import Analysis, graph_module

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
    call_layers(dict(zip(traced.nodes, list(graph.nodes), strict=True)), graph, model)
    nodes = {node.name: node for node in graph.nodes}
    for one in bridges:
        end = _output(graph) if one.end == OUTPUT else nodes[one.end]
        with graph.inserting_after(nodes[one.start]):
            call = graph.call_module(one.name, (nodes[one.start],))
        end.replace_all_uses_with(call)
        nodes[one.end] = call
    _erase_unused(graph)
    # Not registered on the model itself: a sequential one would run what it holds.
    holder = _holder(model)
    for one in bridges:
        holder.add_module(one.name, one.module)
    module = graph_module(holder, graph, analysis.trace.constants)
    for name, layer in model.named_modules():
        if name and not list(layer.children()) and next(layer.parameters(), None) is not None:
            module.add_submodule(name, layer)
    return module


def _holder(model: nn.Module) -> nn.Module:
    """What a model holds, without its code."""
    holder = nn.Module()
    holder._modules = dict(model._modules)
    holder._parameters = dict(model._parameters)
    holder._buffers = dict(model._buffers)
    return holder


def tap(model: nn.Module, graph: fx.Graph, names: Sequence[str]) -> nn.Module:
    """A module that gives the tensors of these nodes, or bridges, instead of the model's outputs."""
    tapped = copy.deepcopy(graph)
    nodes = {node.name: node for node in tapped.nodes}
    nodes |= {str(node.target): node for node in tapped.nodes if node.op == "call_module"}
    output = next(node for node in tapped.nodes if node.op == "output")
    tapped.erase_node(output)
    tapped.set_codegen(CodeGen())
    tapped.output(tuple(nodes[name] for name in names))
    _erase_unused(tapped)
    return fx.GraphModule(model, tapped)


def layers_between(analysis: Analysis, start: str, end: str) -> tuple[str, ...]:
    """Layers with parameters that run after one cut point and not after another."""
    order = [node.name for node in analysis.trace.graph.nodes]
    first = order.index(start)
    last = len(order) if end == OUTPUT else order.index(end)
    found: dict[str, None] = {}
    for node in list(analysis.trace.graph.nodes)[first + 1 : last + 1]:
        for source in node.all_input_nodes:
            if source.op == "get_attr":
                found[str(source.target).rpartition(".")[0]] = None
    return tuple(found)


def _output(graph: fx.Graph) -> fx.Node:
    output: fx.Node = next(node for node in graph.nodes if node.op == "output")
    return output.all_input_nodes[0]


def _erase_unused(graph: fx.Graph) -> None:
    for node in reversed(list(graph.nodes)):
        if node.op not in ("output", "placeholder") and not node.users:
            graph.erase_node(node)
