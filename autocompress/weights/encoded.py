"""Parameters of any module that are decoded from what is stored each time they are read.

An encoded layer is of a subclass of its own class whose `weight` is a property, so whoever reads
`layer.weight` gets the dense weight. What it is decoded from is the module `layer.encoded_weight`. So it is
for any parameter; a graph module calls the code where its graph read the parameter.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, ClassVar, cast

from torch import Tensor, fx, nn

from autocompress.weights.decoders import WeightCode, weight_code
from autocompress.weights.encodings import Encoding, moved


class EncodedLayer(nn.Module):
    """Mixed into a module's class: what goes by the names of some of its parameters is decoded when read.

    What the parameter `weight` is decoded from is the module `encoded_weight`, and so for all of them.
    """

    dense_class: ClassVar[type[nn.Module]]
    decoded: ClassVar[tuple[str, ...]]

    def __reduce__(self) -> tuple[Any, ...]:
        # The class is made when it is needed, so it is not found by its name.
        state: Any = super().__getstate__()  # type: ignore[no-untyped-call]
        return _new_layer, (self.dense_class, self.decoded), state


class _EncodedRecurrent(nn.Module):
    """Mixed into PyTorch's recurrent layers besides, which keep a list of their weights: it is decoded too.

    On a GPU their weights are not one block of memory then, which cuDNN copies together at each call.
    """

    _flat_weights_names: list[str]

    @property
    def _flat_weights(self) -> list[Tensor]:
        return [getattr(self, name) for name in self._flat_weights_names]

    @_flat_weights.setter
    def _flat_weights(self, weights: list[Tensor]) -> None:
        # PyTorch renews its list where weights are moved or replaced.
        pass

    def flatten_parameters(self) -> None:
        """Do nothing: what is decoded is new at each call."""

    def _update_flat_weights(self) -> None:
        pass


_encoded_classes: dict[tuple[type[nn.Module], tuple[str, ...]], Any] = {}


def _encoded_class(dense: type[nn.Module], decoded: tuple[str, ...]) -> Any:
    if (dense, decoded) not in _encoded_classes:
        recurrent = [_EncodedRecurrent] if issubclass(dense, nn.RNNBase) else []
        members: dict[str, Any] = {name: property(_decoder(name)) for name in decoded}
        members |= {"dense_class": dense, "decoded": decoded}
        bases: Any = (EncodedLayer, *recurrent, dense)
        encoded = type(f"Encoded{dense.__name__}", bases, members)
        _encoded_classes[dense, decoded] = encoded
    return _encoded_classes[dense, decoded]


def _decoder(parameter: str) -> Callable[[nn.Module], Tensor]:
    code = _code_name(parameter)

    def decode(module: nn.Module) -> Tensor:
        weight: Tensor = cast(WeightCode, module._modules[code])()
        return weight

    return decode


# Before a parameter's name in its own module: the name of the module that it is decoded from.
_CODE = "encoded_"


def _code_name(parameter: str) -> str:
    """Name of the module that a parameter, by its name in its own module, is decoded from."""
    return f"{_CODE}{parameter}"


def _new_layer(dense: type[nn.Module], decoded: tuple[str, ...]) -> Any:
    encoded = _encoded_class(dense, decoded)
    return encoded.__new__(encoded)


def encode_weight(model: nn.Module, encoding: Encoding, parameter: str = "weight") -> WeightCode:
    """Replace a parameter of a model by its encoding, in place.

    Args:
        model: a single layer, or a model of many.
        encoding: of the parameter's numbers.
        parameter: its name in the model's state.

    Returns:
        What it is decoded from.
    """
    weight = model.get_parameter(parameter)
    code = weight_code(moved(encoding, weight), tuple(weight.shape))
    install_code(model, code, parameter)
    return code


def install_code(model: nn.Module, code: WeightCode, parameter: str = "weight") -> None:
    """Let a model decode a parameter from a code, in place, in all modules that share it; what was frozen
    stays frozen.

    Args:
        model: a single layer, or a model of many.
        code: of the parameter's shape.
        parameter: its name in the model's state.

    Raises:
        AttributeError: the model has no such parameter.
    """
    weight = model.get_parameter(parameter)
    owner = model.get_submodule(parameter.rpartition(".")[0])
    code.to(weight.device, weight.dtype).requires_grad_(weight.requires_grad).train(owner.training)
    _call_in_graphs(model, weight)
    for module in list(model.modules()):
        for name in [name for name, value in module._parameters.items() if value is weight]:
            _decode_in(module, name, code)


def _decode_in(module: nn.Module, parameter: str, code: WeightCode) -> None:
    """Let one module decode one of its own parameters."""
    delattr(module, parameter)
    module.add_module(_code_name(parameter), code)
    if isinstance(module, fx.GraphModule):
        return  # which calls the code where it read the parameter
    dense: type[nn.Module] = type(module)
    decoded: tuple[str, ...] = (parameter,)
    if isinstance(module, EncodedLayer):
        dense, decoded = module.dense_class, (*module.decoded, parameter)
    if isinstance(module, nn.RNNBase):
        module.__dict__.pop("_flat_weights", None)
        module._flat_weight_refs = []
    module.__class__ = _encoded_class(dense, decoded)


def _call_in_graphs(model: nn.Module, weight: Tensor) -> None:
    """Let graphs call the code in place of reading a parameter: a copy of a graph module has what its graph
    reads as tensors, however its modules would decode it."""
    for graph_module in [module for module in model.modules() if isinstance(module, fx.GraphModule)]:
        own = graph_module.named_parameters(remove_duplicate=False)
        names = {name for name, value in own if value is weight}
        reading = [n for n in graph_module.graph.nodes if n.op == "get_attr" and n.target in names]
        for node in reading:
            owner, _, leaf = str(node.target).rpartition(".")
            node.op, node.target = "call_module", ".".join(filter(None, (owner, _code_name(leaf))))
        if reading:
            graph_module.recompile()


def decode_weights(model: nn.Module) -> nn.Module:
    """Make every weight that a model decodes from a code a parameter again, of the numbers that it stands
    for, in place; each module is of its own class again, and what was frozen stays frozen.

    Args:
        model: a single layer, or a model of many.
    """
    parameters: dict[WeightCode, nn.Parameter] = {}
    for module in list(model.modules()):
        for name, code in list(module._modules.items()):
            if isinstance(code, WeightCode) and name.startswith(_CODE):
                if code not in parameters:
                    trains = any(parameter.requires_grad for parameter in code.parameters())
                    parameters[code] = nn.Parameter(code().detach().clone(), requires_grad=trains)
                delattr(module, name)
                _hold(module, name.removeprefix(_CODE), parameters[code])
    for graph_module in [module for module in model.modules() if isinstance(module, fx.GraphModule)]:
        _read_in_graph(graph_module)
    return model


def _hold(module: nn.Module, name: str, parameter: nn.Parameter) -> None:
    """Let one module hold a parameter that it has decoded."""
    if isinstance(module, EncodedLayer):
        left = tuple(other for other in module.decoded if other != name)
        dense: Any = module.dense_class
        module.__class__ = _encoded_class(dense, left) if left else dense
    module.register_parameter(name, parameter)
    if isinstance(module, nn.RNNBase) and not isinstance(module, EncodedLayer):
        module._init_flat_weights()


def _read_in_graph(graph_module: fx.GraphModule) -> None:
    """Let a graph read the parameters that it called codes for."""
    held = dict(graph_module.named_modules(remove_duplicate=False))
    for node in graph_module.graph.nodes:
        owner, _, leaf = str(node.target).rpartition(".")
        if node.op == "call_module" and node.target not in held and leaf.startswith(_CODE):
            node.op, node.target = "get_attr", ".".join(filter(None, (owner, leaf.removeprefix(_CODE))))
    graph_module.recompile()


def codes_of(model: nn.Module) -> dict[str, WeightCode]:
    """The codes that a model's parameters are decoded from, by their names, without parts of other codes."""
    codes: dict[str, WeightCode] = {}
    for name, module in model.named_modules():
        inside = any(name.startswith(f"{outer}.") for outer in codes)
        if isinstance(module, WeightCode) and not inside:
            codes[name] = module
    return codes
