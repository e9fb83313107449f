"""From a model's name, or `module:function`, to a factory of new models."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torchvision
from torch import nn

from autocompress.errors import TaskError, one_line
from autocompress.models.autoplastic import AutoplasticNet
from autocompress.models.mlp import Mlp
from autocompress.models.resnet_cifar import ResNetCifar
from autocompress.models.small_cnn import SmallCnn
from autocompress.plugins import load_attribute

Shape = tuple[int, ...]

BUILT_IN: dict[str, Callable[[Shape, int], nn.Module]] = {
    "mlp": lambda shape, classes: Mlp((math.prod(shape), 256, 128, 64, classes)),
    "lenet300": lambda shape, classes: Mlp((math.prod(shape), 300, 100, classes), nn.Tanh),
    "small_cnn": lambda shape, classes: SmallCnn(shape[0], classes),
    "resnet20": lambda shape, classes: ResNetCifar(3, shape[0], classes),
    "resnet56": lambda shape, classes: ResNetCifar(9, shape[0], classes),
    "autoplastic": lambda shape, classes: AutoplasticNet(shape[0], classes),
}


@dataclass(frozen=True)
class ModelFactory:
    """Makes a new model at each call; a class, so that it pickles.

    Args:
        name: a built-in name, a torchvision classification model, or `module:function`.
        shape: of one input, `(C, H, W)` or `(features,)`.
        classes: number of outputs.
    """

    name: str
    shape: Shape
    classes: int

    def __call__(self) -> nn.Module:
        """Make a new model, its parameters freshly drawn.

        Raises:
            TaskError: the user's function returned something else than an `nn.Module`.
        """
        if ":" in self.name:
            model = load_attribute(self.name)()
            if not isinstance(model, nn.Module):
                raise TaskError(
                    f"model {self.name!r} must return an nn.Module but returned {type(model).__name__}."
                )
            return model
        if self.name in BUILT_IN:
            return BUILT_IN[self.name](self.shape, self.classes)
        return _torchvision_model(self.name, self.shape[0], self.classes)


def torchvision_names() -> list[str]:
    """Names of torchvision's classification models."""
    names: list[str] = torchvision.models.list_models(module=torchvision.models)
    return names


def model_factory(name: str, shape: Shape, classes: int) -> ModelFactory:
    """The factory of a model, made once to see that it can be.

    Raises:
        TaskError: the name is unknown or the model cannot be made for these inputs.
    """
    if ":" not in name and name not in BUILT_IN and name not in torchvision_names():
        raise TaskError(
            f"model must be one of {', '.join(BUILT_IN)}, a torchvision classification model or "
            f"module:function but got {name!r}."
        )
    if ":" not in name and name not in ("mlp", "lenet300") and len(shape) != 3:
        raise TaskError(f"model {name!r} takes images (C, H, W) but the inputs are {shape}.")
    factory = ModelFactory(name, shape, classes)
    try:
        factory()
    except TaskError:
        raise
    except Exception as error:
        raise TaskError(f"model {name!r} could not be made: {one_line(error)}") from error
    return factory


def _torchvision_model(name: str, channels: int, classes: int) -> nn.Module:
    options: dict[str, Any] = {"weights": None, "num_classes": classes}
    if name in ("googlenet", "inception_v3"):
        # Their auxiliary heads return tuples in training.
        options |= {"aux_logits": False, "init_weights": True}
    model: nn.Module = torchvision.models.get_model(name, **options)
    if channels != 3:
        _change_input_channels(model, channels)
    return model


def _change_input_channels(model: nn.Module, channels: int) -> None:
    """Replace the first convolution by one for another number of image channels."""
    for name, module in model.named_modules():
        if isinstance(module, nn.Conv2d) and module.in_channels == 3:
            first = nn.Conv2d(
                channels,
                module.out_channels,
                module.kernel_size,  # type: ignore[arg-type]
                module.stride,  # type: ignore[arg-type]
                module.padding,  # type: ignore[arg-type]
                bias=module.bias is not None,
            )
            model.set_submodule(name, first)
            return
