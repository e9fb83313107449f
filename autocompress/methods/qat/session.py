"""QAT: quantisation-aware fine-tuning, so that what int8 rounds away is not missed.

Jacob et al., *Quantization and Training of Neural Networks for Efficient Integer-Arithmetic-Only Inference*,
arXiv 1712.05877.
"""

from __future__ import annotations

from typing import ClassVar

from torch import nn

from autocompress.errors import TrialError
from autocompress.methods.base import Finished, Method, Session, Stage
from autocompress.methods.qat.config import Config
from autocompress.methods.qat.layers import KINDS, RoundInputs, Straight, rounded_weights, weight_dims
from autocompress.methods.qat.rounding import COMPUTED_CODES, STORED_CODES
from autocompress.task import ModelProfile, Task

_NOTHING = "the model has no convolution and no linear layer"


class Qat(Method):
    """Trains with weights, and what layers are given, rounded to the numbers that an int8 file has.

    It leaves a plain model in floats, of the same structure: the file is made of that as of any other.
    """

    Config: ClassVar[type[Config]] = Config
    stage: ClassVar[Stage] = Stage.PRECISION
    artifacts: ClassVar[tuple[str, ...] | None] = ("onnx-int8",)
    to_the_end: ClassVar[bool] = True

    @classmethod
    def unsupported(cls, profile: ModelProfile) -> str | None:
        """Refuse a model without a layer that int8 computes."""
        return None if any(layer.kind in KINDS for layer in profile.layers) else _NOTHING

    def start(self, model: nn.Module, task: Task) -> QatSession:
        """Round the model's weights, and what its layers are given from here on.

        Raises:
            TrialError: the model has no layer that int8 computes, or all of them are excluded.
        """
        return QatSession(self.config, model, task)


class QatSession(Session):
    """The model, the numbers behind its rounded weights, and the ranges of what its layers are given.

    Batch norms train as ever, on what the rounded layers make: see `round_weight`.

    Attributes:
        weights: that are rounded.
        hooks: of the layers whose weights these are; none where weights alone are rounded.
        handles: that take the hooks off.
    """

    def __init__(self, config: Config, model: nn.Module, task: Task) -> None:
        self.config, self.model = config, model
        dims = rounded_weights(model, task.limits_of(model))
        if not dims:
            raise TrialError(f"{_NOTHING} that has a weight of its own and is not excluded.")
        codes = COMPUTED_CODES if config.activations else STORED_CODES
        self.weights = [Straight(parameter, dim, codes) for parameter, dim in dims.items()]
        layers = [
            module
            for module in model.modules()
            if any(module.get_parameter(name) in dims for name in weight_dims(module))
        ]
        self.hooks = [RoundInputs(config.averaging) for _ in layers if config.activations]
        self.handles = [
            layer.register_forward_pre_hook(hook, with_kwargs=True)
            for layer, hook in zip(layers, self.hooks, strict=False)
        ]
        self._set_hooks(0.0)

    def after_step(self, progress: float) -> None:
        """Move the numbers behind the weights by the step, and round them again."""
        for weight in self.weights:
            weight.follow()
        self._set_hooks(progress)

    def finish(self) -> Finished:
        """The model itself, with its numbers as floats and without hooks."""
        for weight in self.weights:
            weight.release()
        for handle in self.handles:
            handle.remove()
        return Finished(self.model, (), self.model)

    def _set_hooks(self, progress: float) -> None:
        for hook in self.hooks:
            hook.rounds = progress >= self.config.start
            hook.follows = progress < self.config.freeze
