"""`analyse`: coupled channel groups of any exportable model, and a reason for all that is frozen."""

from __future__ import annotations

import contextlib
from collections import OrderedDict
from collections.abc import Mapping
from dataclasses import replace
from operator import attrgetter
from typing import Any, cast

import torch
from torch import Tensor, fx, nn

from autocompress.graph import rules  # noqa: F401  (it registers the rules)
from autocompress.graph.exporting import export, inference, untraceable
from autocompress.graph.grouping import build_analysis
from autocompress.graph.proof import prove_groups
from autocompress.graph.structure import Analysis, unused_name
from autocompress.graph.structure_key import StructureKey, structure_key
from autocompress.graph.tracing import Tracer
from autocompress.graph.training_mode import Training, annotate, last_input, marked, observe
from autocompress.task.copying import copied
from autocompress.task.inputs import Inputs, call, moved

# A trial analyses the reference, and what each of its stages begins with, before and after it is trained.
_CACHE: OrderedDict[StructureKey, Analysis] = OrderedDict()
_CACHE_SIZE = 16


def analyse(model: nn.Module, example: Inputs, graph: fx.GraphModule | None = None) -> Analysis:
    """Find a model's coupled channel groups on its exported graph, all proven by a trial removal.

    Args:
        model: any module that `torch.export` can trace with a free batch size; it is not changed.
        example: a batch of at least 2 inputs, `(B, ...)`.
        graph: of the model as it is, where it has been exported already, with modules that return their input
            marked, as `export_program` gives it; changed.

    Raises:
        TaskError: the model cannot be copied.
        TraceError: `torch.export` cannot trace it.
    """
    subject = copied(model).to("cpu").eval()
    inputs = moved(example, "cpu")
    _fill_caches(subject, inputs)
    key = structure_key(subject, inputs)
    if key is None:
        return _analysed(subject, inputs, graph)
    if key not in _CACHE:
        _CACHE[key] = _analysed(subject, inputs, graph)
        if len(_CACHE) > _CACHE_SIZE:
            _CACHE.popitem(last=False)
    _CACHE.move_to_end(key)
    return _CACHE[key]


def with_present_constants(analysis: Analysis, model: nn.Module, example: Inputs) -> Analysis:
    """The analysis of a model whose weights have changed since, with what its code now makes of them,
    as LeViT's attention keeps its biases in evaluation.

    Args:
        analysis: of the model.
        model: not changed.
        example: a batch of at least 2 inputs, `(B, ...)`.

    Raises:
        TraceError: `torch.export` cannot trace it any more.
    """
    if not analysis.trace.constants:
        return analysis
    subject, inputs = copied(model).to("cpu").eval(), moved(example, "cpu")
    constants = _name_constants(_exported(subject, inputs, None)[0], _states(subject))
    return replace(analysis, trace=replace(analysis.trace, constants=constants))


def _fill_caches(subject: nn.Module, inputs: Inputs) -> None:
    """Let a model make what it keeps in evaluation: its graph has it as constants, whose numbers tell it from
    another one's."""
    with contextlib.suppress(Exception), inference(subject):  # tracing says what is wrong with a model
        call(subject, inputs)


def _analysed(subject: nn.Module, inputs: Inputs, graph: fx.GraphModule | None) -> Analysis:
    exported, training = _exported(subject, inputs, graph)
    states = _states(subject)
    constants = _name_constants(exported, states)
    _follow_inputs(exported.graph)
    annotate(exported.graph, subject, training)
    tracer = Tracer()
    tracer.run(exported.graph, states, constants)
    return prove_groups(subject, inputs, build_analysis(subject, tracer, exported.graph, constants))


def _exported(
    model: nn.Module, example: Inputs, graph: fx.GraphModule | None
) -> tuple[fx.GraphModule, Training]:
    """A model's graph, modules that return their input marked in it, and what it does in training."""
    try:
        training = observe(model, example)
    except Exception as error:
        raise untraceable(error) from error
    if graph is not None:
        return graph, training
    with marked(model, training.passing):
        program = export(model, example)
    module: Any = program.module(check_guards=False)
    return cast(fx.GraphModule, module), training


def _follow_inputs(graph: fx.Graph) -> None:
    """Make tensors of a graph where its input is, which need not be where it was traced."""
    given = [node for node in graph.nodes if node.op == "placeholder"]
    given = [node for node in given if isinstance(node.meta.get("val"), Tensor)]
    with graph.inserting_after(last_input(graph)):
        device = graph.call_function(getattr, (given[0], "device"))
    for node in list(graph.nodes):
        if node.target is torch.ops.aten._assert_tensor_metadata.default:
            graph.erase_node(node)
        elif node.op == "call_function":
            here: Any = fx.node.map_aggregate(
                (node.args, node.kwargs), lambda value: device if isinstance(value, torch.device) else value
            )
            node.args, node.kwargs = here
    if not device.users:
        graph.erase_node(device)


def _name_constants(exported: fx.GraphModule, states: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Tensors of the graph that are no state of the model, under names that any module can hold them by.

    `torch.export` calls a tensor that a sub-module's `forward` makes `block.lifted_tensor_0`. Whoever runs
    the graph later holds constants as buffers of its root, whose names have no dots, so the graph's nodes
    are renamed.
    """
    taken = {name.partition(".")[0] for name in states} | {name for name, _ in exported.named_children()}
    constants: dict[str, Tensor] = {}
    flat_names: dict[str, str] = {}
    for node in exported.graph.nodes:
        if node.op != "get_attr" or node.target in states:
            continue
        if node.target not in flat_names:
            constant = attrgetter(node.target)(exported)
            if not isinstance(constant, Tensor):
                continue
            flat_names[node.target] = unused_name(node.target.replace(".", "_"), taken | constants.keys())
            constants[flat_names[node.target]] = constant
        node.target = flat_names[node.target]
    return constants


def _states(model: nn.Module) -> dict[str, Tensor]:
    return dict(model.named_parameters(remove_duplicate=False)) | dict(
        model.named_buffers(remove_duplicate=False)
    )
