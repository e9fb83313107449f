"""Blocks under `torch.autocast` or another gradient mode, written out in a program as the operators in them.

`torch.export` keeps such a block as a sub-graph that is called. Which gradients are kept does not change
what is computed; a block without them lets none pass, which `detach` says as well. Autocast that is switched
off or for another device changes nothing on the CPU, where models are analysed and deployed.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, fx
from torch.export import ExportedProgram

from autocompress.errors import TraceError

_GRADIENTS = torch.ops.higher_order.wrap_with_set_grad_enabled
_AUTOCAST = torch.ops.higher_order.wrap_with_autocast


def write_out_blocks(program: ExportedProgram) -> None:
    """Put the operators of blocks in the place of their calls.

    Raises:
        TraceError: a block computes in half precision, or other sub-graphs are called, as by `torch.cond`.
    """
    for old, new in _write_out(program.graph_module).items():
        program.graph_signature.replace_all_uses(old, new)
    for node in program.graph.nodes:
        target = getattr(program.graph_module, str(node.target), None) if node.op == "get_attr" else None
        if isinstance(target, fx.GraphModule):
            callers = ", ".join(sorted({str(user.target) for user in node.users}))
            raise TraceError(
                "the model must be traceable as one sequence of operators but its forward has functions that "
                f"are called by {callers}: write it without, as torch.where does a condition."
            )


def _write_out(module: fx.GraphModule) -> dict[str, str]:
    """Write out the blocks of a graph, and those in them.

    Returns:
        Names of nodes that are gone → names of what stands in their place.
    """
    blocks = [node for node in module.graph.nodes if node.target in (_GRADIENTS, _AUTOCAST)]
    renamed: dict[str, str] = {}
    for node in blocks:
        renamed |= _write_out_block(module, node)
    if blocks:
        module.recompile()
    return renamed


def _write_out_block(module: fx.GraphModule, node: fx.Node) -> dict[str, str]:
    graph, (attribute, operands, detached) = module.graph, _call(node)
    block: Any = module.get_submodule(str(attribute.target))
    _write_out(block)
    inputs = [inner for inner in block.graph.nodes if inner.op == "placeholder"]
    with graph.inserting_before(node):
        outputs: Any = graph.graph_copy(block.graph, dict(zip(inputs, operands, strict=True)))
        if detached:
            outputs = [_detached(graph, output) for output in outputs]
    renamed: dict[str, str] = {}
    for item in list(node.users):  # `operator.getitem` of one output each
        output = outputs[item.args[1]]
        item.replace_all_uses_with(output)
        renamed[item.name] = output.name
        graph.erase_node(item)
    graph.erase_node(node)
    if not attribute.users:
        graph.erase_node(attribute)
        module.delete_submodule(str(attribute.target))
    return renamed


def _call(node: fx.Node) -> tuple[fx.Node, list[Any], bool]:
    """The node that holds a block, the block's inputs, and whether it lets no gradient pass."""
    arguments: Any = node.args
    if node.target is _GRADIENTS:
        enabled, attribute, *operands = arguments
        return attribute, operands, not enabled
    device, dtype, enabled, _, attribute, *operands = arguments
    if enabled and device == "cpu":
        # Equality to 1e-4 could not be shown, as of models whose parameters are in half precision.
        raise TraceError(
            "the model must compute in single precision on the CPU but its forward enters "
            f"torch.autocast({device!r}, {dtype}): enable it on GPUs alone (enabled=x.is_cuda), or leave it "
            "to Recipe(mixed_precision=True)."
        )
    return attribute, operands, False


def _detached(graph: fx.Graph, output: Any) -> Any:
    if not isinstance(output, fx.Node) or not isinstance(output.meta.get("val"), Tensor):
        return output
    node = graph.call_function(torch.ops.aten.detach.default, (output,))
    node.meta = dict(output.meta)
    return node
