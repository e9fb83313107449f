"""An exported program with fewer tensors and fewer operators, which computes the same.

In inference a batch norm is an affine map of each channel, y = s·x + t with s = γ / √(σ² + ε) and
t = β − s·μ. After a layer that is linear in its weights W, s·(W·x + b) + t is the same layer with s·W and
s·b + t (Jacob et al., *Quantization and Training of Neural Networks for Efficient Integer-Arithmetic-Only
Inference*, arXiv 1712.05877, section 3.2).
"""

from __future__ import annotations

import itertools
import operator
from collections.abc import Collection
from typing import Any

import torch
from torch import Tensor, fx
from torch.export import ExportedProgram
from torch.export.graph_signature import InputKind, InputSpec, TensorArgument

_aten = torch.ops.aten
# Operators whose output channels are the first dimension of their weight. All take (input, weight, bias, …).
_LAYERS = (
    _aten.conv1d.default,
    _aten.conv1d.padding,
    _aten.conv2d.default,
    _aten.conv2d.padding,
    _aten.conv3d.default,
    _aten.conv3d.padding,
    _aten.linear.default,
)
# How far, relative to a number and to the greatest of its tensor, it may be from one that half precision has:
# some 32 times less than halves are apart.
_SAME, _SAME_SIZE = 2.0**-16, 2.0**-20
# Numbers below which a tensor of halves saves less than the program needs more to widen it.
_FEW_HALVES = 256
_STORED = (InputKind.PARAMETER, InputKind.BUFFER)


def slim(program: ExportedProgram, *, halves: bool = False) -> None:
    """Read tied tensors under one name, compute once what is computed alike several times, such as the table
    that codes of several layers are decoded by, fold batch norms, and store all buffers with the weights; in
    place.

    The program must be exported in evaluation mode. Weights that are computed, from codes for instance, are
    multiplied by s where they are read. A batch norm whose layer shares a tensor with others stays.

    Args:
        program: to change.
        halves: store what half precision has as one tensor of it.
    """
    stored = _Stored(program)
    stored.unite_tied()
    _share(program.graph, stored.specs)
    for node in list(program.graph.nodes):
        if node.target is _aten.batch_norm.default and not node.args[5]:
            _fold(stored, node)
    if halves:
        stored.join_halves()
    stored.drop_unused()
    stored.persist_buffers()
    program.graph.lint()
    program.graph_module.recompile()


def _share(graph: fx.Graph, stored: Collection[str]) -> None:
    """Compute once what is computed alike, of stored tensors alone.

    What else there is may be changed in place between two operators that look alike. Not by PyTorch's own
    pass, which gives the inputs other names than the program's signature has.

    Args:
        graph: of a program.
        stored: names of the nodes that stand for stored tensors.
    """
    constant = {node for node in graph.nodes if node.op == "placeholder" and node.name in stored}
    for node in graph.nodes:
        inputs = set(node.all_input_nodes)
        if not isinstance(node.target, torch._ops.OpOverload) or not inputs or not inputs <= constant:
            continue
        if not _mutates(node) and torch.Tag.nondeterministic_seeded not in node.target.tags:
            constant.add(node)
    if any(_mutates(node) and constant & set(node.all_input_nodes) for node in graph.nodes):
        return
    first: dict[str, fx.Node] = {}
    for node in [node for node in graph.nodes if node in constant and node.op != "placeholder"]:
        earlier = first.setdefault(f"{node.target}{node.args}{node.kwargs}", node)
        if earlier is not node and not any(user.op == "output" for user in node.users):
            node.replace_all_uses_with(earlier)
            graph.erase_node(node)


def _mutates(node: fx.Node) -> bool:
    return isinstance(node.target, torch._ops.OpOverload) and node.target._schema.is_mutable


class _Stored:
    """The tensors that a program stores, by the node that stands for each."""

    def __init__(self, program: ExportedProgram) -> None:
        self.program = program
        self.specs = {
            spec.arg.name: spec for spec in program.graph_signature.input_specs if spec.kind in _STORED
        }

    def own(self, node: Any) -> bool:
        """Whether a node stands for a stored tensor that nothing else reads."""
        if not isinstance(node, fx.Node) or node.name not in self.specs or len(node.users) != 1:
            return False
        target = self.specs[node.name].target
        # Tied tensors have one place each, and one tensor.
        tensor = self[node]
        return not any(other is tensor for name, other in self.program.state_dict.items() if name != target)

    def __getitem__(self, node: fx.Node) -> Tensor:
        # Non-persistent buffers are among the constants.
        target = self.specs[node.name].target
        state = self.program.state_dict
        tensor: Tensor = (state if target in state else self.program.constants)[target]
        return tensor

    def __setitem__(self, node: fx.Node, value: Tensor) -> None:
        spec = self.specs[node.name]
        tensor = value.to(self[node].dtype)
        if spec.kind is InputKind.PARAMETER:
            tensor = torch.nn.Parameter(tensor, requires_grad=self[node].requires_grad)
        self.program.state_dict[spec.target] = tensor
        node.meta["val"] = node.meta["val"].new_empty(tensor.shape)

    def unite_tied(self) -> None:
        """Let all read the first of several names for one tensor, unless the program changes it."""
        changed = {*self.program.graph_signature.buffers_to_mutate.values()}
        first: dict[int, fx.Node] = {}
        for node in self.program.graph.nodes:
            if node.op == "placeholder" and node.name in self.specs:
                earlier = first.setdefault(id(self[node]), node)
                targets = {self.specs[tied.name].target for tied in (earlier, node)}
                if earlier is not node and not targets & changed:
                    node.replace_all_uses_with(earlier)

    def drop_unused(self) -> None:
        """Remove parameters and buffers that no operator reads any more."""
        signature = self.program.graph_signature
        gone = set()
        for node in list(self.program.graph.nodes):
            if node.op == "placeholder" and node.name in self.specs and not node.users:
                gone.add(node.name)
                self.program.graph.erase_node(node)
        targets = {self.specs[name].target for name in gone}
        signature.input_specs[:] = [spec for spec in signature.input_specs if spec.arg.name not in gone]
        still = {spec.target for spec in signature.input_specs}
        for target in targets - still:
            self.program.state_dict.pop(target, None)
            self.program.constants.pop(target, None)

    def join_halves(self) -> None:
        """Put all tensors whose numbers half precision has into one of halves, of which a program with many
        vectors also has fewer names; the program widens it and reads them as its parts."""
        program, graph = self.program, self.program.graph
        changed = {*program.graph_signature.buffers_to_mutate.values()}
        nodes = [
            node
            for node in graph.nodes
            if node.name in self.specs and node.users and self.specs[node.name].target not in changed
            if self[node].dtype == torch.float32 and _is_half(self[node])
        ]
        joined = torch.cat([self[node].detach().reshape(-1).half() for node in nodes] or [torch.empty(0)])
        if len(joined) < _FEW_HALVES:
            return
        fake = nodes[0].meta["val"]
        stored = self._add_buffer("halves", joined, fake.new_empty(len(joined), dtype=torch.float16))
        sizes = [self[node].numel() for node in nodes]
        with graph.inserting_before(next(node for node in graph.nodes if node.op != "placeholder")):
            wide = _call(graph, _aten.to.dtype, stored, torch.float32, val=fake.new_empty(len(joined)))
            vectors = [fake.new_empty(size) for size in sizes]
            parts = _call(graph, _aten.split_with_sizes.default, wide, sizes, val=vectors)
            for place, node in enumerate(nodes):
                part = _call(graph, operator.getitem, parts, place, val=vectors[place])
                shape = node.meta["val"].shape
                if len(shape) != 1:
                    part = _call(graph, _aten.reshape.default, part, list(shape), val=node.meta["val"])
                node.replace_all_uses_with(part)

    def _add_buffer(self, name: str, tensor: Tensor, fake: Tensor) -> fx.Node:
        """Store a tensor behind the parameters; `fake` is what stands for it while the program is traced."""
        names = itertools.chain([name], (f"{name}_{number}" for number in itertools.count(1)))
        target = next(other for other in names if other not in self.program.state_dict)
        specs = self.program.graph_signature.input_specs
        place = next(i for i, spec in enumerate(specs) if spec.kind is not InputKind.PARAMETER)
        graph = self.program.graph
        after = next(node for node in graph.nodes if node.name == specs[place].arg.name)
        with graph.inserting_before(after):
            node: fx.Node = graph.placeholder(f"b_{target}")
        node.meta["val"] = fake
        spec = InputSpec(InputKind.BUFFER, TensorArgument(name=node.name), target, persistent=True)
        specs.insert(place, spec)
        self.specs[node.name] = spec
        self.program.state_dict[target] = tensor
        return node

    def persist_buffers(self) -> None:
        """Store buffers that a state does not keep with those that it keeps, as one record holds them all."""
        for spec in self.program.graph_signature.input_specs:
            if spec.kind is InputKind.BUFFER and spec.target in self.program.constants:
                spec.persistent = True
                self.program.state_dict[spec.target] = self.program.constants.pop(spec.target)


def _call(graph: fx.Graph, target: Any, *args: Any, val: Any) -> fx.Node:
    """An operator, and what it returns while the program is traced."""
    node = graph.call_function(target, args)
    node.meta["val"] = val
    return node


def _is_half(numbers: Tensor) -> bool:
    """Whether half precision has these numbers, but for what is lost by computing them."""
    if not numbers.numel():
        return False
    numbers = numbers.detach()
    return torch.allclose(numbers.half().float(), numbers, _SAME, _SAME_SIZE * float(numbers.abs().max()))


def _fold(stored: _Stored, norm: fx.Node) -> None:
    arguments: Any = norm.args
    layer, gamma, beta, mean, variance = arguments[:5]
    if layer.target not in _LAYERS or len(layer.users) != 1:
        return
    weight, bias = layer.args[1], layer.args[2] if len(layer.args) > 2 else None
    own = [node for node in (gamma, beta, mean, variance, bias) if node is not None]
    if gamma is None or beta is None or not all(stored.own(node) for node in own):
        return
    if layer.target is _aten.linear.default and norm.meta["val"].dim() != 2:
        return  # its channels are not the features
    s = stored[gamma].double() / (stored[variance].double() + arguments[7]).sqrt()
    shift = stored[mean].double() if bias is None else stored[mean].double() - stored[bias].double()
    t = stored[beta].double() - s * shift
    per_channel = (-1, *[1] * (weight.meta["val"].dim() - 1))
    if stored.own(weight):
        stored[weight] = stored[weight].double() * s.reshape(per_channel)
    else:
        stored[gamma] = s.reshape(per_channel)
        with norm.graph.inserting_before(layer):
            scaled = norm.graph.call_function(_aten.mul.Tensor, (weight, gamma))
        scaled.meta["val"] = weight.meta["val"]
        weight = scaled
    stored[beta] = t
    layer.args = (layer.args[0], weight, beta, *layer.args[3:])
    norm.replace_all_uses_with(layer)
    stored.program.graph_signature.replace_all_uses(norm.name, layer.name)
    norm.graph.erase_node(norm)
