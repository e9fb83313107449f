"""`analyse`: coupled channel groups of any exportable model, and a reason for all that is frozen."""

from __future__ import annotations

import copy
from collections import OrderedDict
from typing import Any, cast

from torch import Tensor, fx, nn

from autocompress.errors import TraceError, one_line
from autocompress.graph import rules  # noqa: F401  (it registers the rules)
from autocompress.graph.exporting import export
from autocompress.graph.grouping import build_analysis
from autocompress.graph.proof import prove_groups
from autocompress.graph.structure import Analysis
from autocompress.graph.tracing import Tracer

_CACHE: OrderedDict[str, Analysis] = OrderedDict()
_CACHE_SIZE = 16


def analyse(model: nn.Module, example: Tensor) -> Analysis:
    """Find a model's coupled channel groups on its exported graph, all proven by a trial removal.

    Args:
        model: any module that `torch.export` can trace with a free batch size; it is not changed.
        example: a batch of at least 2 inputs, `(B, ...)`.

    Raises:
        TraceError: `torch.export` cannot trace the model.
    """
    try:
        subject = copy.deepcopy(model).to("cpu").eval()
    except RuntimeError as error:
        raise TraceError(f"the model must be copyable but: {one_line(error)}") from error
    inputs = example.to("cpu")
    exported = _exported(subject, inputs)
    graph = exported.graph
    # The graph itself is the key: models of one class may differ by a flag that no shape shows.
    shapes = [(name, tuple(t.shape)) for name, t in subject.state_dict().items()]
    key = f"{graph}|{shapes}|{subject}"
    if key not in _CACHE:
        states = _states(subject)
        tracer = Tracer()
        tracer.run(graph, states)
        found = build_analysis(subject, tracer, graph, _constants(exported, states))
        _CACHE[key] = prove_groups(subject, inputs, found)
        if len(_CACHE) > _CACHE_SIZE:
            _CACHE.popitem(last=False)
    return _CACHE[key]


def _exported(model: nn.Module, example: Tensor) -> fx.GraphModule:
    try:
        program = export(model, example)
    except Exception as error:
        raise TraceError(
            "the model must be traceable by torch.export with a free batch size (no control flow that "
            f"depends on data) but: {type(error).__name__}: {one_line(error)}"
        ) from error
    module: Any = program.module(check_guards=False)
    return cast(fx.GraphModule, module)


def _constants(exported: fx.GraphModule, states: dict[str, Tensor]) -> dict[str, Tensor]:
    names = [str(n.target) for n in exported.graph.nodes if n.op == "get_attr" and n.target not in states]
    found = {name: getattr(exported, name, None) for name in names}
    return {name: tensor for name, tensor in found.items() if isinstance(tensor, Tensor)}


def _states(model: nn.Module) -> dict[str, Tensor]:
    return dict(model.named_parameters(remove_duplicate=False)) | dict(
        model.named_buffers(remove_duplicate=False)
    )
