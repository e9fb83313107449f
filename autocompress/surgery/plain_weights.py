"""`FoldWeight` and `PlainLayer`: weights that are computed from other parameters become parameters.

Weight norm (Salimans & Kingma, arXiv 1602.07868), spectral norm (Miyato et al., arXiv 1802.05957) and weight
standardisation (Qiao et al., arXiv 1903.10520) compute a layer's weight anew at each call; in evaluation it
is the same each time. As a parameter, channels can be cut from it, and it is what is stored. Training then
goes on without the norm.
"""

from __future__ import annotations

import importlib
import sys
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any, ClassVar

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.nn.utils import parametrizations, parametrize, prune, remove_spectral_norm, remove_weight_norm
from torch.overrides import TorchFunctionMode

from autocompress.errors import CheckpointError
from autocompress.graph.proof import TOLERANCE, relative_difference
from autocompress.surgery.edits import Edit
from autocompress.task import Inputs
from autocompress.weights.factored import CONVOLUTIONS, layer_kind

_Remove = Callable[[nn.Module, str], Any]
# PyTorch's older functions hide the modules of their hooks, which go by the same names.
_SPECTRAL: Any = importlib.import_module("torch.nn.utils.spectral_norm")
_WEIGHT: Any = importlib.import_module("torch.nn.utils.weight_norm")


def _remove_spectral_norm(layer: nn.Module, parameter: str) -> None:
    """Remove the norm, and its hook on loading a state, which PyTorch's own function does not find."""
    remove_spectral_norm(layer, parameter)
    for key, hook in list(layer._load_state_dict_pre_hooks.items()):
        loading = getattr(hook, "hook", hook)
        if isinstance(loading, _SPECTRAL.SpectralNormLoadStateDictPreHook) and loading.fn.name == parameter:
            del layer._load_state_dict_pre_hooks[key]


_HOOKS: dict[type[Any], tuple[str, _Remove]] = {
    _WEIGHT.WeightNorm: ("weight norm", remove_weight_norm),
    _SPECTRAL.SpectralNorm: ("spectral norm", _remove_spectral_norm),
    prune.BasePruningMethod: ("pruning mask", prune.remove),
}
_PARAMETRIZATIONS: dict[type[Any], str] = {
    parametrizations._WeightNorm: "weight norm",
    parametrizations._SpectralNorm: "spectral norm",
}
_OPERATORS = (F.conv1d, F.conv2d, F.conv3d)


@dataclass(frozen=True)
class FoldWeight(Edit):
    """Make a parameter of what a norm or a mask computes, which goes.

    Args:
        layer: name of the module that it is of.
        parameter: its name in the module.
        norm: "weight norm", "spectral norm" or "pruning mask".
    """

    kind: ClassVar[str] = "fold_weight"
    layer: str
    parameter: str
    norm: str

    def apply(self, model: nn.Module, example: Inputs) -> nn.Module:
        """Fold it, in place; what was frozen stays so.

        Raises:
            CheckpointError: the parameter is not computed so.
        """
        layer = dict(model.named_modules()).get(self.layer)
        computed = {} if layer is None else _computed(layer)
        if layer is None or computed.get(self.parameter, ("",))[0] != self.norm:
            raise CheckpointError(
                f"layer must be one whose {self.parameter} has a {self.norm} but got {self.layer!r}."
            )
        trains = any(source.requires_grad for source in _sources(layer, self.parameter))
        training = layer.training
        # In training a spectral norm moves each time it is read.
        with torch.no_grad():
            computed[self.parameter][1](layer.eval(), self.parameter)
        weight: Tensor = getattr(layer, self.parameter)
        layer._buffers.pop(self.parameter, None)
        setattr(layer, self.parameter, nn.Parameter(weight.detach().clone(), requires_grad=trains))
        layer.train(training)
        return model


def computed_parameters(model: nn.Module) -> list[FoldWeight]:
    """What PyTorch's norms and masks compute in a model, and nothing else does besides."""
    return [
        FoldWeight(name, parameter, norm)
        for name, layer in model.named_modules()
        for parameter, (norm, _) in _computed(layer).items()
    ]


def _computed(layer: nn.Module) -> dict[str, tuple[str, _Remove]]:
    """A module's computed parameters: by what, and what removes that and leaves the parameter."""
    computed: dict[str, tuple[str, _Remove]] = {}
    hooks: Any = layer._forward_pre_hooks
    for hook in hooks.values():
        kind = next((kind for kind in _HOOKS if isinstance(hook, kind)), None)
        if kind is not None:
            computed[getattr(hook, "name", None) or hook._tensor_name] = _HOOKS[kind]
    if parametrize.is_parametrized(layer):
        steps: Any = layer.parametrizations
        for parameter, own in steps.items():
            norms = {_PARAMETRIZATIONS.get(type(step)) for step in own}
            if len(norms) == 1 and None not in norms:
                computed[parameter] = str(norms.pop()), parametrize.remove_parametrizations
    return computed


def _sources(layer: nn.Module, parameter: str) -> list[nn.Parameter]:
    """The parameters that one is computed from."""
    if parametrize.is_parametrized(layer, parameter):
        steps: Any = layer.parametrizations
        return list(steps[parameter].parameters())
    hooked = (f"{parameter}_{part}" for part in ("g", "v", "orig"))
    return [layer.get_parameter(name) for name in hooked if name in layer._parameters]


@dataclass(frozen=True)
class PlainLayer(Edit):
    """Put a plain convolution in the place of one whose class computes its weight, as those with weight
    standardisation do.

    Args:
        layer: name of the convolution.
    """

    kind: ClassVar[str] = "plain_layer"
    layer: str

    def apply(self, model: nn.Module, example: Inputs) -> nn.Module:
        """Replace it, in place; what was frozen stays so.

        Raises:
            CheckpointError: the layer is not one that can be replaced.
        """
        layer = dict(model.named_modules()).get(self.layer)
        plain = None if layer is None or not self.layer else _plain(layer)
        if plain is None:
            raise CheckpointError(
                f"layer must be a convolution that computes its weight but got {self.layer!r}."
            )
        model.set_submodule(self.layer, plain)
        return model


def standardised_layers(model: nn.Module) -> list[PlainLayer]:
    """The convolutions of a model whose class computes their weight from their parameters alone."""
    return [PlainLayer(name) for name, layer in model.named_modules() if name and _plain(layer) is not None]


class _Convolutions(TorchFunctionMode):
    """Writes down the weights that convolutions are called with, and lets them be."""

    def __init__(self) -> None:
        super().__init__()
        self.weights: list[Tensor] = []

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if func in _OPERATORS:
            self.weights.append(args[1] if len(args) > 1 else (kwargs or {})["weight"])
        return func(*args, **(kwargs or {}))


def _plain(layer: Any) -> nn.Module | None:
    """A plain convolution that computes what one with a forward of its own does, on inputs that mean nothing;
    None where there is none, or where the layer's weight is a parameter as it is."""
    kind = layer_kind(layer)
    if kind not in CONVOLUTIONS or type(layer).forward is kind.forward or layer.padding_mode != "zeros":
        return None
    probes = _probes(layer)
    recorder, training = _Convolutions(), layer.training
    try:
        with torch.no_grad(), recorder:
            wanted = [layer.eval()(probe) for probe in probes]
        weight, *others = recorder.weights
        if weight is layer.weight or any(not torch.equal(weight, other) for other in others):
            return None
        for plain in _alike(layer, kind, weight):
            with torch.no_grad():
                made = [plain(probe) for probe in probes]
            if relative_difference(wanted, made) <= TOLERANCE:
                return plain.train(training)
    except Exception:
        # Whatever the user's class does, it is no convolution of its inputs alone.
        return None
    finally:
        layer.train(training)
    return None


def _probes(layer: Any) -> list[Tensor]:
    """Inputs of several sizes, which a stride divides or does not."""
    generator = torch.Generator().manual_seed(0)
    reach = [d * (size - 1) + 1 for size, d in zip(layer.kernel_size, layer.dilation, strict=True)]
    grids = ([2 * size + more for size in reach] for more in (2, 3, 5))
    return [torch.randn(2, layer.in_channels, *grid, generator=generator).to(layer.weight) for grid in grids]


def _alike(layer: Any, kind: type[Any], weight: Tensor) -> Iterator[nn.Module]:
    """Convolutions like a layer with another weight: of PyTorch's class, and of timm's that pads as
    TensorFlow does."""
    padding = getattr(sys.modules.get("timm.layers.conv2d_same"), "Conv2dSame", None)
    trains = any(parameter.requires_grad for parameter in layer.parameters(recurse=False))
    for cls in (kind, *([padding] if padding is not None and kind is nn.Conv2d else [])):
        plain = cls(
            layer.in_channels,
            layer.out_channels,
            layer.kernel_size,
            layer.stride,
            layer.padding,
            layer.dilation,
            layer.groups,
            layer.bias is not None,
            device="meta",
        )
        plain.weight, plain.bias = nn.Parameter(weight.detach().clone(), requires_grad=trains), layer.bias
        yield plain
