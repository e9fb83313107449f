"""What a model does in training that its graph, exported in eval mode, does not say.

The model is run once in each mode before it is exported. Modules that return their input in eval mode, as
dropout and stochastic depth do, leave nothing in a graph: while the model is exported they put an
`aten.clone` there, which stands for a call of the module. Of operators that act otherwise in training
(normalisations, dropouts, attention, recurrent layers) it is written down how strongly they do, so that the
mode of a module can switch them. What a model's own `train()` leaves in eval mode stays there.

What a model does besides when `self.training` is true cannot be seen: other layers, other control flow
(`LayerDrop`, auxiliary heads), or a module with parameters that returns its input in eval mode. A graph that
was cut does in training what it does in eval mode there.
"""

from __future__ import annotations

import contextlib
import copy
import inspect
import operator
import warnings
from collections import Counter, defaultdict
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, fx, nn
from torch.export import ExportedProgram
from torch.overrides import TorchFunctionMode

from autocompress.graph.corrections import operator_name
from autocompress.graph.exporting import inference, plain_attention
from autocompress.graph.topology import layer_of
from autocompress.task.inputs import Inputs, call

# Keys of `node.meta`: name of the module whose call a node stands for; strength of an operator in training.
CALLS = "calls_module"
STRENGTH = "strength_in_training"

_ATTENTION = "scaled_dot_product_attention"
_FLAGS = ("training", "train", "use_input_stats")  # what operators call the switch
_CHANCES = ("p", "dropout", "dropout_p")  # and the probability to drop

# PyTorch's functions in Python → the operator of the graph that comes of them.
_FUNCTIONS: dict[Any, str] = {
    F.batch_norm: "batch_norm",
    F.instance_norm: "instance_norm",
    F.dropout: "dropout",
    F.dropout1d: "feature_dropout",
    F.dropout2d: "feature_dropout",
    F.dropout3d: "feature_dropout",
    F.alpha_dropout: "alpha_dropout",
    F.feature_alpha_dropout: "feature_alpha_dropout",
    F.rrelu: "rrelu",
    F.multi_head_attention_forward: _ATTENTION,
}
# On a GPU these have no gradients unless they are switched to training, also where they drop nothing.
RECURRENT = {"lstm", "gru", "rnn_tanh", "rnn_relu"}
_OPERATORS = {*_FUNCTIONS.values(), *RECURRENT}


class TrainingMode(nn.Module):
    """Whether the model is in training, as a node of its graph that operators can be switched by."""

    def forward(self) -> bool:
        """Say whether the module is in training mode."""
        return self.training


@dataclass(frozen=True)
class Training:
    """What running a model in both modes showed.

    Args:
        passing: modules that return their input in eval mode and may not in training.
        calls: operator → the module of each call in training, in order, and the probability to drop, 1 where
            there is none, or None where it is switched off all the same; no mapping where the model cannot be
            run in training mode with its inputs alone.
    """

    passing: frozenset[str]
    calls: Mapping[str, tuple[tuple[str, float | None], ...]] | None


def observe(model: nn.Module, example: Inputs) -> Training:
    """Run a model once in eval and once in training mode; neither it nor PyTorch's random state changes.

    Args:
        model: in eval mode.
        example: a batch that batch statistics can be taken of, `(B, ...)` with B ≥ 2.
    """
    passing = passing_modules(model, example)
    subject = copy.deepcopy(model).train()
    recorder = _Recorder()
    with torch.random.fork_rng(devices=[]), torch.no_grad(), plain_attention(), warnings.catch_warnings():
        warnings.simplefilter("ignore")
        try:
            with _entered(subject, recorder.stack), recorder:
                call(subject, example)
        except Exception:
            # It asks for more in training, such as targets: what its operators say of themselves must do.
            return Training(passing, None)
    calls: dict[str, tuple[tuple[str, float | None], ...]] = {}
    for layer, name, func, args, kwargs in recorder.calls:
        strength = _strength(_arguments(func, name, args, kwargs))
        calls[name] = (*calls.get(name, ()), (layer, strength))
    return Training(passing, calls)


def passing_modules(model: nn.Module, example: Inputs) -> frozenset[str]:
    """Names of the modules that return their input in evaluation, and may do more in training.

    Args:
        model: not changed.
        example: a batch, `(B, ...)`.
    """
    subject = copy.deepcopy(model)
    with inference(subject):
        passing = _returning_input(subject, example)
    subject.train()
    return frozenset(passing & {name for name, module in subject.named_modules() if module.training})


def _returning_input(model: nn.Module, example: Inputs) -> set[str]:
    """Modules without parameters that returned the very tensor that each call gave them, unchanged."""
    versions: list[int | None] = []
    returned: dict[str, bool] = {}

    def before(module: nn.Module, args: Any, kwargs: Any) -> None:
        tensor = _only_tensor(args, kwargs)
        versions.append(None if tensor is None else tensor._version)

    def after(name: str) -> Callable[..., None]:
        def hook(module: nn.Module, args: Any, kwargs: Any, output: Any) -> None:
            tensor, version = _only_tensor(args, kwargs), versions.pop()
            same = tensor is not None and output is tensor and tensor._version == version
            returned[name] = returned.get(name, True) and same

        return hook

    with contextlib.ExitStack() as hooks:
        for name, module in model.named_modules():
            idle = type(module).forward is nn.Identity.forward
            if name and not idle and next(module.parameters(), None) is None:
                hooks.enter_context(module.register_forward_pre_hook(before, with_kwargs=True))
                hooks.enter_context(module.register_forward_hook(after(name), with_kwargs=True))
        call(model, example)
    return {name for name, same in returned.items() if same}


def _only_tensor(args: tuple[Any, ...], kwargs: Mapping[str, Any]) -> Tensor | None:
    given = [*args, *kwargs.values()]
    return given[0] if len(given) == 1 and isinstance(given[0], Tensor) else None


@contextlib.contextmanager
def _entered(model: nn.Module, stack: list[str]) -> Iterator[None]:
    """Keep the names of the modules that are running, innermost last."""

    def entering(name: str) -> Callable[..., None]:
        return lambda module, args: stack.append(name)

    def leaving(module: nn.Module, args: Any, output: Any) -> None:
        stack.pop()

    with contextlib.ExitStack() as hooks:
        for name, module in model.named_modules():
            hooks.enter_context(module.register_forward_pre_hook(entering(name)))
            hooks.enter_context(module.register_forward_hook(leaving))
        yield


class _Recorder(TorchFunctionMode):
    """Writes down calls of operators that act otherwise in training, by the module that makes them."""

    def __init__(self) -> None:
        super().__init__()
        self.stack: list[str] = []
        self.calls: list[tuple[str, str, Any, list[Any], dict[str, Any]]] = []

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        name = _FUNCTIONS.get(func) or _builtin_name(func)
        if name in _OPERATORS:
            # Without the tensors, of which nothing is asked.
            settings = [None if isinstance(value, Tensor) else value for value in args]
            named = {key: None if isinstance(value, Tensor) else value for key, value in kwargs.items()}
            self.calls.append((self.stack[-1], name, func, settings, named))
        return func(*args, **kwargs)


def _builtin_name(func: Any) -> str:
    schema = getattr(func, "_schema", None)
    name = schema.name.split("::")[-1] if schema is not None else getattr(func, "__name__", "")
    return str(name).removesuffix("_")


def _arguments(func: Any, name: str, args: Sequence[Any], kwargs: Mapping[str, Any]) -> dict[str, Any]:
    """A call's arguments by their names, defaults included."""
    if func in _FUNCTIONS:
        bound = inspect.signature(func).bind(*args, **kwargs)
        bound.apply_defaults()
        return dict(bound.arguments)
    packet = getattr(torch.ops.aten, name)
    schema = getattr(func, "_schema", None) or getattr(packet, packet.overloads()[0])._schema
    arguments = {argument.name: argument.default_value for argument in schema.arguments}
    return arguments | dict(zip(arguments, args, strict=False)) | dict(kwargs)


def _strength(arguments: Mapping[str, Any]) -> float | None:
    on = next((bool(arguments[name]) for name in _FLAGS if name in arguments), True)
    chance = next((float(arguments[name]) for name in _CHANCES if name in arguments), 1.0)
    return chance if on else None


@contextlib.contextmanager
def marked(model: nn.Module, passing: frozenset[str]) -> Iterator[None]:
    """Let modules that return their input return a clone of it, which a graph shows."""
    modules = [model.get_submodule(name) for name in passing]
    own = [module.__dict__.get("forward") for module in modules]
    for module in modules:
        module.__dict__["forward"] = _clone
    try:
        yield
    finally:
        for module, forward in zip(modules, own, strict=True):
            module.__dict__.pop("forward")
            if forward is not None:
                module.__dict__["forward"] = forward


def unmark(program: ExportedProgram, model: nn.Module, passing: frozenset[str]) -> None:
    """Take the clones that stand for modules out of a program again, but those that it returns.

    Args:
        program: of the model, exported with these modules marked; changed.
        model: that was exported.
        passing: the modules.
    """
    names = {id(module): name for name, module in model.named_modules()}
    modules = dict(model.named_modules(remove_duplicate=False))
    for node in list(program.graph.nodes):
        if node.op != "call_function" or operator_name(node) != "clone":
            continue
        layer = names.get(id(modules.get(layer_of(node))), "")
        if layer in passing and not any(user.op == "output" for user in node.users):
            node.replace_all_uses_with(node.args[0])
            program.graph.erase_node(node)


def _clone(*args: Tensor, **kwargs: Tensor) -> Tensor:
    (tensor,) = (*args, *kwargs.values())
    return tensor.clone()


def annotate(graph: fx.Graph, model: nn.Module, training: Training) -> None:
    """Write into a traced graph's `node.meta` which module a clone stands for, and operators' strengths.

    Args:
        graph: exported with the passing modules marked; its nodes gain `CALLS` and `STRENGTH`.
        model: that was exported.
        training: what running it showed.
    """
    names = {id(module): name for name, module in model.named_modules()}
    modules = dict(model.named_modules(remove_duplicate=False))
    calls: dict[str, list[tuple[str, fx.Node]]] = defaultdict(list)
    for node in graph.nodes:
        if node.op != "call_function":
            continue
        module, name = modules.get(layer_of(node)), operator_name(node)
        layer = names.get(id(module), "")
        if name == "clone" and layer in training.passing:
            node.meta[CALLS] = layer
        elif name == "softmax" and isinstance(module, nn.MultiheadAttention):
            # Attention whose weights are asked for is written out.
            calls[_ATTENTION].append((layer, node))
        elif name in _OPERATORS:
            calls[name].append((layer, node))
    for name, nodes in calls.items():
        for (_, node), strength in zip(nodes, _strengths(name, nodes, training), strict=True):
            if strength or (strength is not None and name in RECURRENT):
                node.meta[STRENGTH] = strength


def _strengths(name: str, nodes: Sequence[tuple[str, fx.Node]], training: Training) -> list[float | None]:
    """Of an operator's nodes, which come with the modules that they are of, in order."""
    if training.calls is None:
        return [_supposed(node) for _, node in nodes]
    observed = training.calls.get(name, ())
    calls = {layer: [s for other, s in observed if other == layer] for layer, _ in nodes}
    counts, seen = Counter(layer for layer, _ in nodes), Counter[str]()
    strengths: list[float | None] = []
    for position, (layer, _) in enumerate(nodes):
        own = calls[layer]
        if len(own) == counts[layer]:
            strengths.append(own[seen[layer]])
        elif not own and len(observed) == len(nodes):
            # The operators of a graph module keep the names of the modules that they were of.
            strengths.append(observed[position][1])
        else:
            # Where training takes another way through a module its calls cannot be told apart.
            strengths.append(own[0] if len(set(own)) == 1 else None)
        seen[layer] += 1
    return strengths


def _supposed(node: fx.Node) -> float | None:
    """In training an operator is switched on, as far as it says how strong it then is."""
    arguments = {} if operator_name(node) == "softmax" else node_arguments(node)
    named = [argument for argument in arguments if argument in _FLAGS]
    return _strength(arguments | dict.fromkeys(named, True)) if named else None


def last_input(graph: fx.Graph) -> fx.Node:
    """The node of a graph's last input."""
    placeholders: list[fx.Node] = [node for node in graph.nodes if node.op == "placeholder"]
    return placeholders[-1]


def node_arguments(node: fx.Node) -> dict[str, Any]:
    """Arguments of an operator's node by their names, defaults included."""
    return _arguments(node.target, operator_name(node), node.args, node.kwargs)


@dataclass
class TrainingSwitch:
    """Switches operators of a graph by the mode of the module that will run it.

    Args:
        graph: changed in place.
        name: of a `TrainingMode` in that module; used if an operator is switched at all.
    """

    graph: fx.Graph
    name: str
    node: fx.Node | None = field(default=None, init=False)

    def modules(self) -> dict[str, nn.Module]:
        """The module that the graph calls, by its name; none if it calls none."""
        return {} if self.node is None else {self.name: TrainingMode()}

    def switch(self, node: fx.Node, strength: float) -> None:
        """Let an operator, or what comes after a softmax of attention, act in training.

        Args:
            node: of the graph.
            strength: with which it acts.
        """
        if self.node is None:
            with self.graph.inserting_after(last_input(self.graph)):
                self.node = self.graph.call_module(self.name)
        if operator_name(node) == "softmax":
            with self.graph.inserting_after(node):
                dropped = self.graph.call_function(torch.ops.aten.dropout.default)
            node.replace_all_uses_with(dropped)
            dropped.args = (node, strength, self.node)
            return
        arguments = node_arguments(node)
        flag = next((name for name in _FLAGS if name in arguments), None)
        chance = next((name for name in _CHANCES if name in arguments), None)
        if flag is not None and not arguments[flag]:
            arguments[flag] = self.node
            if chance is not None:
                arguments[chance] = strength
        elif chance is not None and not arguments[chance]:
            # What drops with probability 0 in eval mode.
            with self.graph.inserting_before(node):
                arguments[chance] = self.graph.call_function(operator.mul, (self.node, strength))
        schema: Any = node.target
        positional = [a.name for a in schema._schema.arguments if not a.kwarg_only]
        node.args = tuple(arguments.pop(name) for name in positional)
        node.kwargs = arguments
